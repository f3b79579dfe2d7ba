#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "router/openai/answer_writer.h"
#include "router/openai/responses_request.h"

namespace baton::router {

// Answers of /v1/responses, whole and streamed (protocol.md 5.8). One per request; see AnswerWriter
// for threads.
class ResponsesWriter final : public AnswerWriter {
 public:
  // `head.id` without "resp_". `sealer` outlives it.
  ResponsesWriter(AnswerHead head, ResponsesEcho echo, const TextSealer& sealer)
      : head_(std::move(head)), echo_(std::move(echo)), sealer_(sealer) {}

  std::string Accepted(int64_t prompt_tokens) override;
  std::string Chunk(const ChunkText& chunk) override;
  std::string PromptEnd(size_t, int64_t) override { return ""; }
  std::string End(const UsageCounts& usage) override;
  std::string Ping() override { return ": ping\n\n"; }
  std::string Inexact() override { return std::string(kInexactComment); }
  std::string StreamError(const ApiError& error) override;
  std::string Whole(const std::vector<ChoiceText>& choices, const UsageCounts& usage) override;
  int Status(const ApiError& error) override { return error.http_status; }
  std::string Error(const ApiError& error) override { return ErrorJson(error); }
  std::string_view call_id_prefix() const override { return "call_"; }

 private:
  enum class Kind : uint8_t { kNone, kReasoning, kMessage, kCall };
  // An output item: the one that a stream has open, or one of a whole answer.
  struct Item {
    Kind kind = Kind::kNone;
    std::string id;
    std::string text;  // of a call: its arguments
    std::string call_id, name;
  };
  Item NewItem(Kind kind, const CallText& call) const;
  std::string ItemJson(const Item& item, std::string_view status) const;
  std::string ResponseJson(std::string_view status, const std::string& output,
                           std::string_view usage, std::string_view error = "null") const;
  // Each appends its events, which are numbered in this order.
  void Event(std::string_view type, std::string_view members, std::string& out);
  void TextDelta(Kind kind, std::string_view text, std::string& out);
  void CallDelta(const CallText& call, std::string& out);
  void Open(Item item, std::string& out);
  void Close(bool is_complete, std::string& out);
  bool is_incomplete() const {
    return end_.finish_reason == "length" || end_.finish_reason == "abort";
  }

  const AnswerHead head_;
  const ResponsesEcho echo_;
  const TextSealer& sealer_;
  int64_t sequence_number_ = 0;
  int num_items_ = 0;  // opened in a stream
  Item open_;
  std::string output_;  // JSON of the closed items
  ChoiceEnd end_;
};

}  // namespace baton::router
