// Sequences that leave a draining decode worker: every edge of contracts.md 4.2, row Moving.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "router/plan/core_harness.h"

namespace baton::router {
namespace {

constexpr int kPrompt = 300;
constexpr int kTokens = 9;
constexpr int kBefore = 4;  // received when the worker drains

struct Cluster {
  CoreHarness h;
  WorkerId p, d, d2;
  RequestKey key;
  explicit Cluster(const PlanConfig& config = {}) : h(config) {
    p = h.Up(1, kPrefillWorker);
    d = h.Up(2, kDecodeWorker);
    d2 = h.Up(3, kDecodeWorker);
    Load(d2, false);
  }
  void Load(WorkerId worker, bool is_draining, uint32_t free_pages = 500) {
    wire::WorkerMessage message;
    message.load = wire::Load{.free_pages = free_pages, .is_draining = is_draining};
    h.Say(worker, std::move(message));
  }
  // One request in Decoding at d, with kBefore tokens.
  void Decode(int num_choices = 1) {
    Load(d2, false, 1);  // so that d is chosen
    key = h.Arrive(kPrompt, kTokens, num_choices);
    h.ToDecoding(p, d);
    for (int i = 0; i < num_choices; ++i) h.Tokens(d, i, kPrompt + 1, kBefore - 1);
    Load(d2, false);
  }
  SequenceHandle Handle(WorkerId worker) const {
    return h.Last<wire::Reserve>(worker).sequences[0].handle;
  }
  void Parked() {
    wire::WorkerMessage message;
    message.parked.push_back(Handle(d));
    h.Say(d, std::move(message));
  }
  void Landed(int count = kBefore) {
    wire::Landed item;
    item.transfer = h.Last<wire::Reserve>(d2).transfer;
    item.attempt = 1;
    item.tokens.push_back(CoreHarness::TokenAt(0, kPrompt + count - 1));
    wire::WorkerMessage message;
    message.landed.push_back(std::move(item));
    h.Say(d2, std::move(message));
  }
  void Failed(WorkerId worker) {
    wire::Failed item;
    item.transfer = h.Last<wire::Reserve>(d2).transfer;
    item.code = absl::StatusCode::kDataLoss;
    wire::WorkerMessage message;
    message.failed.push_back(std::move(item));
    h.Say(worker, std::move(message));
  }
  void RefuseMove(const TransferId& transfer) {
    wire::Refused item;
    item.transfer = transfer;
    item.stage = wire::Stage::kMove;
    item.code = absl::StatusCode::kUnavailable;
    wire::WorkerMessage message;
    message.refused.push_back(std::move(item));
    h.Say(d, std::move(message));
  }
};

// Where the move stands when the blow falls; each reaches the one before first.
struct Stage {
  std::string name;
  std::function<void(Cluster&)> reach;
};
const std::vector<Stage>& Stages() {
  static const std::vector<Stage> stages = {
      {"stopping", [](Cluster& c) { c.Load(c.d, true); }},
      {"booking",
       [](Cluster& c) {
         c.Load(c.d, true);
         c.Parked();
       }},
      {"sending",
       [](Cluster& c) {
         c.Load(c.d, true);
         c.Parked();
         c.h.Reserved(c.d2);
       }},
  };
  return stages;
}

TEST(RouterCoreMove, HandsASequenceOnWithoutLosingAToken) {
  Cluster c;
  c.Decode();
  c.Load(c.d, true);
  EXPECT_EQ(c.h.State(c.key), "moving");
  const MoveSequence stop = c.h.Last<MoveSequence>(c.d);
  EXPECT_EQ(stop.move.handle, c.Handle(c.d));
  EXPECT_FALSE(stop.move.landing.has_value());
  EXPECT_TRUE(c.h.Sent<wire::Reserve>(c.d2).empty());
  c.h.Tokens(c.d, 0, kPrompt + kBefore, 1);  // of the step that was running
  c.Parked();
  const auto reserve = c.h.Last<wire::Reserve>(c.d2);
  EXPECT_EQ(reserve.prompt_tokens, uint32_t{kPrompt});
  EXPECT_EQ(reserve.sequences[0].received.size(), size_t{kBefore});  // all but the last
  EXPECT_NE(reserve.transfer, c.h.Last<wire::Reserve>(c.d).transfer);
  c.h.Reserved(c.d2);
  const MoveSequence move = c.h.Last<MoveSequence>(c.d);
  ASSERT_TRUE(move.move.landing.has_value());
  EXPECT_EQ(move.move.landing->kv_address, "kv-3");
  EXPECT_EQ(move.move.transfer, reserve.transfer);
  EXPECT_TRUE(c.h.Sent<wire::Cancel>(c.d).empty());
  const auto repeats = c.h.Facts().repeats_dropped;
  c.Landed(kBefore + 1);
  EXPECT_EQ(c.h.State(c.key), "decoding");
  EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
  EXPECT_EQ(c.h.Facts().repeats_dropped, repeats + 1);
  c.h.Tokens(c.d2, 0, kPrompt + kBefore + 1, kTokens - kBefore - 1);
  c.h.Finished(c.d2, 0);
  EXPECT_TRUE(c.h.EndOf(c.key)->ok());
  c.h.ExpectTokens(c.key, 0, kTokens);
  EXPECT_EQ(c.h.Facts().moves.moved, 1u);
  EXPECT_EQ(c.h.Facts().recoveries, 0u);
  EXPECT_EQ(c.h.Facts().repeat_mismatches, 0u);
  EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, AFinishThatWasOnItsWayEndsTheRequest) {
  Cluster c;
  c.Decode();
  c.Load(c.d, true);
  c.h.ToEnd(c.d);
  EXPECT_TRUE(c.h.EndOf(c.key)->ok());
  c.h.ExpectTokens(c.key, 0, kTokens);
  EXPECT_EQ(c.h.Facts().moves.ended, 1u);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, EveryBlowInEveryStageEndsInRecovery) {
  struct Blow {
    std::string name;
    std::function<void(Cluster&)> strike;
  };
  const std::vector<Blow> blows = {
      {"source_dies", [](Cluster& c) { c.h.Down(c.d); }},
      {"target_dies", [](Cluster& c) { c.h.Down(c.d2); }},
      {"late", [](Cluster& c) { c.h.Advance(absl::Seconds(9)); }},
      {"source_fails",
       [](Cluster& c) {
         wire::Failed item;
         item.handle = c.Handle(c.d);
         wire::WorkerMessage message;
         message.failed.push_back(item);
         c.h.Say(c.d, message);
       }},
  };
  for (const Stage& stage : Stages())
    for (const Blow& blow : blows) {
      SCOPED_TRACE(stage.name + " " + blow.name);
      Cluster c;
      c.Decode();
      stage.reach(c);
      ASSERT_EQ(c.h.State(c.key), "moving");
      blow.strike(c);
      EXPECT_EQ(c.h.State(c.key), "recovering");
      EXPECT_EQ(c.h.Facts().moves.recovered, 1u);
      EXPECT_EQ(c.h.Facts().recoveries, 1u);
      const WorkerId d3 = c.h.Up(9, kDecodeWorker);
      for (const WorkerId decode : {c.d2, d3}) {
        const auto reserves = c.h.Sent<wire::Reserve>(decode);
        if (reserves.empty() || reserves.back().sequences[0].received.size() != kBefore) continue;
        c.h.ToDecoding(c.p, decode);
        c.h.ToEnd(decode);
        break;
      }
      ASSERT_TRUE(c.h.EndOf(c.key).has_value());
      c.h.ExpectTokens(c.key, 0, kTokens);
      c.h.ExpectQuiet();
    }
}

TEST(RouterCoreMove, ARefusalOrFailureOfTheNewLandingEndsInRecovery) {
  const std::vector<std::function<void(Cluster&)>> blows = {
      [](Cluster& c) {
        Stages()[1].reach(c);
        c.h.Refuse(c.d2, wire::Stage::kReserve, absl::StatusCode::kResourceExhausted);
      },
      [](Cluster& c) {
        Stages()[2].reach(c);
        c.RefuseMove(c.h.Last<wire::Reserve>(c.d2).transfer);
      },
      [](Cluster& c) {
        Stages()[2].reach(c);
        c.Failed(c.d);
      },
      [](Cluster& c) {
        Stages()[2].reach(c);
        c.Failed(c.d2);
      },
  };
  for (size_t i = 0; i < blows.size(); ++i) {
    SCOPED_TRACE(i);
    Cluster c;
    c.Decode();
    blows[i](c);
    EXPECT_EQ(c.h.State(c.key), "recovering");
    EXPECT_EQ(c.h.Facts().moves.recovered, 1u);
    EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
    EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d2).size(), 1u);
    c.h.ClientGoneNow(c.key);
    c.h.ExpectQuiet();
  }
}

