#include "kernels/cpu/sample.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/philox.h"
#include "common/rng.h"
#include "kernels/cpu/allowed_set.h"
#include "kernels/cpu/sample_loops.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {
namespace {

using ::testing::ElementsAre;

constexpr float kInf = std::numeric_limits<float>::infinity();

// Owns what a SampleRow points to.
struct Fixture {
  SamplingSpec spec;
  FinishRules finish;
  std::vector<int32_t> prompt;
  std::vector<int32_t> generated;
  std::vector<uint32_t> mask;
  uint64_t key = Mix64(1234);
  int64_t position = 1000;
  bool is_draft = false;

  SampleRow Row() const {
    SampleRow row;
    row.spec = &spec;
    row.finish = &finish;
    row.key = key;
    row.position = position;
    row.prompt = prompt;
    row.generated = generated;
    row.token_mask = mask;
    row.is_draft = is_draft;
    return row;
  }

  TokenRecord Record(const std::vector<float>& logits) const {
    SampleScratch scratch;
    TokenRecord chosen;
    bool is_empty = false;
    SampleRowOnCpu(Row(), logits, chosen, is_empty, scratch);
    EXPECT_FALSE(is_empty);
    return chosen;
  }
  int32_t Token(const std::vector<float>& logits) const { return Record(logits).token; }

