#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "router/front/cors.h"
#include "router/front/routes.h"
#include "router/http/api_keys.h"
#include "router/http/http_message.h"
#include "router/openai/api_error.h"

namespace baton::router {

// All of it outlives the door.
struct FrontDoorParts {
  const ApiKeys& keys;
  RequestHandler& openai;
  RequestHandler& anthropic;
  RequestHandler& operators;
  std::vector<std::string> cors_origins;
  bool serves_admin = false;  // to everybody who may call at all; else to admin keys only
};

// Every request comes through here: CORS, API keys and their limits, then the surface that the
// table of routes names (protocol.md 5.1, 5.2). On the connection's thread; keeps no state.
class FrontDoor final : public HttpHandler {
 public:
  explicit FrontDoor(FrontDoorParts parts) : parts_(std::move(parts)), cors_(parts_.cors_origins) {}

  bool AdmitHead(HttpRequest& head, HttpExchange& exchange) override;
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;
  void Refuse(const HttpRefusal& refusal, HttpExchange& exchange) override;

  // Requests to guarded paths without a valid key. Any thread.
  uint64_t num_unauthorized() const { return num_unauthorized_.load(); }

 private:
  RequestHandler& HandlerOf(const Route& route, const HttpRequest& request) const;
  bool IsAdmin(const HttpRequest& request) const;

  const FrontDoorParts parts_;
  const CorsPolicy cors_;
  std::atomic<uint64_t> num_unauthorized_ = 0;
};

}  // namespace baton::router
