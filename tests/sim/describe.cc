#include "tests/sim/describe.h"

#include "absl/strings/str_format.h"

namespace baton::sim {
namespace {

std::string Short(const TransferId& transfer) { return transfer.Hex().substr(0, 6); }

}  // namespace

std::string Describe(const wire::RouterMessage& message) {
  std::string text;
  for (const auto& item : message.cancels)
    text += absl::StrFormat(" Cancel(%s %s)", Short(item.transfer), item.reason);
  for (const auto& item : message.reserves)
    text += absl::StrFormat(" Reserve(%s %s received %d)", Short(item.transfer), item.request_id,
                            item.sequences[0].received.size());
  for (const auto& item : message.retargets)
    text += absl::StrFormat(" Retarget(%s attempt %d)", Short(item.transfer), item.attempt);
  for (const auto& item : message.runs)
    text += absl::StrFormat(" Run(%s %s attempt %d)", Short(item.transfer), item.request_id,
                            item.attempt);
  for (const auto& item : message.prompt_chunks)
    text += absl::StrFormat(" PromptChunk(%s %d+%d)", Short(item.transfer), item.offset,
                            item.tokens.size());
  for (const auto& item : message.moves)
    text += absl::StrFormat(" Move(%d%s)", item.handle.value, item.landing ? " landing" : "");
  return text;
}

std::string Describe(const wire::WorkerMessage& message) {
  std::string text;
  for (const auto& item : message.reserved)
    text += absl::StrFormat(" Reserved(%s)", Short(item.transfer));
  for (const auto& item : message.refused)
    text += absl::StrFormat(" Refused(%s %s)", Short(item.transfer), item.message);
  for (const auto& item : message.retargeted)
    text += absl::StrFormat(" Retargeted(%s attempt %d)", Short(item.transfer), item.attempt);
  for (const auto& item : message.first_tokens)
    text += absl::StrFormat(" FirstToken(%s attempt %d)", Short(item.transfer), item.attempt);
  for (const auto& item : message.progress)
    text += absl::StrFormat(" Progress(%s attempt %d: %d tokens %d acked)", Short(item.transfer),
                            item.attempt, item.computed_tokens, item.acked_blocks);
  for (const auto& item : message.prefilled)
    text += absl::StrFormat(" Prefilled(%s attempt %d)", Short(item.transfer), item.attempt);
  for (const auto& item : message.landed)
    text += absl::StrFormat(" Landed(%s attempt %d)", Short(item.transfer), item.attempt);
  if (message.tokens)
    for (const auto& item : message.tokens->sequences)
      text += absl::StrFormat(" Tokens(handle %d: %d+%d)", item.handle.value, item.first_position,
                              item.tokens.size());
  for (const auto& item : message.finished)
    text += absl::StrFormat(" Finished(handle %d)", item.handle.value);
  for (const auto& item : message.failed)
    text += absl::StrFormat(" Failed(%s %s)", Short(item.transfer), item.message);
  for (const SequenceHandle handle : message.parked)
    text += absl::StrFormat(" Parked(handle %d)", handle.value);
  for (const SequenceHandle handle : message.resumed)
    text += absl::StrFormat(" Resumed(handle %d)", handle.value);
  return text;
}

}  // namespace baton::sim
