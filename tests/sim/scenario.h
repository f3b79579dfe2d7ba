#pragma once

#include <cstdint>
#include <set>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

#include "common/rng.h"
#include "kvtransfer/inproc/network.h"

// A scenario file composes a load with workers and faults; a seed picks everything that is random
// in it.
namespace baton::sim {

struct Range {
  int64_t low = 0, high = 0;
  int64_t Draw(Rng& rng) const {
    return low + static_cast<int64_t>(rng.Below(static_cast<uint64_t>(high - low + 1)));
  }
};

struct LoadSpec {
  int requests = 100;
  absl::Duration over = absl::Seconds(10);
  Range prompt_tokens{1, 2000};
  Range output_tokens{1, 120};
  int documents = 12;          // prompts are their beginnings, so that prefixes repeat
  double fresh_prompts = 0.3;  // share of prompts that repeat nothing
  double greedy = 0.3;
  double logprobs = 0.2;
  double several_choices = 0.15;  // n = 2..4
  double client_gone = 0.05;
  double choice_cancelled = 0.05;
  double deadline = 0.02;  // a first-token deadline of 0.05 to 2 s
};

struct WorkersSpec {
  int prefill = 3, decode = 3;
  int mixed = 0;  // serve both
  int prefill_pages = 160, decode_pages = 80;
  int max_sequences = 12;         // of a decode worker
  int max_computing_prompts = 4;  // of a prefill worker
  int chunk_tokens = 768;
  int max_context = 4096;
};

struct FaultsSpec {
  int kill_prefill = 0, kill_decode = 0;
  int lose_session = 0;  // the stream breaks, both sides live
  int stop_worker = 0;   // SIGSTOP, then SIGCONT
  int drain_worker = 0;
  int spoil_pages = 0;  // flips a byte behind everybody's back: the run must be found wrong
  absl::Duration min_restart = absl::Seconds(0.5), max_restart = absl::Seconds(3);
  absl::Duration min_stop = absl::Seconds(0.1), max_stop = absl::Seconds(5);
  kvtransfer::LinkSettings link;
};

struct Scenario {
  std::string name;
  LoadSpec load;
  WorkersSpec workers;
  FaultsSpec faults;
  // How a request may end besides kOk and what its own client or deadline asked for.
  std::set<absl::StatusCode> tolerates;
  int tolerated_after_faults = 0;  // workers lost or stopped under the request
};

// kInvalidArgument names the file and the unknown key or bad value.
absl::StatusOr<Scenario> LoadScenario(const std::string& path);

}  // namespace baton::sim
