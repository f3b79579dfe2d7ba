#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/rng.h"

// What a benchmark sends and when. Pure; any thread.
namespace baton::cli {

enum class BenchApi : uint8_t { kChat, kCompletions };

struct LoadOptions {
  BenchApi api = BenchApi::kChat;
  std::string model;
  int num_prompts = 100;
  int input_length = 128;    // of random prompts: words of a chat, ids of a completion
  double range_ratio = 1.0;  // lengths are uniform in [ratio * length, length]
  int max_token_id = 1000;   // random ids are below it
  int output_length = 128;   // max_tokens, where the file does not say
  bool ignores_eos = false;  // so that outputs have that very length
  std::optional<double> temperature = 0.0;
  std::string extra_body;  // a JSON object, merged into every body
  double rate = 0;         // requests/s of a Poisson process; 0: all at once
};

struct PlannedRequest {
  std::string body;
  absl::Duration at;  // since the start
};

// The prompts of a file, as JSON texts of `messages` or `prompt`. JSON Lines of {"prompt": TEXT} or
// {"messages": [...]}, either with "max_tokens"; or ShareGPT's list of {"conversations": [{"value":
// TEXT}, ...]}, of which the first turn is asked. Errors name the line or the item.
struct FilePrompt {
  std::string messages, prompt;  // JSON; one is empty
  std::optional<int64_t> max_tokens;
};
absl::StatusOr<std::vector<FilePrompt>> ReadPrompts(std::string_view text);

// Without `prompts`: random ones. Fewer prompts than requests are used again in turn.
absl::StatusOr<std::vector<PlannedRequest>> PlanLoad(const LoadOptions& options,
                                                     const std::vector<FilePrompt>& prompts,
                                                     Rng& rng);

}  // namespace baton::cli
