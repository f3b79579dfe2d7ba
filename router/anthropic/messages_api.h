#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "router/http/http_message.h"
#include "router/openai/api.h"

namespace baton::router {

// All of it outlives the HTTP server.
struct MessagesParts {
  const ApiConfig& config;
  Api& chats;  // prepares and runs what was translated
  CpuPool& cpu_pool;
};

// Anthropic's surface: /v1/messages, /v1/messages/count_tokens, and the models in its form
// (protocol.md 6). Handle runs on I/O threads; large bodies go to the CPU pool and come back. The
// door has checked path and method.
class MessagesApi final : public RequestHandler {
 public:
  explicit MessagesApi(MessagesParts parts);

  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;

  // Server tools left out of requests so far. Any thread.
  uint64_t num_dropped_tools() const { return num_dropped_tools_.load(); }

 private:
  struct Call;  // one request on its way

  void Models(const Call& call) const;
  // Reads, translates and tokenizes, on the CPU pool if the body is large, and calls on on the
  // connection's thread.
  void Prepare(const std::shared_ptr<Call>& call, bool needs_max_tokens);
  void Deliver(const std::shared_ptr<Call>& call, ApiResult<GenerationJob> job,
               bool is_count) const;
  ApiResult<GenerationJob> MakeJob(Call& call, bool needs_max_tokens);
  std::optional<ApiError> FitLength(GenerationJob& job) const;
  void Fail(const Call& call, const ApiError& error) const;

  const MessagesParts parts_;
  const std::string started_;  // RFC 3339
  std::atomic<uint64_t> num_dropped_tools_ = 0;
};

}  // namespace baton::router
