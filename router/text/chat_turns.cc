#include "router/text/chat_turns.h"

#include <algorithm>

namespace baton::router {
namespace {

// As the checkpoint's encoder: the last of several calls with an id counts, and an unknown or empty
// id as the first call.
size_t PositionOf(std::string_view call_id, const std::vector<ChatToolCall>& calls) {
  for (size_t i = calls.size(); i-- > 0 && !call_id.empty();) {
    if (calls[i].id == call_id) return i;
  }
  return 0;
}

void SortTurn(Turn& turn, const std::vector<ChatToolCall>& calls) {
  std::vector<TurnBlock> results;
  for (const TurnBlock& block : turn.blocks) {
    if (block.is_result) results.push_back(block);
  }
  std::stable_sort(results.begin(), results.end(), [&](const TurnBlock& a, const TurnBlock& b) {
    return PositionOf(a.call_id, calls) < PositionOf(b.call_id, calls);
  });
  size_t next = 0;
  for (TurnBlock& block : turn.blocks) {
    if (block.is_result) block = results[next++];
  }
}

}  // namespace

std::vector<Turn> MergeTurns(std::span<const ChatMessage> messages) {
  std::vector<Turn> turns;
  for (const ChatMessage& message : messages) {
    const bool is_result = message.role == ChatRole::kTool;
    if (!is_result && message.role != ChatRole::kUser) {
      turns.push_back(
          {.role = message.role, .message = &message, .blocks = {}, .task = message.task});
      continue;
    }
    const bool continues = !turns.empty() && turns.back().role == ChatRole::kUser &&
                           (is_result || turns.back().task.empty());
    if (!continues) turns.emplace_back();
    Turn& turn = turns.back();
    turn.blocks.push_back(
        {.is_result = is_result, .text = message.content, .call_id = message.tool_call_id});
    if (!is_result && !message.task.empty()) turn.task = message.task;
  }
  return turns;
}

void SortResults(std::vector<Turn>& turns) {
  const std::vector<ChatToolCall>* calls = nullptr;
  for (Turn& turn : turns) {
    if (turn.role == ChatRole::kAssistant && !turn.message->tool_calls.empty()) {
      calls = &turn.message->tool_calls;
    }
    if (turn.role == ChatRole::kUser && calls != nullptr) SortTurn(turn, *calls);
  }
}

size_t LastUserTurn(std::span<const Turn> turns) {
  for (size_t i = turns.size(); i > 0; --i) {
    if (turns[i - 1].is_user_side()) return i - 1;
  }
  return turns.size();
}

void DropOldDevelopers(std::vector<Turn>& turns) {
  const size_t last = LastUserTurn(turns);
  size_t index = 0;
  std::erase_if(
      turns, [&](const Turn& turn) { return index++ < last && turn.role == ChatRole::kDeveloper; });
}

bool HasTools(std::span<const Turn> turns) {
  return std::any_of(turns.begin(), turns.end(), [](const Turn& turn) {
    return turn.message != nullptr && !turn.message->tools.empty();
  });
}

}  // namespace baton::router
