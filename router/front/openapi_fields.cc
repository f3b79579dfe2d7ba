#include <array>

#include "router/front/openapi.h"

// The tables behind the schemas of /openapi.json (protocol.md 5.4, 5.6, 5.9, 6.1).
namespace baton::router {
namespace {

constexpr std::string_view kBoolFalse = R"("type":"boolean","default":false)";
constexpr std::string_view kBoolTrue = R"("type":"boolean","default":true)";
constexpr std::string_view kAny = "";
constexpr std::string_view kIds = R"("type":"array","items":{"type":"integer","minimum":0})";
constexpr std::string_view kSchema = R"("anyOf":[{"type":"object"},{"type":"string"}])";
constexpr std::string_view kPattern = R"("type":"string","minLength":1)";
constexpr std::string_view kPenalty = R"("type":"number","minimum":-2,"maximum":2,"default":0)";
constexpr std::string_view kRefusal = "Not served: 400.";
constexpr std::string_view kIgnored = "Accepted and ignored.";

// Of chats and of text completions.
constexpr Field kCommon[] = {
    {"model", R"("type":"string")", "A served name; absent, empty and default: the first one."},
    {"temperature", R"("type":"number","minimum":0,"default":1)", "Below 1e-5: greedy."},
    {"top_p", R"("type":"number","exclusiveMinimum":0,"maximum":1,"default":1)", "Nucleus."},
    {"top_k", R"("type":"integer","minimum":-1,"default":0)", "0 and -1: off."},
    {"min_p", R"("type":"number","minimum":0,"maximum":1,"default":0)",
     "Least share of the best token's probability."},
    {"repetition_penalty", R"("type":"number","exclusiveMinimum":0,"default":1)",
     "Counts prompt and output tokens."},
    {"presence_penalty", kPenalty, "Counts output tokens."},
    {"frequency_penalty", kPenalty, "Counts output tokens."},
    {"seed", R"("type":"integer","format":"int64")",
     "Same seed, same request, same build: same output."},
    {"n", R"("type":"integer","minimum":1,"maximum":128,"default":1)", "Choices per prompt."},
    {"stop",
     R"("anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"},)"
     R"("maxItems":16}])",
     "The output ends in front of the first of them."},
    {"stop_token_ids", kIds, "The output ends with the first of them."},
    {"ignore_eos", kBoolFalse, "The end-of-sentence token does not end the output."},
    {"include_stop_str_in_output", kBoolFalse, "Keep the matched stop string."},
    {"no_stop_trim", kBoolFalse, "As include_stop_str_in_output."},
    {"skip_special_tokens", kBoolTrue, "Leave special tokens out of the text."},
    {"max_tokens", R"("type":"integer","minimum":0)", "Of the answer; 0 only to score a prompt."},
    {"min_tokens", R"("type":"integer","minimum":0,"default":0)", "Bans the end until reached."},
    {"logit_bias", R"("type":"object","additionalProperties":{"type":"number"})",
     "Token id to what is added to its logit, -100 to 100."},
    {"allowed_token_ids", kIds, "Only these are sampled."},
    {"bad_words", R"("type":"array","items":{"type":"string"},"maxItems":256)", "Never sampled."},
    {"prompt_logprobs", R"("type":"integer","minimum":0,"maximum":20)",
     "Best entries per prompt token; not with stream."},
    {"stream", kBoolFalse, "Server-sent events, then [DONE]."},
    {"stream_options",
     R"("type":"object","properties":{"include_usage":{"type":"boolean"},)"
     R"("continuous_usage_stats":{"type":"boolean"},)"
     R"("include_stage_times":{"type":"boolean"}})",
     "Only with stream."},
    {"return_token_ids", kBoolFalse, "Adds token_ids to each choice."},
    {"return_tokens_as_token_ids", kBoolFalse, "Token strings become token_id:N."},
    {"priority", R"("type":"integer","format":"int64","default":0)", "Lower first."},
    {"cache_salt", R"("type":"string","minLength":1,"maxLength":1024)",
     "Prompts share cached prefixes within one salt."},
    {"request_id", R"("type":"string","pattern":"^[A-Za-z0-9._:-]{1,128}$")",
     "Where the header x-request-id says none.", FieldUse::kIgnored},
    {"rid", R"("type":"string","pattern":"^[A-Za-z0-9._:-]{1,128}$")", "As request_id.",
     FieldUse::kIgnored},
    {"use_beam_search", kBoolFalse, "True: 400."},
    {"separate_reasoning", kBoolTrue, "False: the reasoning is part of the content."},
    {"include_reasoning", kBoolTrue, "False: the reasoning is left out."},
    {"stream_reasoning", kBoolTrue, "False: the reasoning comes in one piece."},
    {"structured_outputs",
     R"("type":"object","properties":{"json":{"anyOf":[{"type":"object"},{"type":"string"}]},)"
     R"("regex":{"type":"string"},"choice":{"type":"array","items":{"type":"string"}},)"
     R"("grammar":{"type":"string"},"json_object":{"const":true}})",
     "One of its members: what the answer must be."},
    {"guided_json", kSchema, "A JSON schema for the answer."},
    {"guided_regex", kPattern, "A regular expression for the whole answer."},
    {"guided_choice", R"("type":"array","minItems":1,"items":{"type":"string","minLength":1})",
     "The answers to choose from."},
    {"guided_grammar", R"("type":"string")", "A grammar for the answer: Lark, or EBNF with ::=."},
    {"json_schema", kSchema, "As guided_json."},
    {"regex", kPattern, "As guided_regex."},
    {"ebnf", R"("type":"string")", "As guided_grammar."},
    {"truncate_prompt_tokens", R"("type":"integer","minimum":-1)",
     "Prompt tokens to keep, the last ones; -1: what fits."},
    {"user", kAny, kIgnored, FieldUse::kIgnored},
    {"metadata", kAny, kIgnored, FieldUse::kIgnored},
    {"store", kAny, kIgnored, FieldUse::kIgnored},
    {"service_tier", kAny, kIgnored, FieldUse::kIgnored},
};

// What makes a prompt of messages; of chats and of /tokenize.
constexpr Field kPrompt[] = {
    {"messages", R"("type":"array","minItems":1,"items":{"$ref":"#/components/schemas/Message"})",
     "The conversation.", FieldUse::kRead, true},
    {"tools", R"("type":"array","minItems":1,"items":{"$ref":"#/components/schemas/Tool"})",
     "Functions that the model may call."},
    {"response_format", R"("$ref":"#/components/schemas/ResponseFormat")",
     "The form of the answer."},
    {"task", R"("enum":["action","query","authority","domain","title","read_url"])",
     "One of the model's internal tasks."},
    {"thinking",
     R"("anyOf":[{"type":"boolean"},{"type":"object","properties":{"type":)"
     R"({"enum":["enabled","disabled","adaptive"]}}}])",
     "Whether the model thinks first."},
    {"reasoning_effort", R"("enum":["none","minimal","low","medium","high","xhigh","max","ultra"])",
     "How long it thinks; none: not at all."},
    {"chat_template_kwargs",
     R"("type":"object","properties":{"thinking":{"type":"boolean"},"enable_thinking":)"
     R"({"type":"boolean"},"drop_thinking":{"type":"boolean"},)"
     R"("reasoning_effort":{"type":"string"}})",
     "The same as vLLM's clients say it."},
    {"continue_final_message", kBoolFalse, "Go on with the last assistant message."},
    {"add_generation_prompt", kBoolTrue, "False: the prompt ends with the last message."},
    {"chat_template", kAny, kRefusal, FieldUse::kRefused},
};

constexpr Field kChat[] = {
    {"max_completion_tokens", R"("type":"integer","minimum":1)", "Wins over max_tokens."},
    {"logprobs", kBoolFalse, "Log probabilities of the output's tokens."},
    {"top_logprobs", R"("type":"integer","minimum":0,"maximum":20,"default":0)",
     "Best entries per token."},
    {"tool_choice",
     R"("anyOf":[{"enum":["none","auto","required"]},{"type":"object","properties":{"type":)"
     R"({"const":"function"},"function":{"type":"object","properties":{"name":{"type":"string"}},)"
     R"("required":["name"]}},"required":["function"]}])",
     "Whether, or which, function is called."},
    {"parallel_tool_calls", kBoolTrue, "False: one call at most."},
    {"prompt_token_ids", kIds, "The prompt, in place of messages."},
    {"echo", kBoolFalse, "The continued message's text first."},
    {"thinking_token_budget", R"("type":"integer","minimum":0)",
     "Reasoning tokens at most, where the server honours it."},
};

constexpr Field kText[] = {
    {"response_format", R"("$ref":"#/components/schemas/ResponseFormat")",
     "The form of the answer."},
    {"prompt",
     R"("anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}},)"
     R"({"type":"array","items":{"type":"integer"}},)"
     R"({"type":"array","items":{"type":"array","items":{"type":"integer"}}}])",
     "One prompt, or up to 256.", FieldUse::kRead, true},
    {"logprobs", R"("type":"integer","minimum":0,"maximum":20)", "Best entries per token."},
    {"echo", kBoolFalse, "The prompt's text first."},
    {"suffix", kAny, kRefusal, FieldUse::kRefused},
};

