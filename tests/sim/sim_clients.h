#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "common/rng.h"
#include "router/plan/request.h"
#include "tests/sim/hash_model.h"
#include "tests/sim/scenario.h"

namespace baton::sim {

// One request of the load, with what its client must see.
struct SimRequest {
  router::RequestKey key;
  router::GenerateRequest spec;    // handed to the router at `spec.arrival`
  std::vector<HashText> expected;  // by choice
  std::optional<absl::Time> gone_at;
  std::optional<absl::Time> choice_cancelled_at;
  int cancelled_choice = 0;
};

// The clients: what they ask for, and the checks of what they get (contracts.md 7): each position
// once, the fault-free text, one end.
class SimClients {
 public:
  SimClients(const Scenario& scenario, uint64_t seed);

  const std::vector<SimRequest>& requests() const { return requests_; }
  void NoteGone(router::RequestKey key) { Find(key).is_gone = true; }
  router::RequestKey KeyOf(const std::string& request_id) const;
  // A worker was lost, or stopped, that had been told of this request.
  void NoteFault(router::RequestKey key) { ++Find(key).faults; }
  void NoteChoiceCancelled(router::RequestKey key, int choice);
  // What a request's client hears; a violation, or empty.
  std::string On(router::RequestKey key, const router::RequestEvent& event);

  bool HasEnded(router::RequestKey key) { return Find(key).ended.has_value(); }
  size_t num_ended() const { return num_ended_; }
  uint64_t num_tokens() const { return num_tokens_; }
  const std::map<absl::StatusCode, int>& ends() const { return ends_; }
  // The requests that have not ended, for a report.
  std::string DescribeOpen() const;

 private:
  struct ChoiceState {
    size_t emitted = 0;
    bool is_finished = false;
    bool is_cancelled = false;
  };
  struct State {
    std::vector<ChoiceState> choices;
    bool is_gone = false;
    int faults = 0;
    std::optional<absl::StatusCode> ended;
  };

  SimRequest MakeRequest(Rng& rng, uint64_t key);
  std::vector<int32_t> MakePrompt(Rng& rng) const;
  State& Find(router::RequestKey key) { return states_[key.value - 1]; }
  std::string OnTokens(router::RequestKey key, const router::TokensEmitted& event);
  std::string OnFinished(router::RequestKey key, const router::ChoiceFinished& event);
  std::string OnEnded(router::RequestKey key, const router::RequestEnded& event);
  bool MayEndWith(router::RequestKey key, absl::StatusCode code);

  const Scenario& scenario_;
  std::vector<std::vector<int32_t>> documents_;
  std::vector<SimRequest> requests_;  // by key - 1
  std::vector<State> states_;
  size_t num_ended_ = 0;
  uint64_t num_tokens_ = 0;
  std::map<absl::StatusCode, int> ends_;
};

}  // namespace baton::sim
