#pragma once

#include <string>
#include <vector>

#include "absl/time/time.h"

#include "router/openai/call_replay.h"
#include "router/openai/chat_messages.h"

namespace baton::router {

// What the API side is told at start.
struct ApiConfig {
  std::vector<std::string> served_model_names = {"baton"};  // the first one is shown
  std::string model_path;                                   // `root` of /v1/models
  int max_context = 0;             // tokens; the model's, or a lower limit of ours
  int64_t default_max_tokens = 0;  // caps an answer whose request names no limit; 0: the context
  absl::Duration request_deadline = absl::Seconds(600);  // arrival to first token
  absl::Duration ping_interval = absl::Seconds(15);      // SSE comments while nothing is sent
  size_t offload_bytes = 64 << 10;  // larger bodies are parsed and tokenized off the I/O threads
  // Whether a thinking budget ends the reasoning (protocol.md 4). Off: it is accepted and ignored;
  // the model was not trained for it, and some clients always send one.
  bool honours_thinking_budget = false;
  size_t run_cache_bytes = 256 << 20;  // ids of texts that may come again
  CallReplay::Limits replay;           // of sampled tool calls kept for the next turn
  std::string reasoning_secret{};      // seals /v1/responses' encrypted_content; empty: drawn
  ChatDefaults chat;
};

}  // namespace baton::router