  bool IsEmpty(const std::vector<float>& logits) const {
    SampleScratch scratch;
    TokenRecord chosen;
    bool is_empty = false;
    SampleRowOnCpu(Row(), logits, chosen, is_empty, scratch);
    return is_empty;
  }
};

Fixture Greedy() {
  Fixture fixture;
  fixture.spec.greedy = true;
  return fixture;
}

// Roughly normal logits.
std::vector<float> RandomLogits(SeededRng& rng, size_t size, float width) {
  std::vector<float> logits(size);
  for (float& logit : logits) {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += rng.Uniform() - 0.5;
    logit = width * static_cast<float>(sum);
  }
  return logits;
}

TEST(Noise, MatchesItsVectors) {
  const NoiseSource noise{Mix64(1234), 1000};
  EXPECT_THAT(noise.Words(1), ElementsAre(0x62338b63u, 0x1ebf999cu, 0x3fe14668u, 0xdfd32b20u));
  EXPECT_EQ(Mix64(1234), 0xbb0cf61b2f181cdbu);
  EXPECT_EQ(Mix64(0), 0xe220a8397b1dcdafu);
}

TEST(Greedy, TakesTheBestAndOfEqualOnesTheFirst) {
  EXPECT_EQ(Greedy().Token({0, 3, 1, 3}), 1);
  EXPECT_EQ(Greedy().Token({-kInf, -5, -kInf}), 1);
}

TEST(Penalties, RepetitionCountsPromptAndGeneratedOnce) {
  Fixture fixture = Greedy();
  fixture.spec.repetition_penalty = 2.0f;
  fixture.prompt = {0, 0, 0};
  fixture.generated = {1};
  EXPECT_EQ(fixture.Token({4.0f, 3.9f, 2.1f}), 2);     // 2, 1.95, 2.1
  EXPECT_EQ(fixture.Token({-1.0f, -2.5f, -2.1f}), 0);  // -2, -5, -2.1
}

TEST(Penalties, FrequencyAndPresenceCountGeneratedOnly) {
  Fixture fixture = Greedy();
  fixture.spec.frequency_penalty = 0.5f;
  fixture.spec.presence_penalty = 0.25f;
  fixture.prompt = {2, 2, 2, 2};
  fixture.generated = {0, 0, 1};
  EXPECT_EQ(fixture.Token({2.0f, 1.7f, 0.9f}), 1);   // 0.75, 0.95, 0.9
  EXPECT_EQ(fixture.Token({2.24f, 1.7f, 0.9f}), 0);  // 0.99
}

TEST(Penalties, LeaveNoTraceInTheScratch) {
  Fixture fixture = Greedy();
  fixture.spec.repetition_penalty = 1.5f;
  fixture.spec.frequency_penalty = 1.0f;
  fixture.prompt = {0, 1, 9};  // 9 is no token here
  fixture.generated = {0, 1, 1};
  SampleScratch scratch;
  TokenRecord chosen;
  bool is_empty = false;
  const std::vector<float> logits = {1, 1, 1};
  SampleRowOnCpu(fixture.Row(), logits, chosen, is_empty, scratch);
  EXPECT_EQ(chosen.token, 2);
  EXPECT_THAT(scratch.counts, ElementsAre(0, 0, 0));
}

TEST(Masks, BiasAllowedTokensAndGrammarApply) {
  Fixture fixture = Greedy();
  fixture.spec.logit_bias = {{2, 5.0f}};
  EXPECT_EQ(fixture.Token({3, 2, 1, 0}), 2);
  fixture.spec.allowed_tokens = {1, 3};
  EXPECT_EQ(fixture.Token({3, 2, 1, 0}), 1);
  fixture.mask = {0b1001};
  EXPECT_EQ(fixture.Token({3, 2, 1, 0}), 3);
  fixture.mask = {0b0101};
  EXPECT_TRUE(fixture.IsEmpty({3, 2, 1, 0}));
}

TEST(Masks, BadWordsAreBannedAfterTheirBeginning) {
  Fixture fixture = Greedy();
  fixture.spec.bad_words = {{3}, {1, 2, 0}};
  EXPECT_EQ(fixture.Token({3, 0, 2, 9}), 0);
  fixture.prompt = {1};
  fixture.generated = {2};
  EXPECT_EQ(fixture.Token({3, 0, 2, 9}), 2);
  fixture.prompt = {};
  EXPECT_EQ(fixture.Token({3, 0, 2, 9}), 0);
}

TEST(Masks, StopTokensAreBannedBelowMinTokens) {
  Fixture fixture = Greedy();
  fixture.finish.stop_tokens = {1};
  fixture.finish.min_tokens = 2;
  fixture.generated = {0};
  EXPECT_EQ(fixture.Token({3, 9}), 0);
  fixture.generated = {0, 0};
  EXPECT_EQ(fixture.Token({3, 9}), 1);
}

TEST(Drafts, SkipPenaltiesMasksAndLogprobs) {
  Fixture fixture = Greedy();
  fixture.is_draft = true;
  fixture.spec.top_logprobs = 2;
  fixture.spec.allowed_tokens = {0};
  fixture.spec.repetition_penalty = 10;
  fixture.prompt = {1};
  const TokenRecord record = fixture.Record({1, 9, 0});
  EXPECT_EQ(record, (TokenRecord{.token = 1, .logprob = 0, .top = {}}));
}

TEST(Drafts, UseTheSameNoise) {
  SeededRng rng(11);
  for (int i = 0; i < 50; ++i) {
    Fixture fixture;
    fixture.position = i;
    const std::vector<float> logits = RandomLogits(rng, 300, 2);
    const int32_t token = fixture.Token(logits);
    fixture.is_draft = true;
    EXPECT_EQ(fixture.Token(logits), token);
  }
}

// The argmax without any shortcut.
int32_t PlainNoisyArgMax(const std::vector<float>& scores, uint64_t key, int64_t position) {
  BestToken best;
  for (size_t v = 0; v < scores.size(); ++v) {
    const auto words =
        Philox4x32({static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)},
                   {static_cast<uint32_t>(position), 0, static_cast<uint32_t>(v / 4), 0});
    best.Offer(scores[v] + Gumbel(words[v % 4]), static_cast<int32_t>(v));
  }
  return best.token;
}

