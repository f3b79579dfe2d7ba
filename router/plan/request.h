#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "common/sampling_spec.h"

// What the API side of the router and its planner say to each other. Plain values; tokens only, no
// text.
namespace baton::router {

class KeyAccount;  // router/http/api_keys.h

using RequestKey =
    StrongId<struct RequestKeyTag, uint64_t>;  // unique in the process; drawn by Dispatcher::Submit

// One client request, parsed, validated, rendered and tokenized.
struct GenerateRequest {
  std::string request_id;  // as logged and echoed
  std::shared_ptr<const std::vector<int32_t>> prompt;
  int num_choices = 1;
  SamplingSpec sampling;
  FinishRules finish;
  MaskRules masks{};
  std::optional<uint32_t> prompt_logprobs;
  int report_copies = 1;  // of that report in the answer
  std::string salt;
  int priority = 0;
  absl::Time arrival;         // of the request's first byte, router's clock
  absl::Duration parse_time;  // parse, render and tokenize
  absl::Time first_token_deadline = absl::InfiniteFuture();
  absl::Time total_deadline = absl::InfiniteFuture();
  std::shared_ptr<KeyAccount> account = nullptr;  // pays for the tokens; null: nobody
  bool is_length_given = true;  // the client's max_tokens, not all that the context has room for
};

// How the time to the first token and to the second one divides (router's
// clock, workers report durations).
struct StageTimes {
  absl::Duration parse, queue, booking, prefill_queue, prefill, emit;  // sum = time to first token
  absl::Duration transfer, decode_queue, first_step;  // sum = wait for the second token
};

struct RequestAccepted {};  // queued: an early failure is no longer possible for lack of room
struct TokensEmitted {      // each position once, ascending per choice
  int choice = 0;
  int64_t first_position = 0;
  std::vector<TokenRecord> tokens;
};
struct PromptLogprobsEmitted {
  int64_t first_position = 1;
  std::vector<TokenRecord> tokens;
};
struct ChoiceFinished {
  int choice = 0;
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token = -1;
};
struct ContinuationInexact {};  // L1 could not be kept (contracts.md 1.2)
// Exactly once, last. Codes: kOk; kResourceExhausted = 429; kUnavailable = 503; kDeadlineExceeded =
// 504 (429 while queued: kResourceExhausted); kCancelled; anything else 500.
struct RequestEnded {
  absl::Status status;
  absl::Duration retry_after;
  int cached_tokens = 0;
  StageTimes times;
};
using RequestEvent = std::variant<RequestAccepted, TokensEmitted, PromptLogprobsEmitted,
                                  ChoiceFinished, ContinuationInexact, RequestEnded>;

// Called on the planner thread with a batch in order; must only post.
using RequestSink = std::function<void(std::vector<RequestEvent>)>;

// What the API side may read of the cluster; an immutable snapshot, swapped by the planner thread.
struct ClusterView {
  int prefill_ready = 0;
  int decode_ready = 0;
  int max_context = 0;  // the smallest of the ready workers; 0: none
  int in_flight = 0;
  int queued = 0;
  WeightsId weights;
  struct Worker {
    std::string name, address, state;  // connecting, ready, suspect, draining, wedged, gone
    bool serves_prefill = false, serves_decode = false;
    uint32_t pages = 0, free_pages = 0, leased_pages = 0, cached_pages = 0, running = 0,
             waiting = 0;
    uint64_t queued_prompt_tokens = 0;
  };
  std::vector<Worker> workers;
};

// What an operator may ask of the whole cluster.
struct DropCaches {};  // every worker forgets its cached prefixes
struct AbortRequests {
  std::string request_id;  // empty: all; they end with kCancelled
};
using OperatorCommand = std::variant<DropCaches, AbortRequests>;

// The planner as the API threads see it. Any thread.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;
  // The sink hears RequestAccepted or at once RequestEnded.
  virtual RequestKey Submit(GenerateRequest request, RequestSink sink) = 0;
  // The client left, or has enough (`choice`: a stop string matched there; absent: the whole
  // request). No event of that choice follows.
  virtual void Cancel(RequestKey request, std::optional<int> choice, const std::string& reason) = 0;
  // In order with what was submitted before.
  virtual void Control(OperatorCommand command) = 0;
  virtual std::shared_ptr<const ClusterView> View() const = 0;
};

}  // namespace baton::router