constexpr Field kTokenize[] = {
    {"prompt", R"("type":"string")", "A text, in place of messages."},
    {"return_token_strs", kBoolFalse, "Each token's text too."},
    {"model", kAny, kIgnored, FieldUse::kIgnored},
    {"add_special_tokens", kAny, kIgnored, FieldUse::kIgnored},
};

constexpr Field kDetokenize[] = {
    {"tokens", kIds, "Token ids.", FieldUse::kRead, true},
    {"skip_special_tokens", kBoolFalse, "Leave special tokens out."},
    {"model", kAny, kIgnored, FieldUse::kIgnored},
};

constexpr Field kMessages[] = {
    {"model", R"("type":"string")", "A served name; absent, empty and default: the first one."},
    {"messages",
     R"("type":"array","minItems":1,"items":{"$ref":"#/components/schemas/AnthropicMessage"})",
     "The conversation; a last one of the assistant is continued.", FieldUse::kRead, true},
    {"max_tokens", R"("type":"integer","minimum":1)",
     "Of the answer; cut to what the context leaves. Not needed to count tokens."},
    {"system",
     R"("anyOf":[{"type":"string"},{"type":"array","items":)"
     R"({"$ref":"#/components/schemas/AnthropicBlock"}}])",
     "The system prompt."},
    {"stop_sequences", R"("type":"array","items":{"type":"string"},"maxItems":16)",
     "The output ends in front of the first of them."},
    {"stream", kBoolFalse, "Server-sent events."},
    {"temperature", R"("type":"number","minimum":0,"default":1)", "Below 1e-5: greedy."},
    {"top_p", R"("type":"number","exclusiveMinimum":0,"maximum":1,"default":1)", "Nucleus."},
    {"top_k", R"("type":"integer","minimum":-1,"default":0)", "0 and -1: off."},
    {"tools", R"("type":"array","items":{"$ref":"#/components/schemas/AnthropicTool"})",
     "Tools that the model may call; server tools are left out."},
    {"tool_choice",
     R"("type":"object","properties":{"type":{"enum":["auto","any","tool","none"]},)"
     R"("name":{"type":"string"},"disable_parallel_tool_use":{"type":"boolean"}})",
     "Whether, or which, tool is called."},
    {"thinking",
     R"("type":"object","properties":{"type":{"enum":["enabled","disabled","adaptive"]},)"
     R"("budget_tokens":{"type":"integer"}})",
     "Whether the model thinks first."},
    {"output_config",
     R"("type":"object","properties":{"effort":{"type":"string"},"format":{"type":"object"}})",
     "Effort, and the form of the answer."},
    {"chat_template_kwargs", R"("type":"object")", "As of chats."},
    {"metadata", kAny, kIgnored, FieldUse::kIgnored},
    {"service_tier", kAny, kIgnored, FieldUse::kIgnored},
    {"container", kAny, kIgnored, FieldUse::kIgnored},
    {"context_management", kAny, kIgnored, FieldUse::kIgnored},
};