TEST(NoisyArgMax, ShortcutsNeverChangeTheChoice) {
  SeededRng rng(5);
  SampleScratch scratch;
  for (const float inv_t : {0.01f, 0.5f, 1.0f, 7.0f, 1e5f}) {
    for (int i = 0; i < 200; ++i) {
      Fixture fixture;
      fixture.spec.inv_temperature = inv_t;
      fixture.position = i;
      std::vector<float> logits = RandomLogits(rng, 1 + rng.Below(999), 6);
      std::vector<float> scaled = logits;
      for (float& score : scaled) score *= inv_t;
      const int32_t expected = PlainNoisyArgMax(scaled, fixture.key, i);
      for (const bool has_fma : {false, IsSupported(Isa::kAvx2)}) {
        scratch.has_fma = has_fma;
        TokenRecord chosen;
        bool is_empty = false;
        SampleRowOnCpu(fixture.Row(), logits, chosen, is_empty, scratch);
        ASSERT_EQ(chosen.token, expected) << inv_t << " " << i;
      }
    }
  }
}

// contracts.md 2.3 by sorting everything, with 128-bit integers.
std::vector<int32_t> SortedReference(const SamplingSpec& spec, std::vector<uint64_t> masses) {
  std::vector<int32_t> order(masses.size());
  for (size_t v = 0; v < order.size(); ++v) order[v] = static_cast<int32_t>(v);
  const auto mass = [&masses](int32_t v) { return masses[static_cast<size_t>(v)]; };
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return mass(a) > mass(b); });
  if (spec.top_k > 0 && static_cast<size_t>(spec.top_k) < order.size())
    order.resize(static_cast<size_t>(spec.top_k));
  if (spec.top_p < kTopPOff) {
    unsigned __int128 total = 0;
    for (int32_t v : order) total += mass(v);
    unsigned __int128 sum = 0;
    size_t length = 0;
    // The shortest non-empty prefix with sum * 2^32 >= P * total and sum >= 1.
    while (length < order.size() && (sum == 0 || sum << 32 < spec.top_p * total))
      sum += mass(order[length++]);
    order.resize(length);
  }
  std::erase_if(order, [&](int32_t v) { return mass(v) < spec.min_p; });
  std::sort(order.begin(), order.end());
  return order;
}

TEST(AllowedSet, EqualsTheSortedReference) {
  SeededRng rng(17);
  for (int i = 0; i < 2'000; ++i) {
    SamplingSpec spec;
    if (rng.Below(2) == 0) spec.top_k = static_cast<int>(1 + rng.Below(400));
    if (rng.Below(2) == 0) spec.top_p = rng.Below(kTopPOff);
    if (rng.Below(2) == 0) spec.min_p = rng.Below(kTopPOff >> rng.Below(20));
    const std::vector<float> logits = RandomLogits(rng, 1 + rng.Below(600), 8);
    const float top = *std::max_element(logits.begin(), logits.end());
    const bool has_ties = rng.Below(2) == 0;
    std::vector<uint64_t> masses;
    for (float logit : logits)
      masses.push_back(Mass(has_ties ? std::floor(logit) - std::floor(top) : logit - top));
    std::vector<uint64_t> keys;
    for (size_t v = 0; v < masses.size(); ++v)
      keys.push_back(RankKey(masses[v], static_cast<int32_t>(v)));
    KeepAllowed(spec, keys);
    std::vector<int32_t> kept;
    for (uint64_t key : keys) kept.push_back(TokenOf(key));
    std::sort(kept.begin(), kept.end());
    ASSERT_EQ(kept, SortedReference(spec, masses)) << i;
  }
}

TEST(AllowedSet, TiesGoToTheLowerId) {
  SamplingSpec spec;
  spec.top_k = 2;
  std::vector<uint64_t> keys = {RankKey(5, 3), RankKey(5, 0), RankKey(7, 2), RankKey(5, 1)};
  KeepAllowed(spec, keys);
  std::sort(keys.begin(), keys.end(), std::greater<>());
  EXPECT_THAT(keys, ElementsAre(RankKey(7, 2), RankKey(5, 0)));
}

