#include <algorithm>
#include <charconv>

#include "absl/strings/str_format.h"

#include "common/rng.h"
#include "router/openai/api.h"
#include "router/openai/responses_writer.h"
#include "router/openai/sglang_request.h"
#include "router/openai/sglang_writer.h"

// From a request's body to a GenerationJob, and the endpoints that stop halfway: tokenize and
// detokenize.
namespace baton::router {
namespace {

constexpr std::string_view kGenerate = "/generate";
constexpr size_t kMaxPrompts = 256;
constexpr size_t kBytesPerToken =
    128;  // the longest token: more bytes than this a token cannot fit (protocol.md 5.7)

ApiError TooLong(const AnswerHead& head, int64_t context, int64_t output, int64_t prompt) {
  return BadRequest(
      absl::StrFormat("This model's maximum context length is %d tokens. However, "
                      "you requested %d output tokens and your prompt contains "
                      "at least %d input tokens, for a total of at least %d tokens. "
                      "Please reduce the length of the input prompt or the "
                      "number of requested output tokens.",
                      context, output, prompt, prompt + std::min(output, int64_t{1} << 40)),
      prompt >= context ? (head.kind == CompletionKind::kChat ? "messages" : "prompt")
                        : "max_tokens");
}

// A header with a whole number of milliseconds of at least 1.
std::optional<ApiError> ReadMilliseconds(const HttpRequest& request, const std::string& name,
                                         std::optional<absl::Duration>& out) {
  const std::string_view text = request.Header(name);
  if (text.empty()) return std::nullopt;
  int64_t ms = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), ms);
  if (error != std::errc() || end != text.data() + text.size() || ms < 1)
    return BadRequest(absl::StrFormat("%s must be an integer of at least 1, got '%s'", name, text),
                      name);
  out = absl::Milliseconds(ms);
  return std::nullopt;
}

ApiResult<std::vector<int32_t>> TokenList(const JsonValue& list, const std::string& path,
                                          int vocab_size) {
  std::vector<int32_t> ids;
  ids.reserve(list.items().size());
  for (const JsonValue& item : list.items()) {
    const std::optional<int64_t> id = item.is_number() ? item.AsInt64() : std::nullopt;
    if (!id) return WrongType(path, "array of integers", item);
    if (*id < 0 || *id >= vocab_size)
      return BadRequest(absl::StrFormat("%s: token id %d is out of vocabulary, its size is %d",
                                        path, *id, vocab_size),
                        path);
    ids.push_back(static_cast<int32_t>(*id));
  }
  return ids;
}

// A streamed echo is one event a choice; together they must fit what may wait unsent
// (http.max_backlog_bytes).
std::optional<ApiError> CheckStreamedEcho(const GenerationJob& job) {
  constexpr size_t kMaxEntries = 32768;  // of about 100 bytes each, over all choices
  if (!job.params.is_stream || !job.params.echoes || !job.params.wants_logprobs)
    return std::nullopt;
  size_t tokens = 0;
  for (const auto& prompt : job.prompts) tokens = std::max(tokens, prompt->size());
  const size_t entries = tokens * (static_cast<size_t>(job.params.sampling.top_logprobs) + 1) *
                         static_cast<size_t>(job.params.num_choices);
  if (entries <= kMaxEntries) return std::nullopt;
  return BadRequest(
      absl::StrFormat("a streamed echo with logprobs=%d of %d prompt tokens has %d entries in "
                      "all choices, at most %d: ask without stream",
                      job.params.sampling.top_logprobs, tokens, entries, kMaxEntries),
      "echo");
}

}  // namespace

std::optional<ApiError> Api::CheckModel(const JsonValue& body, std::string& model) const {
  const auto& names = parts_.config.served_model_names;
  model = names.front();
  const JsonValue* given = body.FindNonNull("model");
  if (given == nullptr) return std::nullopt;
  if (!given->is_string()) return WrongType("model", "string", *given);
  const std::string& name = given->text();
  if (name.empty() || name == "default" || name == parts_.config.model_path) return std::nullopt;
  if (std::find(names.begin(), names.end(), name) == names.end())
    return ApiError{404, "NotFoundError", absl::StrFormat("The model `%s` does not exist.", name),
                    "model"};
  model = name;
  return std::nullopt;
}

