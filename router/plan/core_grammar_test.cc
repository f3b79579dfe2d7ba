// Workers without room for another grammar: requests with one wait or go elsewhere, others pass.
#include <vector>

#include "absl/time/time.h"
#include "gtest/gtest.h"

#include "router/plan/core_harness.h"

namespace baton::router {
namespace {

constexpr int kTokens = 4;
constexpr absl::Duration kBackoff = absl::Milliseconds(100);  // PlanConfig::min_backoff

struct Cluster {
  CoreHarness h;
  WorkerId p, d;
  explicit Cluster() : h(Config()), p(h.Up(1, kPrefillWorker)), d(h.Up(2, kDecodeWorker)) {}
  static PlanConfig Config() {
    PlanConfig config;
    config.max_worker_queue = absl::Seconds(100);
    return config;
  }
  RequestKey ArriveWithGrammar(int prompt_tokens = 300) {
    GenerateRequest request = h.MakeRequest(prompt_tokens, kTokens);
    request.masks.grammar = "start: /[0-9]+/";
    return h.Arrive(std::move(request));
  }
  void RefuseGrammar(WorkerId worker, wire::Stage stage) {
    h.Refuse(worker, stage, absl::StatusCode::kResourceExhausted, true);
  }
  size_t NumReserves(WorkerId decode) const { return h.Sent<wire::Reserve>(decode).size(); }
  void Load(WorkerId worker, uint32_t free_pages, bool is_draining = false) {
    wire::WorkerMessage message;
    message.load = wire::Load{.free_pages = free_pages, .is_draining = is_draining};
    h.Say(worker, std::move(message));
  }
  void PlayOut(RequestKey key) {
    h.ToDecoding(p, d);
    h.ToEnd(d);
    h.ExpectTokens(key, 0, kTokens);
  }
};

TEST(RouterCoreGrammar, ARefusedReserveHoldsBackGrammarsAlone) {
  Cluster c;
  const RequestKey first = c.ArriveWithGrammar(301);
  c.RefuseGrammar(c.d, wire::Stage::kReserve);
  EXPECT_EQ(c.h.State(first), "queued");
  std::vector<RequestKey> behind;  // more of them than a request without one may overtake otherwise
  for (int i = 0; i < 100; ++i) behind.push_back(c.ArriveWithGrammar());
  EXPECT_EQ(c.NumReserves(c.d), 1u);
  const RequestKey free = c.h.Arrive(300, kTokens);
  EXPECT_EQ(c.h.State(free), "booking");
  c.PlayOut(free);
  EXPECT_EQ(c.NumReserves(c.d), 2u);
  EXPECT_DOUBLE_EQ(c.h.Facts().decode_queue_seconds, 0) << "it has pages";
  for (const RequestKey key : behind) c.h.ClientGoneNow(key);
  c.h.Advance(kBackoff);
  EXPECT_EQ(c.h.State(first), "booking");
  EXPECT_EQ(c.h.Last<wire::Reserve>(c.d).prompt_tokens, 301u);
  c.PlayOut(first);
  c.h.ExpectQuiet();
}

TEST(RouterCoreGrammar, ThoseWithOneStayInTheirOrder) {
  Cluster c;
  c.ArriveWithGrammar(301);
  c.RefuseGrammar(c.d, wire::Stage::kReserve);
  c.ArriveWithGrammar(302);
  c.h.Advance(kBackoff);
  const auto reserves = c.h.Sent<wire::Reserve>(c.d);
  ASSERT_EQ(reserves.size(), 3u);
  EXPECT_EQ(reserves[1].prompt_tokens, 301u);
  EXPECT_EQ(reserves[2].prompt_tokens, 302u);
}

TEST(RouterCoreGrammar, AnotherWorkerTakesThem) {
  Cluster c;
  const WorkerId d2 = c.h.Up(3, kDecodeWorker);
  c.ArriveWithGrammar();
  c.RefuseGrammar(c.d, wire::Stage::kReserve);
  EXPECT_EQ(c.NumReserves(d2), 1u);
  c.ArriveWithGrammar();
  EXPECT_EQ(c.NumReserves(d2), 2u);
  c.h.Arrive();
  EXPECT_EQ(c.NumReserves(c.d), 2u);
}

// Which pool to grow is seen as without grammars, and nobody overtakes.
TEST(RouterCoreGrammar, ALackOfPagesIsNoneOfGrammarRoom) {
  Cluster c;
  const RequestKey first = c.ArriveWithGrammar(301);
  c.RefuseGrammar(c.d, wire::Stage::kReserve);
  c.Load(c.d, 1);
  const RequestKey small = c.h.Arrive(10, 1);
  c.h.Advance(kBackoff / 2);
  EXPECT_EQ(c.h.State(small), "queued");
  EXPECT_GT(c.h.Facts().decode_queue_seconds, 0);
  c.h.Advance(kBackoff);
  c.h.ClientGoneNow(small);
  c.Load(c.d, 500);
  c.PlayOut(first);
  c.h.ExpectQuiet();
}

// Workers of another model are no reason to hold anybody else back, whichever is asked last.
TEST(RouterCoreGrammar, AnotherModelsWorkersChangeNothing) {
  for (const bool has_decode : {false, true}) {
    Cluster c;
    WorkerSpec spec = kPrefillWorker;
    spec.weights = spec.layout = 2;
    c.h.Up(5, spec);
    if (has_decode) {
      spec = kDecodeWorker;
      spec.weights = spec.layout = 2;
      spec.pages = 5;
      const WorkerId other = c.h.Up(6, spec);
      c.Load(other, 0);
    }
    const RequestKey held = c.ArriveWithGrammar();
    c.RefuseGrammar(c.d, wire::Stage::kReserve);
    EXPECT_EQ(c.h.State(held), "queued");
    std::vector<RequestKey> behind;
    for (int i = 0; i < 100; ++i) behind.push_back(c.ArriveWithGrammar());
    EXPECT_EQ(c.h.State(c.h.Arrive()), "booking");
  }
}

TEST(RouterCoreGrammar, OneThatNoWorkerServesHoldsBackNoOthers) {
  Cluster c;
  const WorkerId d2 = c.h.Up(3, kDecodeWorker);
  const RequestKey refused = c.ArriveWithGrammar();
  c.RefuseGrammar(c.d, wire::Stage::kReserve);
  EXPECT_EQ(c.NumReserves(d2), 1u);
  const RequestKey unserved = c.ArriveWithGrammar(static_cast<int>(kDecodeWorker.max_context));
  EXPECT_EQ(c.h.State(unserved), "queued");
  const RequestKey other = c.ArriveWithGrammar();
  EXPECT_EQ(c.h.State(other), "booking");
  EXPECT_EQ(c.NumReserves(d2), 2u);
  for (const RequestKey key : {refused, unserved, other}) c.h.ClientGoneNow(key);
  c.h.ExpectQuiet();
}

TEST(RouterCoreGrammar, ARefusedRunHoldsBackGrammarsAlone) {
  Cluster c;
  const RequestKey key = c.ArriveWithGrammar();
  c.h.Reserved(c.d);
  c.RefuseGrammar(c.p, wire::Stage::kRun);
  c.h.Retargeted(c.d);
  EXPECT_EQ(c.h.State(key), "queued") << "its landing is of no use to anyone";
  const RequestKey free = c.h.Arrive(300, kTokens);
  c.PlayOut(free);
  EXPECT_EQ(c.h.State(key), "queued");
  c.h.Advance(kBackoff);
  c.PlayOut(key);
  c.h.ExpectQuiet();
}

// One that grew and found no more memory, say: again later, and not for ever.
TEST(RouterCoreGrammar, AFailureForWantOfMemoryHoldsThemBackToo) {
  for (const bool is_prefill : {true, false}) {
    Cluster c;
    const RequestKey key = c.ArriveWithGrammar();
    for (int attempt = 1; attempt <= 3; ++attempt) {
      EXPECT_EQ(c.h.State(key), "booking");
      c.h.Reserved(c.d);
      c.h.FailTransfer(is_prefill ? c.p : c.d, absl::StatusCode::kResourceExhausted);
      if (c.h.State(key) == "retarget") c.h.Retargeted(c.d);
      if (attempt == 3) break;
      EXPECT_EQ(c.h.State(key), "queued");
      const RequestKey free = c.h.Arrive(300, kTokens);
      EXPECT_EQ(c.h.State(free), "booking");
      c.h.ClientGoneNow(free);
      c.h.Advance(kBackoff);
    }
    EXPECT_TRUE(absl::IsResourceExhausted(*c.h.EndOf(key)));
    EXPECT_GE(c.h.Log(key).end.retry_after, absl::Seconds(1));
    c.h.ExpectQuiet();
  }
}

TEST(RouterCoreGrammar, NoSequenceMovesToAWorkerThatRefusesItsGrammar) {
  Cluster c;
  const WorkerId d2 = c.h.Up(3, kDecodeWorker);
  c.Load(d2, 1);
  const RequestKey key = c.ArriveWithGrammar();
  c.h.ToDecoding(c.p, c.d);
  c.Load(d2, 500);
  c.Load(c.d, 1);
  const RequestKey other = c.ArriveWithGrammar();
  c.RefuseGrammar(d2, wire::Stage::kReserve);
  c.h.ClientGoneNow(other);
  c.Load(c.d, 500, true);
  EXPECT_EQ(c.h.State(key), "decoding");
  c.h.Advance(kBackoff);
  EXPECT_EQ(c.h.State(key), "moving");
}

}  // namespace
}  // namespace baton::router