constexpr Field kResponses[] = {
    {"model", R"("type":"string")", "A served name; absent, empty and default: the first one."},
    {"input",
     R"("anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"object"}}])",
     "The conversation: a text, or items of the types message, function_call, "
     "function_call_output and reasoning.",
     FieldUse::kRead, true},
    {"instructions", R"("type":"string")", "The system prompt."},
    {"max_output_tokens", R"("type":"integer","minimum":1)", "Of the answer."},
    {"temperature", R"("type":"number","minimum":0,"default":1)", "Below 1e-5: greedy."},
    {"top_p", R"("type":"number","exclusiveMinimum":0,"maximum":1,"default":1)", "Nucleus."},
    {"seed", R"("type":"integer")", "The same seed gives the same output."},
    {"stream", kBoolFalse, "Server-sent events."},
    {"tools",
     R"("type":"array","items":{"type":"object","required":["type","name"],"properties":{)"
     R"("type":{"const":"function"},"name":{"type":"string"},"description":{"type":"string"},)"
     R"("parameters":{"type":"object"},"strict":{"type":"boolean"}}})",
     "Functions that the model may call."},
    {"tool_choice",
     R"("anyOf":[{"enum":["none","auto","required"]},{"type":"object","properties":{"type":)"
     R"({"const":"function"},"name":{"type":"string"}},"required":["name"]}])",
     "Whether, or which, function is called."},
    {"parallel_tool_calls", kBoolTrue, "False: one call at most."},
    {"reasoning", R"("type":"object","properties":{"effort":{"type":"string"}})",
     "How long it thinks first."},
    {"text", R"("type":"object","properties":{"format":{"type":"object"}})",
     "The form of the answer."},
    {"chat_template_kwargs", R"("type":"object")", "As of chats."},
    {"truncation", R"("const":"disabled")", "Nothing else is served."},
    {"background", kBoolFalse, "True: 400."},
    {"previous_response_id", kAny, kRefusal, FieldUse::kRefused},
    {"conversation", kAny, kRefusal, FieldUse::kRefused},
    {"prompt", kAny, kRefusal, FieldUse::kRefused},
    {"max_tool_calls", kAny, kRefusal, FieldUse::kRefused},
    {"metadata", R"("type":"object","maxProperties":16)", "Strings, repeated in the answer."},
    {"store", kAny, "Accepted; nothing is stored.", FieldUse::kIgnored},
    {"include", R"("type":"array","items":{"type":"string"})",
     "reasoning.encrypted_content seals reasoning items; other names are ignored."},
    {"service_tier", kAny, kIgnored, FieldUse::kIgnored},
    {"user", kAny, kIgnored, FieldUse::kIgnored},
};