std::optional<ApiError> Api::FillRequest(const Call& call, GenerationJob& job) const {
  GenerateRequest& request = job.request;
  request.request_id = call.id;
  request.num_choices = job.params.num_choices;
  request.sampling = job.params.sampling;
  if (!job.params.has_seed) request.sampling.seed = SystemRng().Next();
  request.finish = {.stop_tokens = job.params.stop_tokens,
                    .max_tokens = job.params.max_tokens.value_or(0),
                    .min_tokens = job.params.min_tokens};
  request.prompt_logprobs = PromptEntries(job.params);
  const bool shows_one = job.head.kind == CompletionKind::kChat;  // for all its choices
  request.report_copies = shows_one ? 1 : request.num_choices;
  request.salt = job.params.salt;
  request.priority = job.params.priority;
  request.arrival = call.request.arrival;
  request.parse_time = parts_.clock.Now() - request.arrival;
  std::optional<absl::Duration> first, total;
  if (auto error = ReadMilliseconds(call.request, "x-baton-deadline-ms", first)) return error;
  if (auto error = ReadMilliseconds(call.request, "x-baton-deadline-total-ms", total)) return error;
  const absl::Duration limit = parts_.config.request_deadline;
  request.first_token_deadline = request.arrival + std::min(first.value_or(limit), limit);
  if (total) request.total_deadline = request.arrival + *total;
  job.request_id = call.id;
  return std::nullopt;
}

// Every prompt must leave room for the output asked for (protocol.md 5.7); the batch shares one
// limit, that of its longest prompt.
std::optional<ApiError> Api::FitLength(GenerationJob& job) const {
  const int64_t context = MaxContext();
  const int64_t asked = job.params.max_tokens.value_or(0);
  int64_t longest = 0;
  for (const auto& prompt : job.prompts)
    longest = std::max(longest, static_cast<int64_t>(prompt->size()));
  if (longest >= context || asked > context - longest)
    return TooLong(job.head, context, asked, longest);
  int64_t left = context - longest;
  if (parts_.config.default_max_tokens > 0) left = std::min(left, parts_.config.default_max_tokens);
  job.request.is_length_given = job.params.max_tokens.has_value();
  if (!job.request.is_length_given) job.request.finish.max_tokens = left;
  if (job.params.min_tokens > job.request.finish.max_tokens)
    return BadRequest(
        absl::StrFormat("min_tokens must be less than or equal to max_tokens=%d, got %d.",
                        job.request.finish.max_tokens, job.params.min_tokens),
        "min_tokens");
  return std::nullopt;
}

ApiResult<GenerationJob> Api::Prepare(Call& call) const {
  ApiResult<JsonValue> body = ReadBody(call);
  if (!body.ok()) return body.error();
  // vLLM's and SGLang's members for the id (protocol.md 5.2), if the header says nothing.
  for (const std::string_view key : {"request_id", "rid"}) {
    const JsonValue* id = body->FindNonNull(key);
    const bool is_used = id != nullptr && id->is_string() && IsRequestId(id->text()) &&
                         !IsRequestId(call.request.Header("x-request-id"));
    if (is_used) call.id = id->text();
  }
  ApiResult<GenerationJob> job = PrepareBody(call, *body);
  if (!job.ok()) return job;
  Truncate(*job);
  if (auto error = FillRequest(call, *job)) return *error;
  if (auto error = FitLength(*job)) {
    const std::string& path = call.request.path;
    if (path == "/v1/responses") return InOwnNames(*error, {});
    if (path == kGenerate)
      return InGenerateNames(*error, body->FindNonNull("text") != nullptr ? "text" : "input_ids");
    return *error;
  }
  if (auto error = CheckStreamedEcho(*job)) return *error;
  return job;
}

