// Every loss, refusal and cancel in every state of contracts.md 4.2.
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "router/plan/core_harness.h"

namespace baton::router {
namespace {

constexpr int kPrompt = 300;
constexpr int kTokens = 6;

// Two of each. With equal loads the first of each is taken.
struct Cluster {
  CoreHarness h;
  WorkerId p, p2, d, d2;
  RequestKey key;
  explicit Cluster(const PlanConfig& config = {}) : h(config) {
    p = h.Up(1, kPrefillWorker);
    p2 = h.Up(2, kPrefillWorker);
    d = h.Up(3, kDecodeWorker);
    d2 = h.Up(4, kDecodeWorker);
  }
  // The workers of the newest placement.
  WorkerId Decode() const {
    for (auto it = h.sent().rbegin(); it != h.sent().rend(); ++it)
      if (std::holds_alternative<wire::Reserve>(it->piece)) return it->worker;
    return WorkerId{};
  }
  WorkerId Prefill() const {
    for (auto it = h.sent().rbegin(); it != h.sent().rend(); ++it)
      if (std::holds_alternative<wire::Run>(it->piece)) return it->worker;
    return WorkerId{};
  }
  // Plays the faultless script from wherever the request stands.
  void PlayOut() {
    for (int turn = 0; turn < 8 && h.State(key) != "ended"; ++turn) {
      const std::string state = h.State(key);
      if (state == "queued") return;
      const RouterCore& core = h.core();
      const RequestState now = *core.StateOf(key);
      if (now == RequestState::kRetarget) {
        h.Retargeted(Decode());
        continue;
      }
      if (now == RequestState::kBooking || step == 0) {
        h.Reserved(Decode());
        step = 1;
        continue;
      }
      if (step == 1) {
        h.FirstToken(Prefill());
        h.Landed(Decode());
        step = 2;
        continue;
      }
      h.ToEnd(Decode());
    }
  }
  int step = 0;  // of the newest placement: 0 booked, 1 running, 2 landed
};

// Where the request stands when the blow falls.
struct Stage {
  std::string name;
  std::function<void(Cluster&)> reach;
  int step;
};
const std::vector<Stage>& Stages() {
  static const std::vector<Stage> stages = {
      {"booking", [](Cluster&) {}, 0},
      {"prefilling", [](Cluster& c) { c.h.Reserved(c.d); }, 1},
      {"first_token_out",
       [](Cluster& c) {
         c.h.Reserved(c.d);
         c.h.FirstToken(c.p);
       },
       1},
      {"prefilled",
       [](Cluster& c) {
         c.h.Reserved(c.d);
         c.h.FirstToken(c.p);
         c.h.Prefilled(c.p);
       },
       1},
      {"landed", [](Cluster& c) { c.h.ToDecoding(c.p, c.d); }, 2},
      {"decoding",
       [](Cluster& c) {
         c.h.ToDecoding(c.p, c.d);
         c.h.Tokens(c.d, 0, kPrompt + 1, 3);
       },
       2},
  };
  return stages;
}

// What strikes; returns the step of the placement that goes on (-1: as it was).
struct Blow {
  std::string name;
  std::function<void(Cluster&)> strike;
};
const std::vector<Blow>& Blows() {
  static const std::vector<Blow> blows = {
      {"decode_dies", [](Cluster& c) { c.h.Down(c.d); }},
      {"prefill_dies", [](Cluster& c) { c.h.Down(c.p); }},
      {"decode_restarts", [](Cluster& c) { c.h.Up(3, kDecodeWorker); }},
      {"prefill_restarts", [](Cluster& c) { c.h.Up(1, kPrefillWorker); }},
      {"both_die",
       [](Cluster& c) {
         c.h.Down(c.p);
         c.h.Down(c.d);
       }},
      {"decode_fails", [](Cluster& c) { c.h.FailTransfer(c.d, absl::StatusCode::kInternal); }},
  };
  return blows;
}

// A request that outlives the blow: the same tokens, one end, nothing left anywhere.
void SurviveOne(const Stage& stage, const Blow& blow) {
  SCOPED_TRACE(stage.name + " " + blow.name);
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  stage.reach(c);
  c.step = stage.step;
  const size_t reserves =
      c.h.Sent<wire::Reserve>(c.d).size() + c.h.Sent<wire::Reserve>(c.d2).size();
  blow.strike(c);
  if (c.h.Sent<wire::Reserve>(c.d).size() + c.h.Sent<wire::Reserve>(c.d2).size() > reserves)
    c.step = 0;
  c.PlayOut();
  ASSERT_EQ(c.h.State(c.key), "ended");
  EXPECT_TRUE(c.h.EndOf(c.key)->ok()) << c.h.EndOf(c.key)->message();
  c.h.ExpectTokens(c.key, 0, kTokens);
  EXPECT_EQ(c.h.Log(c.key).num_inexact, 0);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, EveryLossInEveryStateLeavesTheSameTokens) {
  for (const Stage& stage : Stages())
    for (const Blow& blow : Blows()) SurviveOne(stage, blow);
}

TEST(RouterCoreLoss, ClientMayLeaveInEveryState) {
  for (const Stage& stage : Stages()) {
    SCOPED_TRACE(stage.name);
    Cluster c;
    c.key = c.h.Arrive(kPrompt, kTokens);
    stage.reach(c);
    c.h.ClientGoneNow(c.key);
    EXPECT_TRUE(absl::IsCancelled(*c.h.EndOf(c.key)));
    EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
    EXPECT_EQ(c.h.Sent<wire::Cancel>(c.p).size(), stage.step == 0 ? 0u : 1u);
    c.h.ClientGoneNow(c.key);  // late, ignored
    c.h.ExpectQuiet();
  }
}

TEST(RouterCoreLoss, RetargetComesBeforeTheNextRunAndCarriesTheBitmap) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  c.h.FailTransfer(c.p, absl::StatusCode::kInternal);
  EXPECT_EQ(c.h.State(c.key), "retarget");
  EXPECT_EQ(c.h.Last<wire::Retarget>(c.d).attempt, 2u);
  EXPECT_EQ(c.h.Sent<wire::Cancel>(c.p).size(), 1u);
  EXPECT_TRUE(c.h.Sent<wire::Run>(c.p2).empty());
  c.h.Retargeted(c.d);
  const auto run = c.h.Last<wire::Run>(c.p2);
  EXPECT_EQ(run.attempt, 2u);
  EXPECT_EQ(run.landing.attempt, 2u);
  EXPECT_EQ(run.verified_pages, std::vector<bool>{true});
  c.h.FirstToken(c.p);  // of the attempt given up: dropped
  c.h.ExpectTokens(c.key, 0, 0);
  c.h.FirstToken(c.p2);
  c.h.ExpectTokens(c.key, 0, 1);
  c.h.ClientGoneNow(c.key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, GivesUpAfterTheThirdAttempt) {
  Cluster c;
  const WorkerId p3 = c.h.Up(5, kPrefillWorker);
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  for (const WorkerId prefill : {c.p, c.p2}) {
    c.h.FailTransfer(prefill, absl::StatusCode::kInternal);
    c.h.Retargeted(c.d);
  }
  EXPECT_EQ(c.h.Last<wire::Run>(p3).attempt, 3u);
  c.h.FailTransfer(p3, absl::StatusCode::kInternal);
  EXPECT_TRUE(absl::IsInternal(*c.h.EndOf(c.key)));
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ARequestThatOutlivesNoDecodeWorkerIsTakenForTheReason) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  for (int lost = 1; lost <= 4; ++lost) {
    const WorkerId decode = c.Decode();
    EXPECT_FALSE(c.h.EndOf(c.key).has_value()) << "before loss " << lost;
    c.h.Down(decode);
    c.h.Up(decode.value, kDecodeWorker);
  }
  EXPECT_TRUE(absl::IsUnavailable(*c.h.EndOf(c.key)));
  EXPECT_EQ(c.h.Facts().outcomes.no_worker, 1u);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, AFullPrefillWorkerCostsNoAttempt) {
  Cluster c;
  c.h.Down(c.p2);
  c.key = c.h.Arrive(kPrompt, kTokens);
  for (int i = 0; i < 5; ++i) {
    c.h.Reserved(c.Decode());
    c.h.Refuse(c.p, wire::Stage::kRun, absl::StatusCode::kResourceExhausted);
    c.h.Retargeted(c.Decode());
    c.h.Advance(absl::Milliseconds(150));  // its backoff
  }
  c.PlayOut();
  EXPECT_TRUE(c.h.EndOf(c.key)->ok()) << c.h.EndOf(c.key)->message();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ARefusedReserveGoesToAnotherDecodeWorker) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Refuse(c.d, wire::Stage::kReserve, absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(c.Decode(), c.d2);
  EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ABadRequestIsNotTriedElsewhere) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Refuse(c.d, wire::Stage::kReserve, absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::IsInvalidArgument(*c.h.EndOf(c.key)));
  c.h.ExpectQuiet();
}

