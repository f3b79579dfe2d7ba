#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "router/http/http_message.h"

namespace baton::router {

// Which web pages may call (protocol.md 5.2). Immutable; any thread.
class CorsPolicy {
 public:
  // Origins as browsers send them; "*": all; none: no headers at all.
  explicit CorsPolicy(std::vector<std::string> origins) : origins_(std::move(origins)) {}

  bool is_on() const { return !origins_.empty(); }
  // What every answer to this origin carries; it allows nothing if it may not call.
  HttpHeaders AnswerHeaders(std::string_view origin) const;
  // And the answer to its OPTIONS. `asked`: the request's Access-Control-Request-Headers.
  HttpHeaders PreflightHeaders(std::string_view origin, std::string_view asked) const;

 private:
  bool Has(std::string_view origin) const;
  bool Allows(std::string_view origin) const {
    return !origin.empty() && (Has("*") || Has(origin));
  }

  std::vector<std::string> origins_;
};

// An answer that gets more headers on its way out.
class ExchangeWithHeaders final : public HttpExchange {
 public:
  ExchangeWithHeaders(HttpExchange& inner, HttpHeaders headers)
      : inner_(inner), headers_(std::move(headers)) {}
  // Keeps `owner` alive.
  ExchangeWithHeaders(std::shared_ptr<HttpExchange> owner, HttpHeaders headers)
      : owner_(std::move(owner)), inner_(*owner_), headers_(std::move(headers)) {}

  void Respond(int status, HttpHeaders headers, std::string body) override {
    inner_.Respond(status, With(std::move(headers)), std::move(body));
  }
  void StartStream(int status, HttpHeaders headers) override {
    inner_.StartStream(status, With(std::move(headers)));
  }
  void Write(std::string piece) override { inner_.Write(std::move(piece)); }
  void EndStream() override { inner_.EndStream(); }
  void OnGone(std::function<void()> callback) override { inner_.OnGone(std::move(callback)); }
  void Post(std::function<void()> task) override { inner_.Post(std::move(task)); }
  void PostAfter(absl::Duration delay, std::function<void()> task) override {
    inner_.PostAfter(delay, std::move(task));
  }

 private:
  HttpHeaders With(HttpHeaders headers) const {
    headers.insert(headers.end(), headers_.begin(), headers_.end());
    return headers;
  }

  const std::shared_ptr<HttpExchange> owner_;
  HttpExchange& inner_;
  const HttpHeaders headers_;
};

}  // namespace baton::router
