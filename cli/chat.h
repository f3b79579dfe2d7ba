#pragma once

#include <optional>
#include <string>

namespace baton::cli {

struct ChatSettings {
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;
  std::string model;   // empty: the server's first
  std::string system;  // empty: no system message
  bool is_thinking = true;
  std::optional<double> temperature;
  std::optional<int> max_tokens;
  std::string
      message;  // asked once; empty: a conversation, or standard input when that is no terminal
};

// Talks to a router; reasoning is dimmed. Exit code: 0, or 1 when a request failed.
int RunChat(const ChatSettings& settings);

}  // namespace baton::cli
