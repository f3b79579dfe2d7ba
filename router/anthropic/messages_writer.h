#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "router/openai/answer_writer.h"

namespace baton::router {

// Answers in Anthropic's form, whole and streamed (protocol.md 6.3, 6.4). One per request; see
// AnswerWriter for threads.
class MessagesWriter final : public AnswerWriter {
 public:
  // `id` without "msg_".
  MessagesWriter(std::string id, std::string model)
      : id_(std::move(id)), model_(std::move(model)) {}

  std::string Accepted(int64_t prompt_tokens) override;
  std::string Chunk(const ChunkText& chunk) override;
  std::string PromptEnd(size_t, int64_t) override { return ""; }
  std::string End(const UsageCounts& usage) override;
  std::string Ping() override;
  std::string Inexact() override { return std::string(kInexactComment); }
  std::string StreamError(const ApiError& error) override;
  std::string Whole(const std::vector<ChoiceText>& choices, const UsageCounts& usage) override;
  int Status(const ApiError& error) override;
  std::string Error(const ApiError& error) override;
  std::string_view call_id_prefix() const override { return "toolu_"; }

 private:
  enum class Block : uint8_t { kNone, kThinking, kText, kCall };
  std::string Open(Block block, std::string_view content_block);
  std::string Close();
  std::string TextDelta(Block block, std::string_view text);
  std::string CallDelta(const CallText& call);
  std::string MessageJson(std::string_view blocks, const ChoiceEnd* end,
                          std::string_view usage) const;

  const std::string id_;
  const std::string model_;
  Block block_ = Block::kNone;  // that is open
  int index_ = -1;              // of the last one opened
  ChoiceEnd end_;
};

}  // namespace baton::router
