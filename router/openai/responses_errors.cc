#include <charconv>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/openai/responses_request.h"

// From members of the chat back to those of /v1/responses.
namespace baton::router {
namespace {

struct Rename {
  std::string_view from, to;
};
constexpr Rename kMembers[] = {{"messages", "input"},
                               {"max_tokens", "max_output_tokens"},
                               {"max_completion_tokens", "max_output_tokens"},
                               {"reasoning_effort", "reasoning.effort"},
                               {"response_format.json_schema", "text.format"},
                               {"response_format", "text.format"},
                               {"tool_choice.function", "tool_choice"}};
constexpr Rename kCallMembers[] = {
    {".function.arguments", ".arguments"}, {".function.name", ".name"}, {".id", ".call_id"}};

// Takes "NAME[index]" off the front; false: it does not stand there.
bool TakeIndexed(std::string_view name, std::string_view& path, size_t& index) {
  if (!path.starts_with(name) || path.substr(name.size()).substr(0, 1) != "[") return false;
  const char* const from = path.data() + name.size() + 1;
  const char* const end = path.data() + path.size();
  const auto [stop, error] = std::from_chars(from, end, index);
  if (error != std::errc() || stop == end || *stop != ']') return false;
  path.remove_prefix(static_cast<size_t>(stop + 1 - path.data()));
  return true;
}

std::string CallPath(const std::string& item, std::string_view rest) {
  for (const auto& [from, to] : kCallMembers)
    if (rest == from) return item + std::string(to);
  return item;
}

std::string MessagePath(const ResponsesSource& source, std::string_view rest) {
  size_t call = 0;
  if (TakeIndexed(".tool_calls", rest, call))
    return call < source.calls.size() ? CallPath(source.calls[call], rest) : source.item;
  const bool is_item = source.item.starts_with("input[");
  if (!is_item) return source.item;  // a plain text
  if (rest == ".tool_call_id") return source.item + ".call_id";
  if (rest == ".role" || rest.starts_with(".content")) return source.item + std::string(rest);
  return source.item;
}

// Whether `path` is `name` or a member of it.
bool IsWithin(std::string_view path, std::string_view name) {
  return path.starts_with(name) && (path.size() == name.size() || path[name.size()] == '.');
}

std::string OwnPath(std::string_view path, const std::vector<ResponsesSource>& sources) {
  std::string_view rest = path;
  size_t index = 0;
  if (TakeIndexed("messages", rest, index))
    return index < sources.size() ? MessagePath(sources[index], rest) : "input";
  rest = path;
  if (TakeIndexed("tools", rest, index)) {
    if (IsWithin(rest, ".function")) rest.remove_prefix(std::string_view(".function").size());
    return absl::StrFormat("tools[%d]%s", index, rest);
  }
  for (const auto& [from, to] : kMembers)
    if (IsWithin(path, from)) return std::string(to) + std::string(path.substr(from.size()));
  return std::string(path);
}

}  // namespace

ApiError InOwnNames(ApiError error, const std::vector<ResponsesSource>& sources) {
  const std::string own = OwnPath(error.param, sources);
  if (!error.param.empty() && error.message.starts_with(error.param))
    error.message = own + error.message.substr(error.param.size());
  error.param = own;
  return error;
}

}  // namespace baton::router
