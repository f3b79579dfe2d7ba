#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "common/rng.h"
#include "router/plan/core.h"

// A RouterCore in the hands of a test: simulated time, timers, and a record of everything it does.
namespace baton::router {

// What one request's client saw.
struct RequestLog {
  int num_accepted = 0, num_ended = 0, num_inexact = 0;
  std::map<int, std::vector<int32_t>> tokens;  // by choice
  std::map<int, FinishReason> finished;
  std::vector<TokenRecord> prompt_logprobs;
  RequestEnded end;
};

// What one worker was told of one transfer within one session.
struct TransferLog {
  int num_pieces = 0, num_cancels = 0;
  bool is_session_lost = false;
};

struct WorkerSpec {
  bool serves_prefill = false, serves_decode = false;
  uint8_t weights = 1, layout = 1, prompt_class = 1, decode_class = 1;
  uint32_t pages = 1000, max_sequences = 64, max_context = 100'000;
};
inline constexpr WorkerSpec kPrefillWorker{.serves_prefill = true};
inline constexpr WorkerSpec kDecodeWorker{.serves_decode = true};
inline constexpr WorkerSpec kMixedWorker{.serves_prefill = true, .serves_decode = true};

class CoreHarness {
 public:
  explicit CoreHarness(const PlanConfig& config = {}, uint64_t seed = 1);

  void On(CoreEvent event);         // runs it, records the actions and checks the invariants
  void Advance(absl::Duration by);  // fires timers on the way
  absl::Time now() const { return now_; }
  RouterCore& core() { return core_; }
  RouterFacts Facts() const { return core_.Facts(now_); }

  WorkerId Up(uint32_t id, const WorkerSpec& spec);
  void Down(WorkerId worker, const std::string& why = "killed");
  void Say(WorkerId worker, wire::WorkerMessage message);

  // A request of `prompt_tokens` for `max_tokens`, arriving now.
  GenerateRequest MakeRequest(int prompt_tokens, int max_tokens, int num_choices = 1) const;
  RequestKey Arrive(GenerateRequest request);
  RequestKey Arrive(int prompt_tokens = 300, int max_tokens = 4, int num_choices = 1) {
    return Arrive(MakeRequest(prompt_tokens, max_tokens, num_choices));
  }

  void ClientGoneNow(RequestKey key) { On(ClientGone{.key = key, .reason = "client left"}); }

  // Everything sent so far, oldest first.
  const std::vector<SendToWorker>& sent() const { return sent_; }
  template <typename T>
  std::vector<T> Sent(WorkerId worker) const {
    std::vector<T> found;
    for (const SendToWorker& send : sent_)
      if (send.worker == worker && std::holds_alternative<T>(send.piece))
        found.push_back(std::get<T>(send.piece));
    return found;
  }
  // The newest piece of that kind; the test fails without one.
  template <typename T>
  T Last(WorkerId worker) const {
    std::vector<T> found = Sent<T>(worker);
    if (found.empty()) return Missing<T>(worker);
    return found.back();
  }

  // The model: what any worker computes at a position.
  static TokenRecord TokenAt(int choice, int64_t position);

  // One worker's next lines of a faultless script, about the newest Reserve or Run it got.
  void Reserved(WorkerId decode);
  void Retargeted(WorkerId decode);
  void FirstToken(WorkerId prefill);
  void Prefilled(WorkerId prefill);
  void Landed(WorkerId decode);
  void Tokens(WorkerId decode, int sequence, int64_t first_position, int count);
  void Finished(WorkerId decode, int sequence);
  void Refuse(WorkerId worker, wire::Stage stage, absl::StatusCode code,
              bool lacks_grammar_room = false);
  void FailTransfer(WorkerId worker, absl::StatusCode code);
  // All of it until the last of the request's tokens.
  void ToDecoding(WorkerId prefill, WorkerId decode);
  void ToEnd(WorkerId decode);

  const RequestLog& Log(RequestKey key) const { return logs_.at(key); }
  std::string State(RequestKey key) const;
  std::optional<absl::Status> EndOf(RequestKey key) const;
  // The tokens of one choice are the model's, `count` of them.
  void ExpectTokens(RequestKey key, int choice, int count) const;
  // Nothing is live, booked or owed: call when every request is expected to have ended.
  void ExpectQuiet() const;

 private:
  using ToldKey = std::tuple<WorkerId, int, TransferId>;  // worker, session, transfer
  template <typename T>
  T Missing(WorkerId worker) const {
    ReportMissing(worker);
    return T{};
  }
  void ReportMissing(WorkerId worker) const;
  void Record(const SendToWorker& send);
  void Record(const EmitToRequest& emit);
  void RecordTokens(RequestLog& log, RequestKey key, const TokensEmitted& event);
  TransferId TransferAt(WorkerId worker) const;

  absl::Time now_ = absl::UnixEpoch() + absl::Seconds(1000);
  SeededRng rng_;
  RouterCore core_;
  uint64_t next_key_ = 1;
  uint64_t next_incarnation_ = 1;
  std::vector<CoreAction> actions_;
  std::vector<SendToWorker> sent_;
  std::multimap<absl::Time, TimerId> timers_;
  std::map<RequestKey, RequestLog> logs_;
  std::map<RequestKey, int> prompt_tokens_;
  std::map<WorkerId, int> sessions_;
  std::map<ToldKey, TransferLog> told_;
};

}  // namespace baton::router
