#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "common/clock.h"
#include "common/cpu_pool.h"
#include "common/rng.h"
#include "router/http/header_values.h"
#include "router/http/http_message.h"
#include "router/openai/generation.h"
#include "router/openai/output_constraint.h"
#include "router/openai/sealed_text.h"
#include "router/text/chat_encoder.h"
#include "router/text/run_cache.h"

namespace baton::router {

// Everything a request's handling needs; all of it outlives the HTTP server.
struct ApiParts {
  const ApiConfig& config;
  const Tokenizer& tokenizer;
  GrammarChecker& grammars;
  const MarkupIds& markup;
  const ChatEncoder& encoder;
  Dispatcher& dispatcher;
  CpuPool& cpu_pool;
  const Clock& clock;
  std::function<std::string()> render_metrics;  // any thread
};

// The router's HTTP surface (protocol.md 5.1). Handle runs on I/O threads; large bodies go to the
// CPU pool and come back.
class Api final : public RequestHandler {
 public:
  explicit Api(ApiParts parts);

  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override;
  // From now on new work is refused with 503 and /ready says no. Any thread.
  void Drain() { is_draining_ = true; }
  bool is_draining() const { return is_draining_; }

  // For a surface that translates its requests to bodies of /v1/chat/completions (protocol.md 6.2):
  // the job of such a body but for its length, which that surface fits into MaxContext. `request`
  // gives arrival, deadlines and account; its body is not read. Any thread.
  ApiResult<GenerationJob> PrepareTranslated(HttpRequest request, const std::string& id,
                                             const JsonValue& chat) const;
  // Runs a job; on the exchange's thread.
  void Start(GenerationJob job, const std::shared_ptr<HttpExchange>& exchange) const {
    Generation::Start(context_, std::move(job), exchange);
  }
  // Counted so far. Any thread.
  const DsmlCounts& dsml_counts() const { return *dsml_; }
  const RunCache& run_cache() const { return *runs_; }
  int MaxContext() const;  // tokens of prompt and answer, as served now; any thread

 private:
  struct Call {  // one request on its way
    HttpRequest request;
    std::string id;
    std::shared_ptr<HttpExchange> exchange;
  };
  // Reads the body and prepares a generation. Pure but for the seed and the clock; any thread.
  ApiResult<GenerationJob> PrepareChat(const Call& call, const JsonValue& body) const;
  ApiResult<GenerationJob> PrepareResponse(const Call& call, const JsonValue& body) const;
  ApiResult<GenerationJob> PrepareCompletion(const Call& call, const JsonValue& body,
                                             const JsonValue* prompt) const;
  ApiResult<GenerationJob> PrepareGenerate(const Call& call, const JsonValue& body) const;
  ApiResult<GenerationJob> PrepareBody(const Call& call, const JsonValue& body) const;
  ApiResult<GenerationJob> Prepare(Call& call) const;  // may take the request id from the body
  std::optional<ApiError> FillRequest(const Call& call, GenerationJob& job) const;
  std::optional<ApiError> CheckModel(const JsonValue& body, std::string& model) const;
  std::optional<ApiError> FitLength(GenerationJob& job) const;

  void Generate(Call call);
  void Reply(const Call& call, int status, std::string json) const;
  void Fail(const Call& call, const ApiError& error) const;
  void Models(const Call& call) const;
  void Model(const Call& call, const std::string& name) const;
  ApiResult<std::string> Tokenize(const Call& call) const;  // the answer's JSON; any thread
  ApiResult<std::string> Detokenize(const Call& call) const;
  // Makes a result, for a large body on the CPU pool, and delivers it on the connection's thread.
  template <typename T>
  void Offload(Call call, std::function<ApiResult<T>(Call&)> make,
               std::function<void(const Call&, T)> deliver);
  void Answer(Call call, ApiResult<std::string> (Api::*make)(const Call&) const);
  void Health(const Call& call) const;
  void Ready(const Call& call) const;
  ApiResult<std::vector<int32_t>> RenderChat(ChatInput input) const;
  ApiResult<std::vector<int32_t>> ChatPrompt(const JsonValue& body, GenerationJob& job) const;
  void Truncate(GenerationJob& job) const;
  std::optional<ApiError> Constrain(const JsonValue& body, GenerationJob& job) const;
  std::optional<ApiError> ConstrainCalls(const std::optional<OutputConstraint>& constraint,
                                         GenerationJob& job) const;
  ApiResult<JsonValue> ReadBody(const Call& call) const;
  bool RouteGet(const Call& call) const;
  bool RoutePost(Call& call);

  const ApiParts parts_;
  const TextSealer sealer_;
  const std::unique_ptr<CallReplay> replay_;
  const std::unique_ptr<RunCache> runs_;
  const std::unique_ptr<DsmlCounts> dsml_;
  const ApiContext context_;
  const int64_t started_;  // UNIX seconds
  std::atomic<bool> is_draining_ = false;
};

}  // namespace baton::router
