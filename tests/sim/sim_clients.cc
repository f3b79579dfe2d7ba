#include "tests/sim/sim_clients.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <variant>

#include "absl/strings/str_format.h"

namespace baton::sim {
namespace {

using router::RequestKey;

constexpr int kMaxChoices = 4;
constexpr absl::Duration kClientPatience = absl::Seconds(3);  // of those that leave

std::vector<int32_t> DrawTokens(Rng& rng, int64_t count) {
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(rng.Below(kHashVocab)));
  return tokens;
}

SamplingSpec DrawSampling(Rng& rng, const LoadSpec& load) {
  SamplingSpec spec;
  spec.greedy = rng.Uniform() < load.greedy;
  spec.seed = rng.Next();
  spec.inv_temperature = 1.0f / (0.5f + static_cast<float>(rng.Below(8)) / 4);
  if (rng.Below(2) == 0) spec.top_p = kTopPOff / 10 * 9;
  if (rng.Below(4) == 0) spec.frequency_penalty = 0.5f;
  if (rng.Uniform() < load.logprobs) spec.top_logprobs = static_cast<int>(rng.Below(4));
  return spec;
}

}  // namespace

SimClients::SimClients(const Scenario& scenario, uint64_t seed) : scenario_(scenario) {
  SeededRng rng(seed);
  for (int i = 0; i < std::max(1, scenario.load.documents); ++i)
    documents_.push_back(DrawTokens(rng, scenario.load.prompt_tokens.high));
  for (int i = 0; i < scenario.load.requests; ++i)
    requests_.push_back(MakeRequest(rng, static_cast<uint64_t>(i) + 1));
  states_.resize(requests_.size());
  for (size_t i = 0; i < requests_.size(); ++i)
    states_[i].choices.resize(requests_[i].expected.size());
}

std::vector<int32_t> SimClients::MakePrompt(Rng& rng) const {
  const int64_t tokens = scenario_.load.prompt_tokens.Draw(rng);
  if (rng.Uniform() < scenario_.load.fresh_prompts) return DrawTokens(rng, tokens);
  const std::vector<int32_t>& document = documents_[rng.Below(documents_.size())];
  std::vector<int32_t> prompt(document.begin(), document.begin() + tokens);
  if (rng.Below(2) == 0) prompt.back() = static_cast<int32_t>(rng.Below(kHashVocab));
  return prompt;
}

SimRequest SimClients::MakeRequest(Rng& rng, uint64_t key) {
  const LoadSpec& load = scenario_.load;
  SimRequest request;
  request.key = {key};
  router::GenerateRequest& spec = request.spec;
  spec.request_id = absl::StrFormat("sim-%d", key);
  spec.prompt = std::make_shared<const std::vector<int32_t>>(MakePrompt(rng));
  if (rng.Uniform() < load.several_choices)
    spec.num_choices = 2 + static_cast<int>(rng.Below(kMaxChoices - 1));
  spec.sampling = DrawSampling(rng, load);
  spec.finish.stop_tokens = {kHashEos};
  spec.finish.max_tokens = load.output_tokens.Draw(rng);
  if (rng.Below(2) == 0) spec.finish.min_tokens = spec.finish.max_tokens / 2;
  spec.arrival = absl::UnixEpoch() + load.over * rng.Uniform();
  if (rng.Uniform() < load.deadline)
    spec.first_token_deadline = spec.arrival + absl::Milliseconds(50 + rng.Below(1950));
  const absl::Time leaves = spec.arrival + kClientPatience * rng.Uniform();
  if (rng.Uniform() < load.client_gone) request.gone_at = leaves;
  if (rng.Uniform() < load.choice_cancelled) request.choice_cancelled_at = leaves;
  request.cancelled_choice = static_cast<int>(rng.Below(static_cast<uint64_t>(spec.num_choices)));
  for (int choice = 0; choice < spec.num_choices; ++choice)
    request.expected.push_back(FaultFreeText(*spec.prompt, spec.sampling, spec.finish, choice));
  return request;
}

RequestKey SimClients::KeyOf(const std::string& request_id) const {
  const auto is_it = [&](const SimRequest& r) { return r.spec.request_id == request_id; };
  return std::find_if(requests_.begin(), requests_.end(), is_it)->key;
}

void SimClients::NoteChoiceCancelled(RequestKey key, int choice) {
  Find(key).choices[static_cast<size_t>(choice)].is_cancelled = true;
}