ApiResult<GenerationJob> Api::PrepareBody(const Call& call, const JsonValue& body) const {
  const std::string& path = call.request.path;
  if (path == "/v1/chat/completions") return PrepareChat(call, body);
  if (path == "/v1/responses") return PrepareResponse(call, body);
  if (path == kGenerate) return PrepareGenerate(call, body);
  return PrepareCompletion(call, body, body.FindNonNull("prompt"));
}

ApiResult<std::vector<int32_t>> Api::RenderChat(ChatInput input) const {
  size_t bytes = 0;
  for (const ChatMessage& message : input.messages)
    bytes += message.content.size() + message.reasoning.size();
  const int context = MaxContext();
  if (bytes > kBytesPerToken * static_cast<size_t>(context))
    return TooLong({}, context, 0, static_cast<int64_t>(bytes / kBytesPerToken));
  replay_->Restore(input.messages);
  const auto segments = parts_.encoder.Encode(input.messages, input.options);
  if (!segments.ok()) {
    const std::string message(segments.status().message());
    return BadRequest(message, message.rfind("messages[", 0) == 0
                                   ? message.substr(0, message.find(' '))
                                   : "messages");
  }
  return runs_->EncodeSegments(parts_.tokenizer, *segments);
}

ApiResult<GenerationJob> Api::PrepareChat(const Call& call, const JsonValue& body) const {
  GenerationJob job;
  job.head.kind = CompletionKind::kChat;
  job.head.id = "chatcmpl-" + call.id;
  job.head.created = absl::ToUnixSeconds(WallNow());
  if (auto error = CheckModel(body, job.head.model)) return *error;
  ApiResult<GenerateParams> params =
      ParseGenerateParams(body, CompletionKind::kChat, parts_.tokenizer, parts_.markup.eos);
  if (!params.ok()) return params.error();
  job.params = *std::move(params);
  ApiResult<std::vector<int32_t>> prompt = ChatPrompt(body, job);
  if (!prompt.ok()) return prompt.error();
  job.prompts.push_back(std::make_shared<const std::vector<int32_t>>(*std::move(prompt)));
  if (auto error = Constrain(body, job)) return *error;
  return job;
}

// The prompt of a chat, rendered or given as ids; fills what the answer needs to know of it.
ApiResult<std::vector<int32_t>> Api::ChatPrompt(const JsonValue& body, GenerationJob& job) const {
  const JsonValue* given = body.FindNonNull("prompt_token_ids");
  std::optional<ChatInput> input;
  if (given == nullptr) {
    ApiResult<ChatInput> parsed = ParseChatInput(body, parts_.config.chat);
    if (!parsed.ok()) return parsed.error();
    input = *std::move(parsed);
  }
  ApiResult<ToolRequest> tools = ParseToolRequest(body);
  if (!tools.ok()) return tools.error();
  job.tools = *std::move(tools);
  ApiResult<bool> echoes = BoolMemberOr(body, "echo", false);
  if (!echoes.ok()) return echoes.error();
  if (input) {
    if (*echoes && input->options.continue_final)
      job.echoes.push_back(input->messages.back().content);
    return RenderChat(*std::move(input));
  }
  if (!given->is_array()) return WrongType("prompt_token_ids", "array", *given);
  ApiResult<std::vector<int32_t>> ids =
      TokenList(*given, "prompt_token_ids", parts_.tokenizer.vocab_size());
  if (ids.ok() && ids->empty())
    return BadRequest("prompt_token_ids must not be empty", "prompt_token_ids");
  return ids;
}