// A grammar that grew beyond a limit, say.
TEST(RouterCoreLoss, ARequestThatIsBadOnTheWayIsNotTriedElsewhere) {
  for (const bool is_prefill : {true, false}) {
    Cluster c;
    c.key = c.h.Arrive(kPrompt, kTokens);
    c.h.Reserved(c.d);
    c.h.FailTransfer(is_prefill ? c.p : c.d, absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::IsInvalidArgument(*c.h.EndOf(c.key)));
    c.h.ExpectQuiet();
  }
}

TEST(RouterCoreLoss, ASilentPrefillIsReplacedAndProgressKeepsItAlive) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  const auto run = c.h.Last<wire::Run>(c.p);
  wire::WorkerMessage progress;
  progress.progress.push_back(
      {.transfer = run.transfer, .attempt = 1, .computed_tokens = 10, .acked_blocks = 0});
  for (int i = 0; i < 5; ++i) {
    c.h.Advance(absl::Seconds(2));
    c.h.Say(c.p, progress);
  }
  EXPECT_EQ(c.h.State(c.key), "prefilling");
  c.h.Advance(absl::Seconds(3));  // 4 x 300 tokens at the assumed 500/s
  EXPECT_EQ(c.h.State(c.key), "retarget");
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, AMuteDecodeWorkerIsGivenUp) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Advance(absl::Seconds(11));
  EXPECT_EQ(c.Decode(), c.d2);
  EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, BadBlocksTwiceBlameTheDecodeWorker) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  c.h.FailTransfer(c.d, absl::StatusCode::kDataLoss);
  EXPECT_EQ(c.h.State(c.key), "retarget");
  c.h.Retargeted(c.d);
  EXPECT_EQ(c.Prefill(), c.p2);
  c.h.FailTransfer(c.d, absl::StatusCode::kDataLoss);
  EXPECT_EQ(c.Decode(), c.d2);
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ASenderThatLeftIsReplacedAndTheLandingKept) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  c.h.FailTransfer(c.d, absl::StatusCode::kUnavailable);
  EXPECT_EQ(c.h.State(c.key), "retarget");
  c.h.FailTransfer(c.d, absl::StatusCode::kUnavailable);  // again, of the attempt that is over
  EXPECT_EQ(c.h.State(c.key), "retarget");
  c.h.Retargeted(c.d);
  EXPECT_EQ(c.Decode(), c.d);
  EXPECT_EQ(c.Prefill(), c.p2);
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ALandingThatStallsTwiceIsGivenUp) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.Reserved(c.d);
  c.h.Advance(absl::Seconds(9));
  EXPECT_EQ(c.h.State(c.key), "retarget");
  c.h.Retargeted(c.d);
  EXPECT_EQ(c.Prefill(), c.p2);
  c.h.Advance(absl::Seconds(9));
  EXPECT_EQ(c.Decode(), c.d2);
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ForcesEveryChoicesTokensAtTheNextDecodeWorker) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens, 2);
  c.h.ToDecoding(c.p, c.d);
  c.h.Tokens(c.d, 0, kPrompt + 1, 3);
  c.h.Tokens(c.d, 1, kPrompt + 1, kTokens - 1);
  c.h.Finished(c.d, 1);
  c.h.Down(c.d);
  EXPECT_EQ(c.h.State(c.key), "recovering");
  const auto reserve = c.h.Last<wire::Reserve>(c.d2);
  ASSERT_EQ(reserve.sequences.size(), 1u);  // the finished one is not computed again
  EXPECT_EQ(reserve.sequences[0].choice, 0u);
  EXPECT_EQ(reserve.sequences[0].received.size(), 4u);
  c.h.ToDecoding(c.Prefill(), c.d2);
  EXPECT_EQ(c.h.Last<wire::Run>(c.Prefill()).sequences[0].received.size(), 4u);
  EXPECT_EQ(c.h.State(c.key), "recovering");  // until the next new token
  c.h.Tokens(c.d2, 0, kPrompt + 1, 4);        // three repeats, one new
  EXPECT_EQ(c.h.State(c.key), "decoding");
  c.h.ToEnd(c.d2);
  EXPECT_TRUE(c.h.EndOf(c.key)->ok());
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectTokens(c.key, 1, kTokens);
  EXPECT_EQ(c.h.Facts().recoveries, 1u);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, FinishesItselfWhenOnlyTheEndWasLost) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.ToDecoding(c.p, c.d);
  c.h.Tokens(c.d, 0, kPrompt + 1, kTokens - 1);
  c.h.Down(c.d);
  EXPECT_TRUE(c.h.EndOf(c.key)->ok());
  EXPECT_EQ(c.h.Log(c.key).finished.at(0), FinishReason::kLength);
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ARecoveryWithoutEndIsCutOff) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.ToDecoding(c.p, c.d);
  c.h.Down(c.d2);
  c.h.Down(c.d);
  EXPECT_EQ(c.h.State(c.key), "recovering");
  c.h.Advance(absl::Seconds(599));
  EXPECT_EQ(c.h.State(c.key), "recovering");
  c.h.Advance(absl::Seconds(2));
  EXPECT_TRUE(absl::IsDeadlineExceeded(*c.h.EndOf(c.key)));
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, MovesOffAWedgedDecodeWorker) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.ToDecoding(c.p, c.d);
  wire::WorkerMessage beat;
  beat.beat.emplace().is_wedged = true;
  c.h.Say(c.d, beat);
  EXPECT_EQ(c.h.State(c.key), "decoding");  // slow or wedged: it gets its time
  c.h.Advance(absl::Seconds(11));
  EXPECT_EQ(c.Decode(), c.d2);
  c.step = 0;
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, MovesASequenceParkedTooLong) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.ToDecoding(c.p, c.d);
  const SequenceHandle handle = c.h.Last<wire::Reserve>(c.d).sequences[0].handle;
  wire::WorkerMessage parked;
  parked.parked.push_back(handle);
  wire::WorkerMessage resumed;
  resumed.resumed.push_back(handle);
  c.h.Say(c.d, parked);
  c.h.Advance(absl::Seconds(20));
  c.h.Say(c.d, resumed);
  c.h.Advance(absl::Seconds(20));
  EXPECT_EQ(c.h.State(c.key), "decoding");
  c.h.Say(c.d, parked);
  c.h.Advance(absl::Seconds(31));
  EXPECT_EQ(c.Decode(), c.d2);
  c.step = 0;
  c.PlayOut();
  c.h.ExpectTokens(c.key, 0, kTokens);
  c.h.ExpectQuiet();
}

TEST(RouterCoreLoss, ADrainingDecodeWorkerKeepsItsSequencesAndGetsNoNewOnes) {
  Cluster c;
  c.key = c.h.Arrive(kPrompt, kTokens);
  c.h.ToDecoding(c.p, c.d);
  wire::WorkerMessage draining;
  draining.load.emplace().is_draining = true;
  c.h.Say(c.d, draining);
  EXPECT_EQ(c.h.State(c.key), "decoding");
  const RequestKey second = c.h.Arrive(kPrompt, kTokens);
  EXPECT_EQ(c.Decode(), c.d2);
  c.h.ToEnd(c.d);
  EXPECT_TRUE(c.h.EndOf(c.key)->ok());
  c.h.ClientGoneNow(second);
  c.h.ExpectQuiet();
}

}  // namespace
}  // namespace baton::router