TEST(AllowedSet, ForbiddenTokensTakeNoRank) {
  Fixture fixture;
  fixture.spec.top_k = 2;
  fixture.mask = {0b1100};
  for (int64_t position = 0; position < 200; ++position) {
    fixture.position = position;
    EXPECT_GE(fixture.Token({50, 50, 1, 1}), 2);
  }
}

TEST(AllowedSet, TruncationBoundsWhatIsChosen) {
  Fixture fixture;
  fixture.spec.top_p = kTopPOff / 2;
  for (int64_t position = 0; position < 500; ++position) {
    fixture.position = position;
    EXPECT_LT(fixture.Token({1, 1, 0.9f, 0.1f}), 2);  // 0.30 0.30 0.27 0.12
  }
}

TEST(AllowedSet, AnInfiniteLogitIsTheBestAndStays) {
  const std::vector<float> logits = {3, 1, kInf, -kInf, kInf, 2};
  for (const int which : {0, 1, 2, 3}) {
    Fixture fixture;
    if (which == 0) fixture.spec.min_p = uint64_t{1} << 30;
    if (which == 1) fixture.spec.top_k = 1;
    if (which == 2) fixture.spec.top_p = kTopPOff / 2;
    fixture.spec.top_logprobs = 2;
    const TokenRecord record = fixture.Record(logits);
    EXPECT_EQ(record.token, 2) << which;
    EXPECT_NEAR(record.logprob, -std::log(2.0f), 1e-6f) << which;
  }
}

TEST(Logprobs, ComeFromTheRawLogits) {
  Fixture fixture = Greedy();
  fixture.spec.top_logprobs = 2;
  fixture.spec.allowed_tokens = {3};
  const TokenRecord record = fixture.Record({2, 1, 2, 0});
  const double sum = 2 + std::exp(-1.0) + std::exp(-2.0);
  EXPECT_EQ(record.token, 3);
  EXPECT_NEAR(static_cast<double>(record.logprob), -2 - std::log(sum), 1e-6);
  ASSERT_EQ(record.top.size(), 2u);
  EXPECT_EQ(record.top[0].token, 0);
  EXPECT_EQ(record.top[1].token, 2);
  EXPECT_NEAR(static_cast<double>(record.top[1].logprob), -std::log(sum), 1e-6);
  fixture.spec.top_logprobs = 4;
  EXPECT_EQ(fixture.Record({std::nanf(""), 1, -kInf, 0}).top.size(), 2u);
  fixture.spec.top_logprobs = 0;
  EXPECT_TRUE(fixture.Record({2, 1, 2, 0}).top.empty());
  EXPECT_NE(fixture.Record({2, 1, 2, 0}).logprob, 0);
  fixture.spec.top_logprobs = -1;
  EXPECT_EQ(fixture.Record({2, 1, 2, 0}).logprob, 0);
}

TEST(Rows, AreTheSameInAnyOrderAndCompany) {
  SeededRng rng(23);
  std::vector<Fixture> rows(64);
  std::vector<std::vector<float>> logits;
  std::vector<TokenRecord> alone;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].key = rng.Next();
    rows[i].spec.top_k = static_cast<int>(rng.Below(3)) * 50;
    rows[i].spec.top_logprobs = 5;
    rows[i].spec.repetition_penalty = i % 2 == 0 ? 1.0f : 1.3f;
    rows[i].prompt = {static_cast<int32_t>(rng.Below(500)), 7, 7};
    logits.push_back(RandomLogits(rng, 500, 5));
    alone.push_back(rows[i].Record(logits[i]));
  }
  SampleScratch shared;
  for (size_t n = 0; n < 3 * rows.size(); ++n) {
    const size_t i = rng.Below(rows.size());
    shared.has_fma = IsSupported(Isa::kAvx2) && rng.Below(2) == 0;
    TokenRecord chosen;
    bool is_empty = false;
    SampleRowOnCpu(rows[i].Row(), logits[i], chosen, is_empty, shared);
    EXPECT_EQ(chosen, alone[i]) << i;
  }
}

}  // namespace
}  // namespace baton::kernels::cpu