TEST(RouterCoreMove, WhoeverWasToldIsCancelledOnceWhenTheRequestEnds) {
  const std::vector<std::pair<std::string, std::function<void(Cluster&)>>> ends = {
      {"client gone", [](Cluster& c) { c.h.ClientGoneNow(c.key); }},
      {"cancelled",
       [](Cluster& c) { c.h.On(CancelChoice{.key = c.key, .choice = 0, .reason = "stop"}); }},
      {"deadline", [](Cluster& c) { c.h.Advance(absl::Milliseconds(700)); }},
  };
  for (size_t stage = 0; stage < Stages().size(); ++stage)
    for (const auto& [name, end] : ends) {
      SCOPED_TRACE(Stages()[stage].name + " " + name);
      Cluster c;
      c.Load(c.d2, false, 1);
      GenerateRequest request = c.h.MakeRequest(kPrompt, kTokens);
      request.total_deadline = c.h.now() + absl::Milliseconds(600);
      c.key = c.h.Arrive(std::move(request));
      c.h.ToDecoding(c.p, c.d);
      c.h.Tokens(c.d, 0, kPrompt + 1, kBefore - 1);
      c.Load(c.d2, false);
      Stages()[stage].reach(c);
      ASSERT_EQ(c.h.State(c.key), "moving");
      end(c);
      EXPECT_TRUE(c.h.EndOf(c.key).has_value());
      EXPECT_EQ(c.h.Facts().moves.ended, 1u);
      EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d).size(), 1u);
      EXPECT_EQ(c.h.Sent<wire::Cancel>(c.d2).size(), stage == 0 ? 0u : 1u);
      c.h.ExpectQuiet();
    }
}

