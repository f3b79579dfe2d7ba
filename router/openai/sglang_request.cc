#include "router/openai/sglang_request.h"

#include <algorithm>
#include <optional>
#include <string_view>

#include "absl/strings/str_format.h"

#include "router/openai/generate_params.h"

namespace baton::router {
namespace {

struct Rename {
  std::string_view sampling, completion;
};
// Members of `sampling_params`; others are ignored.
constexpr Rename kSampling[] = {
    {"max_new_tokens", "max_tokens"},
    {"min_new_tokens", "min_tokens"},
    {"sampling_seed", "seed"},
    {"temperature", "temperature"},
    {"top_p", "top_p"},
    {"top_k", "top_k"},
    {"min_p", "min_p"},
    {"frequency_penalty", "frequency_penalty"},
    {"presence_penalty", "presence_penalty"},
    {"repetition_penalty", "repetition_penalty"},
    {"n", "n"},
    {"stop", "stop"},
    {"stop_token_ids", "stop_token_ids"},
    {"ignore_eos", "ignore_eos"},
    {"skip_special_tokens", "skip_special_tokens"},
    {"no_stop_trim", "no_stop_trim"},
    {"logit_bias", "logit_bias"},
    {"json_schema", "json_schema"},
    {"regex", "regex"},
    {"ebnf", "ebnf"},
};
constexpr int kDefaultNewTokens = 128;  // SGLang's

using MaybeError = std::optional<ApiError>;

ApiError NotServed(const std::string& path) { return BadRequest(path + " is not supported", path); }

MaybeError RefuseUnserved(const JsonValue& body) {
  for (const std::string_view key : {"input_embeds", "image_data", "video_data", "audio_data"})
    if (body.FindNonNull(key) != nullptr) return NotServed(std::string(key));
  for (const std::string_view key : {"return_logprob", "return_hidden_states"}) {
    const ApiResult<bool> flag = BoolMemberOr(body, key, false);
    if (!flag.ok()) return flag.error();
    if (*flag) return NotServed(std::string(key));
  }
  return std::nullopt;
}

MaybeError FindPrompt(const JsonValue& body, TranslatedGenerate& out) {
  const JsonValue* text = body.FindNonNull("text");
  const JsonValue* ids = body.FindNonNull("input_ids");
  if (text != nullptr && ids != nullptr)
    return BadRequest("text and input_ids cannot be used together", "input_ids");
  if (text == nullptr && ids == nullptr)
    return BadRequest("text: expected string or array of strings, got nothing", "text");
  out.prompt = text != nullptr ? text : ids;
  out.prompt_name = text != nullptr ? "text" : "input_ids";
  const auto& items = out.prompt->items();
  if (text != nullptr) {
    out.is_list = text->is_array();
    const bool is_fine = out.is_list
                             ? std::all_of(items.begin(), items.end(),
                                           [](const JsonValue& item) { return item.is_string(); })
                             : text->is_string();
    if (!is_fine) return WrongType("text", "string or array of strings", *text);
  } else {
    out.is_list = !items.empty() && items[0].is_array();
    const bool is_fine =
        ids->is_array() &&
        (!out.is_list || std::all_of(items.begin(), items.end(),
                                     [](const JsonValue& item) { return item.is_array(); }));
    if (!is_fine) return WrongType("input_ids", "array of integers, or of such arrays", *ids);
  }
  if (items.empty() && out.prompt->is_array())
    return BadRequest(out.prompt_name + " must not be empty", out.prompt_name);
  return std::nullopt;
}

MaybeError TranslateSampling(const JsonValue& params, std::string& out) {
  for (const std::string_view name : {"stop_regex", "structural_tag"})
    if (params.FindNonNull(name) != nullptr)
      return NotServed(absl::StrFormat("sampling_params.%s", name));
  for (const auto& [sampling, completion] : kSampling) {
    const JsonValue* value = params.FindNonNull(sampling);
    if (value != nullptr) absl::StrAppendFormat(&out, ",\"%s\":%s", completion, value->Dump());
  }
  return std::nullopt;
}

// Whether `path` is `name` or a member of it.
bool IsWithin(std::string_view path, std::string_view name) {
  return path.starts_with(name) && (path.size() == name.size() || path[name.size()] == '.');
}

std::string OwnPath(std::string_view path, const std::string& prompt_name) {
  if (path == "prompt") return prompt_name;
  for (const auto& [sampling, completion] : kSampling)
    if (IsWithin(path, completion))
      return absl::StrFormat("sampling_params.%s%s", sampling, path.substr(completion.size()));
  return std::string(path);
}

}  // namespace

ApiResult<TranslatedGenerate> TranslateGenerate(const JsonValue& body) {
  TranslatedGenerate out;
  if (auto error = RefuseUnserved(body)) return *error;
  if (auto error = FindPrompt(body, out)) return *error;
  const ApiResult<bool> is_stream = BoolMemberOr(body, "stream", false);
  if (!is_stream.ok()) return is_stream.error();
  const ApiResult<int64_t> priority = IntMember(body, "priority", 0);
  if (!priority.ok()) return priority.error();
  std::string members;
  const JsonValue* params = body.FindNonNull("sampling_params");
  if (params != nullptr) {
    if (!params->is_object()) return WrongType("sampling_params", "object", *params);
    if (auto error = TranslateSampling(*params, members)) return *error;
  }
  const bool has_length = params != nullptr && params->FindNonNull("max_new_tokens") != nullptr;
  if (!has_length) absl::StrAppendFormat(&members, ",\"max_tokens\":%d", kDefaultNewTokens);
  out.completion = absl::StrFormat("{\"stream\":%s,\"priority\":%d%s}",
                                   *is_stream ? "true" : "false", *priority, members);
  return out;
}

ApiError InGenerateNames(ApiError error, const std::string& prompt_name) {
  const std::string own = OwnPath(error.param, prompt_name);
  if (!error.param.empty() && error.message.starts_with(error.param))
    error.message = own + error.message.substr(error.param.size());
  error.param = own;
  return error;
}

}  // namespace baton::router
