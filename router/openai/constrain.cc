#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "router/openai/api.h"
#include "router/openai/call_grammar.h"

// What an answer may look like, as the workers' masks (protocol.md 2.8.6, 3.5, 4).
namespace baton::router {
namespace {

ApiError NotTogether(const std::string& a, const std::string& b) {
  return BadRequest(absl::StrFormat("%s is not available with %s", a, b), a);
}

// The members that could leave the grammar no token.
std::optional<ApiError> CheckOthers(const GenerateParams& params, const std::string& cause) {
  if (params.min_tokens > 0) return NotTogether("min_tokens", cause);
  if (!params.sampling.allowed_tokens.empty()) return NotTogether("allowed_token_ids", cause);
  if (!params.sampling.bad_words.empty()) return NotTogether("bad_words", cause);
  return std::nullopt;
}

// Where the grammar ends nothing else is left, also for a request that ignores eos.
void AddStop(int32_t token, std::vector<int32_t>& stops) {
  const auto place = std::lower_bound(stops.begin(), stops.end(), token);
  if (place == stops.end() || *place != token) stops.insert(place, token);
}

}  // namespace

// Fills the job's masks from its tools, its budget and the constraint that `body` names.
std::optional<ApiError> Api::Constrain(const JsonValue& body, GenerationJob& job) const {
  ApiResult<std::optional<OutputConstraint>> parsed = ParseConstraint(body);
  if (!parsed.ok()) return parsed.error();
  const std::optional<OutputConstraint> constraint = *std::move(parsed);
  MaskRules& masks = job.request.masks;
  if (parts_.config.honours_thinking_budget && job.params.thinking_budget)
    masks.thinking_budget = std::min<int64_t>(*job.params.thinking_budget, MaxContext());
  if (masks.thinking_budget && !job.params.sampling.allowed_tokens.empty())
    return NotTogether("allowed_token_ids", "thinking_token_budget");
  const auto& tools = job.tools.tools;
  const bool has_strict =
      std::any_of(tools.begin(), tools.end(), [](const auto& tool) { return tool.is_strict; });
  const bool constrains_calls =
      job.tools.is_required || has_strict || (constraint && !tools.empty());
  if (constrains_calls) {
    if (auto error = ConstrainCalls(constraint, job)) return error;
  } else if (constraint) {
    masks.grammar = constraint->grammar;
    job.grammar_param = constraint->param;
  }
  if (!masks.grammar.empty()) {
    if (masks.grammar.size() > kMaxGrammarBytes)
      return BadRequest(absl::StrFormat("%s: a grammar of %d bytes, the limit is %d",
                                        job.grammar_param, masks.grammar.size(), kMaxGrammarBytes),
                        job.grammar_param);
    if (auto error = CheckOthers(job.params, job.grammar_param)) return error;
    AddStop(parts_.markup.eos, job.params.stop_tokens);
    // The reasoning ends by </think>, not by a block; and where an answer must come, not by eos.
    masks.reasoning_bans = {parts_.markup.dsml};
    if (constraint || job.tools.is_required) masks.reasoning_bans.push_back(parts_.markup.eos);
    std::sort(masks.reasoning_bans.begin(), masks.reasoning_bans.end());
  }
  if (job.tools.is_banned) job.params.sampling.bad_words.push_back({parts_.markup.dsml});
  return std::nullopt;
}

// A grammar over the calls: of required ones the only answer, otherwise beside text or the
// constraint.
std::optional<ApiError> Api::ConstrainCalls(const std::optional<OutputConstraint>& constraint,
                                            GenerationJob& job) const {
  CallRules rules = {.is_single = job.tools.max_calls == 1, .dsml = parts_.markup.dsml};
  MaskRules& masks = job.request.masks;
  job.grammar_param = "tools";
  if (job.tools.is_required) {
    job.grammar_param = "tool_choice";
    if (constraint) return NotTogether(constraint->param, "a required tool call");
    rules.begin = job.tools.required_name.empty() ? CallsBegin::kAtName : CallsBegin::kInInvoke;
    masks.forced_prefix =
        parts_.tokenizer.EncodeSegments(parts_.encoder.CallPrefix(job.tools.required_name));
  } else if (constraint) {
    if (constraint->schema.empty())
      return NotTogether(constraint->param, "tools, unless tool_choice is \"none\"");
    job.grammar_param = constraint->param;
    rules.begin = CallsBegin::kAtBlock;
    rules.answer = "answer: %json " + constraint->schema;
  } else {
    rules.begin = CallsBegin::kInText;
  }
  ApiResult<std::string> grammar = CallGrammar(job.tools.tools, rules);
  if (!grammar.ok()) return grammar.error();
  masks.grammar = *std::move(grammar);
  return std::nullopt;
}

}  // namespace baton::router
