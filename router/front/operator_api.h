#pragma once

#include <memory>
#include <string>

#include "router/http/http_message.h"
#include "router/openai/api_config.h"
#include "router/plan/request.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// All of it outlives the HTTP server.
struct OperatorParts {
  const ApiConfig& config;
  const Tokenizer& tokenizer;
  Dispatcher& dispatcher;
  std::string openapi;  // the document
};

// What operators and benchmark clients ask for beside answers (protocol.md 5.1, 7.2). On the
// connection's thread. The door has checked path and method.
class OperatorApi final : public RequestHandler {
 public:
  explicit OperatorApi(OperatorParts parts) : parts_(std::move(parts)) {}

  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;

 private:
  void Command(const HttpRequest& request, HttpExchange& exchange, const std::string& id) const;
  std::string ModelInfo() const;
  std::string ServerInfo() const;
  // One token through the whole cluster: 200, or 503 with the reason.
  void GenerateOne(const HttpRequest& request, const std::shared_ptr<HttpExchange>& exchange) const;

  const OperatorParts parts_;
};

}  // namespace baton::router
