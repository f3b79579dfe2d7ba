#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "router/openai/answer_writer.h"

namespace baton::router {

// Answers of SGLang's /generate, whole and streamed (protocol.md 7.2): every event of a stream has
// the whole text and all ids so far. Up to 1,024 tokens each step is an event; then events come
// more rarely, so that a long answer does not take the square of its length. One per request; see
// AnswerWriter for threads.
class SglangWriter final : public AnswerWriter {
 public:
  struct Request {
    std::string id;
    std::vector<int64_t> prompt_tokens;  // by prompt
    int num_choices = 1;                 // per prompt
    bool is_list = false;                // the client gave a list of prompts
    int32_t eos = 0;
    absl::Time arrival;
  };
  // `clock` outlives it.
  SglangWriter(Request request, const Clock& clock);

  std::string Accepted(int64_t) override { return ""; }
  std::string Chunk(const ChunkText& chunk) override;
  std::string PromptEnd(size_t prompt, int64_t cached_tokens) override;
  std::string End(const UsageCounts&) override { return std::string(kDoneEvent); }
  // Its clients take every line for an event.
  std::string Ping() override { return ""; }
  std::string Inexact() override { return ""; }
  std::string StreamError(const ApiError& error) override {
    return ErrorEvent(error) + std::string(kDoneEvent);
  }
  std::string Whole(const std::vector<ChoiceText>& choices, const UsageCounts& usage) override;
  int Status(const ApiError& error) override { return error.http_status; }
  std::string Error(const ApiError& error) override { return ErrorJson(error); }
  std::string_view call_id_prefix() const override { return "call_"; }

 private:
  // What a choice has so far, as JSON, so that an event is a copy of it.
  struct Progress {
    std::string text;  // between the quotes
    std::string ids;   // between the brackets
    size_t num_tokens = 0;
    size_t due_at = 1;  // tokens at which the next event is sent
    ChoiceEnd end;
    bool is_ended = false;
  };
  static void Add(std::string_view text, const std::vector<int32_t>& ids, Progress& choice);
  // `index`: prompt index * num_choices + k.
  std::string ObjectJson(size_t index, const Progress& choice) const;
  std::string EventOf(size_t index) const;
  bool shows_index() const { return request_.is_list || request_.num_choices > 1; }

  const Request request_;
  const Clock& clock_;
  std::vector<int64_t> cached_tokens_;  // by prompt
  std::vector<Progress> choices_;
};

}  // namespace baton::router