// Keeps the ends of prompts that are longer than the request allows (protocol.md 5.4).
void Api::Truncate(GenerationJob& job) const {
  if (!job.params.truncation) return;
  const int64_t left =
      MaxContext() - std::min<int64_t>(job.params.max_tokens.value_or(1), MaxContext() - 1);
  const auto kept =
      static_cast<size_t>(*job.params.truncation == -1 ? left : *job.params.truncation);
  for (size_t i = 0; i < job.prompts.size(); ++i) {
    const std::vector<int32_t>& prompt = *job.prompts[i];
    if (prompt.size() <= kept) continue;
    std::vector<int32_t> end(prompt.end() - static_cast<ptrdiff_t>(kept), prompt.end());
    if (job.params.echoes) job.echoes[i] = parts_.tokenizer.Decode(end, job.params.skip_special);
    job.prompts[i] = std::make_shared<const std::vector<int32_t>>(std::move(end));
  }
}

ApiResult<GenerationJob> Api::PrepareResponse(const Call& call, const JsonValue& body) const {
  ApiResult<TranslatedResponse> translated = TranslateResponses(body, sealer_);
  if (!translated.ok()) return translated.error();
  const absl::StatusOr<JsonValue> chat = JsonValue::Parse(translated->chat);
  if (!chat.ok()) return BadRequest(std::string(chat.status().message()), "input");
  ApiResult<GenerationJob> job = PrepareChat(call, *chat);
  if (!job.ok()) return InOwnNames(job.error(), translated->sources);
  job->grammar_param = InOwnNames(BadRequest("", job->grammar_param), translated->sources).param;
  AnswerHead head = job->head;
  head.id = call.id;
  job->writer =
      std::make_shared<ResponsesWriter>(std::move(head), std::move(translated->echo), sealer_);
  return job;
}

ApiResult<GenerationJob> Api::PrepareGenerate(const Call& call, const JsonValue& body) const {
  ApiResult<TranslatedGenerate> translated = TranslateGenerate(body);
  if (!translated.ok()) return translated.error();
  const absl::StatusOr<JsonValue> completion = JsonValue::Parse(translated->completion);
  if (!completion.ok()) return BadRequest(std::string(completion.status().message()), "");
  ApiResult<GenerationJob> job = PrepareCompletion(call, *completion, translated->prompt);
  if (!job.ok()) return InGenerateNames(job.error(), translated->prompt_name);
  job->grammar_param = InGenerateNames(BadRequest("", job->grammar_param), "").param;
  job->params.return_token_ids = true;
  SglangWriter::Request request = {.id = call.id,
                                   .prompt_tokens = {},
                                   .num_choices = job->params.num_choices,
                                   .is_list = translated->is_list,
                                   .eos = parts_.markup.eos,
                                   .arrival = call.request.arrival};
  for (const auto& prompt : job->prompts)
    request.prompt_tokens.push_back(static_cast<int64_t>(prompt->size()));
  job->writer = std::make_shared<SglangWriter>(std::move(request), parts_.clock);
  return job;
}

ApiResult<GenerationJob> Api::PrepareCompletion(const Call& call, const JsonValue& body,
                                                const JsonValue* prompt) const {
  GenerationJob job;
  job.head.kind = CompletionKind::kText;
  job.head.id = "cmpl-" + call.id;
  job.head.created = absl::ToUnixSeconds(WallNow());
  if (auto error = CheckModel(body, job.head.model)) return *error;
  ApiResult<GenerateParams> params =
      ParseGenerateParams(body, CompletionKind::kText, parts_.tokenizer, parts_.markup.eos);
  if (!params.ok()) return params.error();
  job.params = *std::move(params);
  if (auto error = Constrain(body, job)) return *error;
  if (body.FindNonNull("suffix") != nullptr)
    return BadRequest("suffix is not currently supported", "suffix");
  if (prompt == nullptr)
    return BadRequest("prompt: expected string or array, got nothing", "prompt");
  std::vector<const JsonValue*> items;
  const bool is_batch =
      prompt->is_array() && !prompt->items().empty() && !prompt->items()[0].is_number();
  if (is_batch) {
    for (const JsonValue& item : prompt->items()) items.push_back(&item);
  } else {
    items.push_back(prompt);
  }
  if (items.size() > kMaxPrompts)
    return BadRequest(
        absl::StrFormat("prompt: %d prompts, the limit is %d", items.size(), kMaxPrompts),
        "prompt");
  for (const JsonValue* item : items) {
    std::vector<int32_t> ids;
    if (item->is_string()) {
      if (item->text().size() > kBytesPerToken * static_cast<size_t>(MaxContext()))
        return TooLong(job.head, MaxContext(), 0,
                       static_cast<int64_t>(item->text().size() / kBytesPerToken));
      ids = parts_.tokenizer.Encode(item->text(), SpecialTokens::kRecognise);
    } else if (item->is_array()) {
      ApiResult<std::vector<int32_t>> list =
          TokenList(*item, "prompt", parts_.tokenizer.vocab_size());
      if (!list.ok()) return list.error();
      ids = *std::move(list);
    } else {
      return WrongType("prompt", "string or array", *item);
    }
    if (ids.empty()) return BadRequest("prompt must not be empty: it has no token", "prompt");
    if (job.params.echoes)
      job.echoes.push_back(parts_.tokenizer.Decode(ids, job.params.skip_special));
    job.prompts.push_back(std::make_shared<const std::vector<int32_t>>(std::move(ids)));
  }
  return job;
}