constexpr Field kGenerate[] = {
    {"text",
     R"("anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"type":"string"}}])",
     "One prompt, or up to 256: then the answer is a list."},
    {"input_ids",
     R"("anyOf":[{"type":"array","items":{"type":"integer"}},)"
     R"({"type":"array","items":{"type":"array","items":{"type":"integer"}}}])",
     "The same as token ids."},
    {"sampling_params",
     R"("type":"object","properties":{"max_new_tokens":{"type":"integer","default":128},)"
     R"("min_new_tokens":{"type":"integer"},"temperature":{"type":"number"},)"
     R"("top_p":{"type":"number"},"top_k":{"type":"integer"},"min_p":{"type":"number"},)"
     R"("frequency_penalty":{"type":"number"},"presence_penalty":{"type":"number"},)"
     R"("repetition_penalty":{"type":"number"},"n":{"type":"integer"},)"
     R"("stop":{"anyOf":[{"type":"string"},{"type":"array","items":{"type":"string"}}]},)"
     R"("stop_token_ids":{"type":"array","items":{"type":"integer"}},)"
     R"("ignore_eos":{"type":"boolean"},"skip_special_tokens":{"type":"boolean"},)"
     R"("no_stop_trim":{"type":"boolean"},"logit_bias":{"type":"object"},)"
     R"("sampling_seed":{"type":"integer"},)"
     R"("json_schema":{"anyOf":[{"type":"object"},{"type":"string"}]},)"
     R"("regex":{"type":"string"},"ebnf":{"type":"string"}})",
     "Of all prompts; ranges as in /v1/completions."},
    {"stream", kBoolFalse, "Server-sent events with the whole text so far, then [DONE]."},
    {"priority", R"("type":"integer","format":"int64","default":0)", "Lower first."},
    {"return_logprob", kBoolFalse, "True: 400."},
    {"return_hidden_states", kBoolFalse, "True: 400."},
    {"input_embeds", kAny, kRefusal, FieldUse::kRefused},
    {"image_data", kAny, kRefusal, FieldUse::kRefused},
    {"video_data", kAny, kRefusal, FieldUse::kRefused},
    {"audio_data", kAny, kRefusal, FieldUse::kRefused},
    {"rid", R"("type":"string","pattern":"^[A-Za-z0-9._:-]{1,128}$")",
     "Where the header x-request-id says none.", FieldUse::kIgnored},
    {"logprob_start_len", kAny, kIgnored, FieldUse::kIgnored},
    {"top_logprobs_num", kAny, kIgnored, FieldUse::kIgnored},
    {"lora_path", kAny, kIgnored, FieldUse::kIgnored},
};

constexpr Field kAbort[] = {
    {"rid", R"("type":"string")", "The id of the request to end."},
    {"request_id", R"("type":"string")", "As rid."},
    {"abort_all", kBoolFalse, "End all requests."},
};

constexpr std::array<std::string_view, 8> kNames = {
    "ChatRequest",     "CompletionRequest", "ResponsesRequest", "MessagesRequest",
    "TokenizeRequest", "DetokenizeRequest", "AbortRequest",     "GenerateRequest"};

}  // namespace

std::span<const std::string_view> RequestNames() { return kNames; }

std::vector<Field> RequestFields(std::string_view request) {
  std::vector<Field> fields;
  const auto add = [&fields](std::span<const Field> more) {
    fields.insert(fields.end(), more.begin(), more.end());
  };
  if (request == "ChatRequest") {
    add(kPrompt);
    add(kCommon);
    add(kChat);
  } else if (request == "CompletionRequest") {
    add(kText);
    add(kCommon);
  } else if (request == "ResponsesRequest") {
    add(kResponses);
  } else if (request == "MessagesRequest") {
    add(kMessages);
  } else if (request == "TokenizeRequest") {
    add(kPrompt);
    add(kTokenize);
    for (Field& field : fields) field.is_required = false;
  } else if (request == "DetokenizeRequest") {
    add(kDetokenize);
  } else if (request == "GenerateRequest") {
    add(kGenerate);
  } else if (request == "AbortRequest") {
    add(kAbort);
  }
  return fields;
}

}  // namespace baton::router
