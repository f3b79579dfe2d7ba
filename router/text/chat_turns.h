#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "router/text/chat_encoder.h"

namespace baton::router {

// A part of a user turn: text, or a tool's result.
struct TurnBlock {
  bool is_result = false;
  std::string_view text;
  std::string_view call_id;  // of a result
};

// What the encoder renders as one unit: a message, or a run of user and tool messages merged into
// one user turn. Points into the messages, which outlive it.
struct Turn {
  ChatRole role = ChatRole::kUser;
  const ChatMessage* message = nullptr;  // null for a user turn
  std::vector<TurnBlock> blocks;         // of a user turn
  std::string_view task;                 // empty: none
  bool is_user_side() const { return role == ChatRole::kUser || role == ChatRole::kDeveloper; }
};

// Merging of protocol.md 2.1: tool messages become result blocks, user messages text blocks.
std::vector<Turn> MergeTurns(std::span<const ChatMessage> messages);

// Sorting of protocol.md 2.1: the result blocks of a turn in the order of the calls they answer.
void SortResults(std::vector<Turn>& turns);

// Index of the last user or developer turn, or turns.size() when there is none.
size_t LastUserTurn(std::span<const Turn> turns);

// The filter of protocol.md 2.2, apart from the reasoning, which rendering leaves out: developer
// turns before the last user or developer turn go.
void DropOldDevelopers(std::vector<Turn>& turns);

// Whether any turn has tools, which switches dropping off (protocol.md 2.2).
bool HasTools(std::span<const Turn> turns);

}  // namespace baton::router