ApiResult<std::string> Api::Tokenize(const Call& call) const {
  ApiResult<JsonValue> body = ReadBody(call);
  if (!body.ok()) return body.error();
  const JsonValue* prompt = body->FindNonNull("prompt");
  std::vector<int32_t> ids;
  if (prompt != nullptr) {
    if (!prompt->is_string()) return WrongType("prompt", "string", *prompt);
    if (prompt->text().size() > kBytesPerToken * static_cast<size_t>(MaxContext()))
      return TooLong({.kind = CompletionKind::kText}, MaxContext(), 0,
                     static_cast<int64_t>(prompt->text().size() / kBytesPerToken));
    ids = parts_.tokenizer.Encode(prompt->text(), SpecialTokens::kRecognise);
  } else {
    ApiResult<ChatInput> input = ParseChatInput(*body, parts_.config.chat);
    if (!input.ok()) return input.error();
    ApiResult<std::vector<int32_t>> rendered = RenderChat(*std::move(input));
    if (!rendered.ok()) return rendered.error();
    ids = *std::move(rendered);
  }
  ApiResult<bool> wants_texts = BoolMemberOr(*body, "return_token_strs", false);
  if (!wants_texts.ok()) return wants_texts.error();
  std::string list, texts;
  for (const int32_t id : ids) {
    absl::StrAppendFormat(&list, "%s%d", list.empty() ? "" : ",", id);
    if (!*wants_texts) continue;
    if (!texts.empty()) texts += ",";
    AppendJsonString(parts_.tokenizer.Decode(std::span(&id, 1), false), texts);
  }
  return absl::StrFormat("{\"tokens\":[%s],\"count\":%d,\"max_model_len\":%d,\"token_strs\":%s}",
                         list, ids.size(), MaxContext(), *wants_texts ? "[" + texts + "]" : "null");
}

ApiResult<std::string> Api::Detokenize(const Call& call) const {
  ApiResult<JsonValue> body = ReadBody(call);
  if (!body.ok()) return body.error();
  const JsonValue* tokens = body->FindNonNull("tokens");
  if (tokens == nullptr) return BadRequest("tokens: expected array, got nothing", "tokens");
  if (!tokens->is_array()) return WrongType("tokens", "array", *tokens);
  ApiResult<std::vector<int32_t>> ids = TokenList(*tokens, "tokens", parts_.tokenizer.vocab_size());
  if (!ids.ok()) return ids.error();
  ApiResult<bool> skip = BoolMemberOr(*body, "skip_special_tokens", false);
  if (!skip.ok()) return skip.error();
  std::string text;
  AppendJsonString(parts_.tokenizer.Decode(*ids, *skip), text);
  return absl::StrFormat("{\"prompt\":%s,\"text\":%s}", text, text);
}

}  // namespace baton::router
