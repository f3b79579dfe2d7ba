#include "cli/bench_load.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/strings/str_format.h"
#include <nlohmann/json.hpp>

#include "common/status.h"

namespace baton::cli {
namespace {

using nlohmann::json;

constexpr size_t kMaxPrompts = 1'000'000;
// Short words, most of them one token in the vocabularies in use.
constexpr const char* kWords[] = {"time", "year",  "people", "way",   "day",   "man",   "thing",
                                  "life", "world", "house",  "water", "work",  "city",  "hand",
                                  "part", "place", "case",   "week",  "point", "night", "book"};

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::Status Wrong(const std::string& where, const char* what) {
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s", where, what));
}

absl::StatusOr<FilePrompt> ReadLine(const json& item, const std::string& where) {
  if (!item.is_object()) return Wrong(where, "want a JSON object");
  FilePrompt out;
  if (item.contains("messages")) {
    if (!item["messages"].is_array() || item["messages"].empty())
      return Wrong(where, "messages must be a list with at least one message");
    out.messages = Dump(item["messages"]);
  } else if (item.contains("prompt") && item["prompt"].is_string()) {
    out.prompt = Dump(item["prompt"]);
  } else {
    return Wrong(where, "want messages, or prompt as a text");
  }
  if (!item.contains("max_tokens") || item["max_tokens"].is_null()) return out;
  const json& limit = item["max_tokens"];
  const bool is_fine = limit.is_number_integer() && limit >= 1 && limit <= int64_t{1} << 31;
  if (!is_fine) return Wrong(where, "max_tokens must be an integer, 1 or more");
  out.max_tokens = limit.get<int64_t>();
  return out;
}

absl::StatusOr<FilePrompt> ReadConversation(const json& item, const std::string& where) {
  if (!item.is_object() || !item.contains("conversations"))
    return Wrong(where, "want conversations");
  const json& turns = item["conversations"];
  const bool is_fine = turns.is_array() && !turns.empty() && turns[0].is_object() &&
                       turns[0].contains("value") && turns[0]["value"].is_string();
  if (!is_fine) return Wrong(where, "conversations must begin with a turn that has a value");
  return FilePrompt{.messages = {}, .prompt = Dump(turns[0]["value"]), .max_tokens = {}};
}

absl::StatusOr<std::vector<FilePrompt>> ReadList(const json& list) {
  std::vector<FilePrompt> out;
  for (size_t i = 0; i < list.size() && i < kMaxPrompts; ++i) {
    ASSIGN_OR_RETURN(FilePrompt prompt, ReadConversation(list[i], absl::StrFormat("item %d", i)));
    out.push_back(std::move(prompt));
  }
  return out;
}

absl::StatusOr<std::vector<FilePrompt>> ReadLines(std::string_view text) {
  std::vector<FilePrompt> out;
  size_t number = 0;
  for (size_t begin = 0; begin < text.size() && out.size() < kMaxPrompts;) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = absl::StrFormat("line %d", number);
    const json item = json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (item.is_discarded()) return Wrong(where, "no JSON");
    ASSIGN_OR_RETURN(FilePrompt prompt, ReadLine(item, where));
    out.push_back(std::move(prompt));
  }
  return out;
}

size_t DrawLength(const LoadOptions& options, Rng& rng) {
  const auto most = static_cast<uint64_t>(options.input_length);
  const auto least = std::max<uint64_t>(
      1, static_cast<uint64_t>(std::floor(options.range_ratio * options.input_length)));
  return least + rng.Below(most - least + 1);
}

json RandomPrompt(const LoadOptions& options, Rng& rng) {
  const size_t length = DrawLength(options, rng);
  if (options.api == BenchApi::kCompletions) {
    json ids = json::array();
    for (size_t i = 0; i < length; ++i)
      ids.push_back(rng.Below(static_cast<uint64_t>(options.max_token_id)));
    return ids;
  }
  std::string text;
  for (size_t i = 0; i < length; ++i)
    text += std::string(i == 0 ? "" : " ") + kWords[rng.Below(std::size(kWords))];
  return text;
}

json Messages(const json& text) {
  return json::array({json::object({{"role", "user"}, {"content", text}})});
}

// The members that hold the prompt.
absl::Status SetPrompt(const LoadOptions& options, const FilePrompt& from, json& body) {
  if (!from.messages.empty()) {
    if (options.api != BenchApi::kChat)
      return absl::InvalidArgumentError("the file has messages: use --api chat");
    body["messages"] = json::parse(from.messages);
    return absl::OkStatus();
  }
  const json prompt = json::parse(from.prompt);
  if (options.api == BenchApi::kChat) {
    body["messages"] = Messages(prompt);
  } else {
    body["prompt"] = prompt;
  }
  return absl::OkStatus();
}

json CommonMembers(const LoadOptions& options) {
  json body = {
      {"model", options.model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  if (options.temperature) body["temperature"] = *options.temperature;
  if (options.ignores_eos) body["ignore_eos"] = true;
  return body;
}

}  // namespace

absl::StatusOr<std::vector<FilePrompt>> ReadPrompts(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return absl::InvalidArgumentError("it has no prompts");
  if (text[first] != '[') return ReadLines(text);
  const json list = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!list.is_array()) return absl::InvalidArgumentError("it begins with '[' but is no JSON list");
  if (list.empty()) return absl::InvalidArgumentError("it has no prompts");
  return ReadList(list);
}

absl::StatusOr<std::vector<PlannedRequest>> PlanLoad(const LoadOptions& options,
                                                     const std::vector<FilePrompt>& prompts,
                                                     Rng& rng) {
  const json extra = options.extra_body.empty()
                         ? json::object()
                         : json::parse(options.extra_body, nullptr, /*allow_exceptions=*/false);
  if (!extra.is_object())
    return absl::InvalidArgumentError(
        absl::StrFormat("--extra-body is no JSON object: %s", options.extra_body));
  std::vector<PlannedRequest> out;
  absl::Duration at;
  for (int i = 0; i < options.num_prompts; ++i) {
    json body = CommonMembers(options);
    int64_t max_tokens = options.output_length;
    if (prompts.empty()) {
      const json prompt = RandomPrompt(options, rng);
      if (options.api == BenchApi::kChat) {
        body["messages"] = Messages(prompt);
      } else {
        body["prompt"] = prompt;
      }
    } else {
      const FilePrompt& from = prompts[static_cast<size_t>(i) % prompts.size()];
      RETURN_IF_ERROR(SetPrompt(options, from, body));
      max_tokens = from.max_tokens.value_or(max_tokens);
    }
    body["max_tokens"] = max_tokens;
    body.update(extra);
    out.push_back({.body = Dump(body), .at = at});
    // The gaps of a Poisson process are exponential.
    if (options.rate > 0) at += absl::Seconds(-std::log1p(-rng.Uniform()) / options.rate);
  }
  return out;
}

}  // namespace baton::cli
