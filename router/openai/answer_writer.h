#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "router/openai/answer_format.h"

namespace baton::router {

inline constexpr std::string_view kInexactComment = ": x-baton-exact: false\n\n";

// How one surface writes down what a generation yields: the seam between Generation and the form of
// an API (protocol.md 5.5, 6.3, 6.4). What is returned is sent as it is; an empty string sends
// nothing. One per request; Whole may run on the CPU pool, when nothing else is called any more.
class AnswerWriter {
 public:
  virtual ~AnswerWriter() = default;

  // A stream's head: the request is queued, nothing was sampled yet.
  virtual std::string Accepted(int64_t prompt_tokens) = 0;
  // One engine step's worth of a choice: of reasoning, content and calls one at most, in this order
  // over the chunks of a step. The last chunk of a choice has `end`.
  virtual std::string Chunk(const ChunkText& chunk) = 0;
  // After the choices of a prompt ended; whole or streamed.
  virtual std::string PromptEnd(size_t prompt, int64_t cached_tokens) = 0;
  // After the last choice ended.
  virtual std::string End(const UsageCounts& usage) = 0;
  // While nothing else is sent.
  virtual std::string Ping() = 0;
  // What follows was computed in other class of numerics than what came before.
  virtual std::string Inexact() = 0;
  // Ends a stream in place of End.
  virtual std::string StreamError(const ApiError& error) = 0;

  // The status of an error before anything was sent.
  virtual int Status(const ApiError& error) = 0;
  // Bodies of answers that are not streamed.
  virtual std::string Whole(const std::vector<ChoiceText>& choices, const UsageCounts& usage) = 0;
  virtual std::string Error(const ApiError& error) = 0;

  // In front of a tool call's 24 hex digits.
  virtual std::string_view call_id_prefix() const = 0;
};

// Chat and text completions of OpenAI (protocol.md 5.5, 5.6).
class OpenAiWriter final : public AnswerWriter {
 public:
  OpenAiWriter(AnswerHead head, ShownFields shown, bool include_usage)
      : head_(std::move(head)), shown_(std::move(shown)), include_usage_(include_usage) {}

  std::string Accepted(int64_t) override { return ""; }
  std::string Chunk(const ChunkText& chunk) override { return ChunkEvent(head_, chunk); }
  std::string PromptEnd(size_t, int64_t) override { return ""; }
  std::string End(const UsageCounts& usage) override {
    return (include_usage_ ? UsageEvent(head_, usage) : "") + std::string(kDoneEvent);
  }
  std::string Ping() override { return ": ping\n\n"; }
  std::string Inexact() override { return std::string(kInexactComment); }
  std::string StreamError(const ApiError& error) override {
    return ErrorEvent(error) + std::string(kDoneEvent);
  }
  std::string Whole(const std::vector<ChoiceText>& choices, const UsageCounts& usage) override {
    return AnswerJson(head_, choices, usage, shown_);
  }
  int Status(const ApiError& error) override { return error.http_status; }
  std::string Error(const ApiError& error) override { return ErrorJson(error); }
  std::string_view call_id_prefix() const override { return "call_"; }

 private:
  const AnswerHead head_;
  const ShownFields shown_;
  const bool include_usage_;
};

}  // namespace baton::router