TEST(RouterCoreMove, MovesOnlyAFewAtOnce) {
  PlanConfig config;
  config.max_moves_per_worker = 2;
  Cluster c(config);
  c.Load(c.d2, false, 1);
  std::vector<RequestKey> keys;
  std::vector<SequenceHandle> handles;
  for (int i = 0; i < 4; ++i) {
    keys.push_back(c.h.Arrive(kPrompt, kTokens));
    c.h.ToDecoding(c.p, c.d);
    handles.push_back(c.Handle(c.d));
  }
  c.Load(c.d2, false);
  c.Load(c.d, true);
  EXPECT_EQ(c.h.State(keys[0]), "moving");
  EXPECT_EQ(c.h.State(keys[1]), "moving");
  EXPECT_EQ(c.h.State(keys[2]), "decoding");
  wire::WorkerMessage parked;
  parked.parked.push_back(handles[0]);
  c.h.Say(c.d, parked);
  c.h.Reserved(c.d2);
  c.Landed(1);
  EXPECT_EQ(c.h.State(keys[0]), "decoding");
  EXPECT_EQ(c.h.State(keys[2]), "moving");
  EXPECT_EQ(c.h.State(keys[3]), "decoding");
  for (const RequestKey key : keys) c.h.ClientGoneNow(key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, ARefusedStopLeavesTheSequenceWhereItIsForAWhile) {
  for (const Stage& stage : Stages()) {
    SCOPED_TRACE(stage.name);
    Cluster c;
    c.Decode();
    stage.reach(c);
    const size_t told = c.h.Sent<MoveSequence>(c.d).size();
    c.RefuseMove(c.h.Last<wire::Reserve>(c.d).transfer);
    EXPECT_EQ(c.h.State(c.key), "decoding");
    EXPECT_EQ(c.h.Facts().moves.refused, 1u);
    EXPECT_EQ(c.h.Facts().recoveries, 0u);
    EXPECT_EQ(c.h.Sent<MoveSequence>(c.d).size(), told);
    c.h.Advance(absl::Milliseconds(200));
    EXPECT_EQ(c.h.State(c.key), "moving");
    c.h.ToEnd(c.d);
    EXPECT_TRUE(c.h.EndOf(c.key)->ok());
    c.h.ExpectTokens(c.key, 0, kTokens);
    c.h.ExpectQuiet();
  }
}

// Parked for want of pages: it did not stop for the move, which begins anew.
TEST(RouterCoreMove, ASequenceThatRunsOnAfterParkedIsStoppedAgain) {
  for (const bool is_told : {false, true}) {
    SCOPED_TRACE(is_told);
    Cluster c;
    c.Decode();
    Stages()[2].reach(c);
    const auto first = c.h.Last<wire::Reserve>(c.d2).transfer;
    if (is_told) {
      wire::WorkerMessage message;
      message.resumed.push_back(c.Handle(c.d));
      c.h.Say(c.d, std::move(message));
    } else {
      c.h.Tokens(c.d, 0, kPrompt + kBefore, 1);
    }
    EXPECT_EQ(c.h.Last<wire::Cancel>(c.d2).transfer, first);
    EXPECT_FALSE(c.h.Last<MoveSequence>(c.d).move.landing.has_value());
    EXPECT_EQ(c.h.State(c.key), "moving");
    c.h.ToEnd(c.d);
    EXPECT_TRUE(c.h.EndOf(c.key)->ok());
    c.h.ExpectTokens(c.key, 0, kTokens);
    EXPECT_EQ(c.h.Facts().recoveries, 0u);
    c.h.ExpectQuiet();
  }
}

TEST(RouterCoreMove, TakesAnotherTargetIfTheFirstIsNoLongerReady) {
  Cluster c;
  c.Decode();
  c.Load(c.d, true);
  c.Load(c.d2, true);
  const WorkerId d3 = c.h.Up(9, kDecodeWorker);
  c.Load(d3, false);
  c.Parked();
  EXPECT_EQ(c.h.State(c.key), "moving");
  EXPECT_TRUE(c.h.Sent<wire::Reserve>(c.d2).empty());
  EXPECT_EQ(c.h.Sent<wire::Reserve>(d3).size(), 1u);
  c.h.ClientGoneNow(c.key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, SendingMayTakeAsLongAsItsPagesNeed) {
  Cluster c;
  c.Load(c.d2, false, 1);
  c.key = c.h.Arrive(99'000, kTokens);
  c.h.ToDecoding(c.p, c.d);
  wire::WorkerMessage fast;
  fast.load = wire::Load{.prefill_tokens_per_s = 1'000'000};
  c.h.Say(c.p, std::move(fast));
  c.Load(c.d2, false);
  Stages()[2].reach(c);
  c.h.Advance(absl::Seconds(3.8));  // 387 pages at 100 a second
  EXPECT_EQ(c.h.State(c.key), "moving");
  c.h.Advance(absl::Seconds(0.2));
  EXPECT_EQ(c.h.State(c.key), "recovering");
  c.h.ClientGoneNow(c.key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, WaitsForTheReportOnThePrompt) {
  Cluster c;
  c.Load(c.d2, false, 1);
  GenerateRequest request = c.h.MakeRequest(kPrompt, kTokens);
  request.prompt_logprobs = 0;
  c.key = c.h.Arrive(std::move(request));
  c.h.Reserved(c.d);
  c.h.Landed(c.d);
  c.Load(c.d2, false);
  c.Load(c.d, true);
  EXPECT_EQ(c.h.State(c.key), "decoding");
  wire::WorkerMessage message;
  message.prompt_logprobs.push_back({.transfer = c.h.Last<wire::Run>(c.p).transfer,
                                     .first_position = 1,
                                     .tokens = std::vector<TokenRecord>(kPrompt - 1)});
  c.h.Say(c.p, std::move(message));
  c.Load(c.d, true);
  EXPECT_EQ(c.h.State(c.key), "moving");
  c.h.ClientGoneNow(c.key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreMove, WhatCannotMoveFinishesInPlace) {
  const std::vector<std::function<void(Cluster&)>> reasons = {
      [](Cluster& c) {  // no room
        c.Decode();
        c.Load(c.d2, false, 1);
      },
      [](Cluster& c) {  // another class
        c.Decode();
        WorkerSpec other = kDecodeWorker;
        other.decode_class = 2;
        c.h.Up(3, other);
        c.Load(c.d2, false);
      },
      [](Cluster& c) { c.Decode(2); },  // shared pages
  };
  for (size_t i = 0; i < reasons.size(); ++i) {
    SCOPED_TRACE(i);
    Cluster c;
    reasons[i](c);
    c.Load(c.d, true);
    EXPECT_EQ(c.h.State(c.key), "decoding");
    EXPECT_TRUE(c.h.Sent<MoveSequence>(c.d).empty());
    c.h.ToEnd(c.d);
    EXPECT_TRUE(c.h.EndOf(c.key)->ok());
    c.h.ExpectQuiet();
  }
}

}  // namespace
}  // namespace baton::router