std::string SimClients::On(RequestKey key, const router::RequestEvent& event) {
  if (Find(key).ended)
    return absl::StrFormat("request %d hears something after its end", key.value);
  if (const auto* tokens = std::get_if<router::TokensEmitted>(&event))
    return OnTokens(key, *tokens);
  if (const auto* over = std::get_if<router::ChoiceFinished>(&event)) return OnFinished(key, *over);
  if (const auto* ended = std::get_if<router::RequestEnded>(&event)) return OnEnded(key, *ended);
  if (std::holds_alternative<router::ContinuationInexact>(event))
    return absl::StrFormat("request %d: inexact continuation among workers of one class",
                           key.value);
  return "";
}

std::string SimClients::OnTokens(RequestKey key, const router::TokensEmitted& event) {
  const SimRequest& request = requests_[key.value - 1];
  const auto index = static_cast<size_t>(event.choice);
  ChoiceState& choice = Find(key).choices.at(index);
  const std::string who = absl::StrFormat("request %d choice %d", key.value, event.choice);
  if (choice.is_cancelled || Find(key).is_gone) return who + ": tokens after its cancel";
  if (choice.is_finished) return who + ": tokens after its finish";
  const auto next = static_cast<int64_t>(request.spec.prompt->size() + choice.emitted);
  if (event.first_position != next)
    return absl::StrFormat("%s: position %d emitted, %d is next", who, event.first_position, next);
  const std::vector<TokenRecord>& expected = request.expected[index].tokens;
  for (const TokenRecord& record : event.tokens) {
    if (choice.emitted >= expected.size()) return who + ": more tokens than the fault-free run";
    const TokenRecord& wanted = expected[choice.emitted];
    if (record != wanted)
      return absl::StrFormat("%s: token %d is %d, fault-free %d", who, choice.emitted, record.token,
                             wanted.token);
    ++choice.emitted;
    ++num_tokens_;
  }
  return "";
}

std::string SimClients::OnFinished(RequestKey key, const router::ChoiceFinished& event) {
  const auto index = static_cast<size_t>(event.choice);
  const HashText& expected = requests_[key.value - 1].expected[index];
  ChoiceState& choice = Find(key).choices.at(index);
  const std::string who = absl::StrFormat("request %d choice %d", key.value, event.choice);
  if (choice.is_finished || choice.is_cancelled) return who + ": finishes twice";
  choice.is_finished = true;
  if (choice.emitted != expected.tokens.size())
    return absl::StrFormat("%s: finished after %d of %d tokens", who, choice.emitted,
                           expected.tokens.size());
  if (event.reason != expected.reason || event.stop_token != expected.stop_token)
    return who + ": wrong finish reason";
  return "";
}

bool SimClients::MayEndWith(RequestKey key, absl::StatusCode code) {
  const SimRequest& request = requests_[key.value - 1];
  const State& state = states_[key.value - 1];
  if (state.is_gone) return code == absl::StatusCode::kCancelled;
  const bool has_token = std::any_of(state.choices.begin(), state.choices.end(),
                                     [](const ChoiceState& choice) { return choice.emitted > 0; });
  const bool has_deadline = request.spec.first_token_deadline != absl::InfiniteFuture();
  const bool is_late =
      code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kResourceExhausted;
  if (has_deadline && is_late) return !has_token;
  if (code == absl::StatusCode::kOk) return true;
  return scenario_.tolerates.contains(code) && state.faults >= scenario_.tolerated_after_faults;
}

std::string SimClients::OnEnded(RequestKey key, const router::RequestEnded& event) {
  State& state = Find(key);
  state.ended = event.status.code();
  ++num_ended_;
  ++ends_[event.status.code()];
  if (!MayEndWith(key, event.status.code()))
    return absl::StrFormat("request %d ends with %s", key.value, event.status.ToString());
  if (!event.status.ok()) return "";
  for (size_t i = 0; i < state.choices.size(); ++i) {
    const ChoiceState& choice = state.choices[i];
    if (!choice.is_finished && !choice.is_cancelled)
      return absl::StrFormat("request %d ends well, choice %d unfinished after %d tokens",
                             key.value, i, choice.emitted);
  }
  return "";
}

std::string SimClients::DescribeOpen() const {
  std::string text;
  for (size_t i = 0; i < states_.size(); ++i) {
    if (states_[i].ended) continue;
    text += absl::StrFormat(" %d(", requests_[i].key.value);
    for (const ChoiceState& choice : states_[i].choices)
      text += absl::StrFormat(" %d%s", choice.emitted, choice.is_finished ? "." : "");
    text += " )";
  }
  return text;
}

}  // namespace baton::sim
