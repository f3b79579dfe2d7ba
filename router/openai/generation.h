#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "router/http/cpu_pool.h"
#include "router/http/http_message.h"
#include "router/openai/answer_format.h"
#include "router/openai/api_config.h"
#include "router/openai/generate_params.h"
#include "router/plan/request.h"
#include "router/text/choice_output.h"

namespace baton::router {

// What the endpoints share; all of it outlives every request.
struct ApiContext {
  const ApiConfig& config;
  const Tokenizer& tokenizer;
  const MarkupIds& markup;
  Dispatcher& dispatcher;
  CpuPool& cpu_pool;
};

// One chat or text completion, ready to run: choice = prompt index * n + k.
struct GenerationJob {
  AnswerHead head;
  GenerateParams params;
  std::vector<std::shared_ptr<const std::vector<int32_t>>> prompts;
  std::vector<std::string> echoes;  // text shown before each prompt's choices; empty: none
  GenerateRequest request;          // everything but the prompt, the same for all prompts
  std::string request_id;           // echoed as a header
};

// Runs a job: submits its prompts, turns tokens into text and text into an answer, streamed or
// whole. Lives on its connection's thread; the dispatcher's events are posted there. Many logprobs
// are written out on the CPU pool. Cancels what is running when the client leaves.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  static void Start(const ApiContext& context, GenerationJob job,
                    std::shared_ptr<HttpExchange> exchange);

  Generation(const ApiContext& context, GenerationJob job, std::shared_ptr<HttpExchange> exchange);

 private:
  struct Choice {
    ChoiceOutput output;
    ChoiceText text;
    std::vector<TokenRecord> records;  // for logprobs of an answer that is not streamed
    int64_t completion_tokens = 0;
    int64_t text_offset = 0;
    bool is_started = false;
    bool is_ended = false;
  };
  struct Echo {  // of a streamed choice's beginning
    std::string logprobs;
    int64_t text_offset = 0;  // where it ends
  };
  struct Part {  // one prompt
    RequestKey key;
    int cached_tokens = 0;
    bool is_ended = false;
    // The report on the prompt (contracts.md 5), from position 1 on; what the planner says until
    // it can be shown.
    std::vector<TokenRecord> report;
    std::vector<RequestEvent> held;
    Echo echo;
    bool is_formatting = false;  // the echo
  };

  void Submit();
  void OnEvents(size_t part, std::vector<RequestEvent> events);
  void On(size_t part, const RequestAccepted& event);
  void On(size_t part, const TokensEmitted& event);
  void On(size_t part, const PromptLogprobsEmitted& event);
  void On(size_t part, const ChoiceFinished& event);
  void On(size_t part, const ContinuationInexact& event);
  void On(size_t part, const RequestEnded& event);
  bool IsReportDue(size_t part) const;
  bool MustWait(size_t part, const RequestEvent& event) const;
  void OnReportComplete(size_t part);
  Echo MakeEcho(size_t part) const;
  void EndScored(size_t part);
  Choice& ChoiceOf(size_t part, int k);
  std::vector<TokenRecord> EchoRecords(size_t part) const;
  void LogEnd(size_t part, const RequestEnded& event) const;
  void StartStream();
  void Ping();
  void Show(Choice& choice, const std::vector<OutputDelta>& deltas,
            const std::vector<TokenRecord>& records);
  void StartChoice(Choice& choice);
  void FillLogprobs(size_t choice_index);
  size_t NumEntries() const;
  std::string WholeAnswer();
  void Format(size_t num_entries, std::function<void()> make, std::function<void()> use);
  void EndChoice(Choice& choice, ChoiceEnd end);
  void EndAll();
  void Fail(const ApiError& error, absl::Duration retry_after);
  void CancelAll(const std::string& reason);
  UsageCounts Usage() const;
  HttpHeaders CommonHeaders() const;

  const ApiContext context_;
  GenerationJob job_;
  std::shared_ptr<HttpExchange> exchange_;
  std::vector<Choice> choices_;
  std::vector<Part> parts_;
  std::string answer_;  // whole, to be sent
  bool is_streaming_ = false;  // headers are out
  bool is_over_ = false;
  bool is_exact_ = true;
  bool was_quiet_ = true;  // nothing sent since the last ping
};

// The answer to a request that could not be served (protocol.md 5.2, 5.3).
ApiError ToApiError(const absl::Status& status);
// The endpoints' way of sending an error.
void RespondError(HttpExchange& exchange, const ApiError& error, const std::string& request_id,
                  absl::Duration retry_after = {});

}  // namespace baton::router
