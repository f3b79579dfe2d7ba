#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/cpu_pool.h"
#include "router/http/http_message.h"
#include "router/openai/answer_writer.h"
#include "router/openai/api_config.h"
#include "router/openai/call_replay.h"
#include "router/openai/generate_params.h"
#include "router/openai/grammar_checker.h"
#include "router/openai/tool_choice.h"
#include "router/plan/request.h"
#include "router/text/choice_output.h"

namespace baton::router {

// Choices with tools by what became of their markup (protocol.md 3.4), by DsmlOutcome. Any thread.
struct DsmlCounts {
  std::array<std::atomic<uint64_t>, kNumDsmlOutcomes> choices{};
};

// What the endpoints share; all of it outlives every request.
struct ApiContext {
  const ApiConfig& config;
  const Tokenizer& tokenizer;
  GrammarChecker& grammars;
  const MarkupIds& markup;
  Dispatcher& dispatcher;
  CpuPool& cpu_pool;
  const Clock& clock;
  CallReplay& replay;
  DsmlCounts& dsml;
};

// One chat or text completion, ready to run: choice = prompt index * n + k.
struct GenerationJob {
  AnswerHead head;
  std::shared_ptr<AnswerWriter> writer;  // null: OpenAI's, made from `head` and `params`
  GenerateParams params;
  ToolRequest tools;          // of a chat
  std::string grammar_param;  // the member that the grammar in `request.masks` comes from
  std::vector<std::shared_ptr<const std::vector<int32_t>>> prompts;
  std::vector<std::string> echoes;  // text shown before each prompt's choices; empty: none
  GenerateRequest request;          // everything but the prompt, the same for all prompts
  std::string request_id;           // echoed as a header
};

// Runs a job: has its grammar checked, submits its prompts, turns tokens into text and
// text into an answer, streamed or whole. Lives on its connection's thread; the dispatcher's events
// are posted there. Many logprobs are written out on the CPU pool. Cancels what is running when the
// client leaves.
class Generation final : public std::enable_shared_from_this<Generation> {
 public:
  static void Start(const ApiContext& context, GenerationJob job,
                    const std::shared_ptr<HttpExchange>& exchange);

  Generation(const ApiContext& context, GenerationJob job, std::shared_ptr<HttpExchange> exchange);

 private:
  struct Choice {
    std::unique_ptr<ToolCallParser> calls;  // null: calls are text
    ChoiceOutput output;
    ChoiceText text;                   // its calls: those of a stream are only their ids
    std::vector<TokenRecord> records;  // for logprobs of an answer that is not streamed
    std::string held_reasoning;        // of a stream that shows it once it has ended
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
    std::optional<StageTimes> stages{};  // once it ended
    bool is_ended = false;
    // The report on the prompt (contracts.md 5), from position 1 on; what the planner says until
    // it can be shown.
    std::vector<TokenRecord> report;
    std::vector<RequestEvent> held;
    Echo echo;
    bool is_formatting = false;  // the echo
  };

  Choice MakeChoice(size_t prompt) const;
  void Submit();
  void CheckGrammarFirst();
  void OnVerdict(const absl::Status& verdict);
  void Refuse(const ApiError& error);
  void SubmitParts();
  void OnEvents(size_t part, std::vector<RequestEvent> events);
  void On(size_t part, const RequestAccepted& event);
  void On(size_t part, const TokensEmitted& event);
  void On(size_t part, const PromptLogprobsEmitted& event);
  void On(size_t part, const ChoiceFinished& event);
  void On(size_t part, const ContinuationInexact& event);
  void On(size_t part, const RequestEnded& event);
  bool MustWait(size_t part, const RequestEvent& event) const;
  Choice& ChoiceOf(size_t part, int k);
  void LogEnd(size_t part, const RequestEnded& event) const;
  bool Take(Choice& choice, const TokenRecord& record, std::vector<OutputDelta>& deltas);
  void AbortPart(size_t part);
  void Fail(const ApiError& error, absl::Duration retry_after);
  void CancelAll(const std::string& reason);

  // generation_show.cc: what the client sees of a choice.
  void StartStream();
  void Send(std::string piece);
  void Ping();
  void Show(Choice& choice, const std::vector<OutputDelta>& deltas,
            const std::vector<TokenRecord>& records);
  void SendStep(Choice& choice, const std::vector<OutputDelta>& deltas,
                const std::vector<TokenRecord>& records);
  std::vector<CallText> ShownCalls(Choice& choice, const std::vector<OutputDelta>& deltas);
  void StartChoice(Choice& choice);
  void EndChoice(Choice& choice, ChoiceEnd end);
  void KeepCalls(Choice& choice);
  void CountOutcome(const Choice& choice) const;
  void EndAll();
  UsageCounts Usage() const;
  HttpHeaders CommonHeaders() const;

  // generation_report.cc: logprobs of prompts and whole answers.
  bool IsReportDue(size_t part) const;
  void OnReportComplete(size_t part);
  Echo MakeEcho(size_t part) const;
  void EndScored(size_t part);
  std::vector<TokenRecord> EchoRecords(size_t part) const;
  void FillLogprobs(size_t choice_index);
  size_t NumEntries() const;
  std::string WholeAnswer();
  void Format(size_t num_entries, const std::function<void()>& make,
              const std::function<void()>& use);

  const ApiContext context_;
  GenerationJob job_;
  std::shared_ptr<HttpExchange> exchange_;
  std::vector<Choice> choices_;
  std::vector<Part> parts_;
  std::string answer_;         // whole, to be sent
  bool is_streaming_ = false;  // headers are out
  bool is_over_ = false;
  bool is_exact_ = true;
  bool was_quiet_ = true;  // nothing sent since the last ping
};

// The answer to a request that could not be served (protocol.md 5.2, 5.3).
ApiError ToApiError(const absl::Status& status);
// The endpoints' way of sending an error, `body` in their form.
void RespondError(HttpExchange& exchange, const ApiError& error, const std::string& request_id,
                  absl::Duration retry_after = {});
void RespondErrorBody(HttpExchange& exchange, int status, std::string body,
                      const std::string& request_id, absl::Duration retry_after);

}  // namespace baton::router
