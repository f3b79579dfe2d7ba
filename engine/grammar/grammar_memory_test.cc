#include "engine/grammar/grammar_memory.h"

#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/clock.h"
#include "common/demo_vocabulary.h"
#include "engine/grammar/mask_maker.h"

namespace baton::engine {
namespace {

using testing::HasSubstr;

// The lexer's states double with every place that it looks back.
constexpr char kGrowing[] = "start: /(a|b)*a(a|b){90}/";

TEST(GrammarCharge, ReturnsWhatItTook) {
  GrammarMemory memory(100);
  {
    GrammarCharge first(memory);
    ASSERT_TRUE(first.Resize(60).ok());
    GrammarCharge second(memory);
    const absl::Status refused = second.Resize(41);
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("60 of 100 bytes"));
    EXPECT_THAT(std::string(refused.message()), HasSubstr("41 more"));
    EXPECT_EQ(second.bytes(), 0u);
    ASSERT_TRUE(second.Resize(40).ok());
    ASSERT_TRUE(first.Resize(50).ok());
    EXPECT_EQ(memory.used(), 90u);
    GrammarCharge part = first.Split(20);
    EXPECT_EQ(part.bytes(), 20u);
    EXPECT_EQ(first.bytes(), 30u);
    EXPECT_EQ(memory.used(), 90u);
    second = std::move(part);
  }
  EXPECT_EQ(memory.used(), 0u);
  EXPECT_EQ(memory.refusals(), 1u);
}

class GrammarMemoryTest : public testing::Test {
 protected:
  // Without kept grammars, so that all that is taken is a text's.
  GrammarLimits Limits(size_t memory_bytes) const {
    return {.memory_bytes = memory_bytes, .cache_bytes = 0};
  }
  size_t BytesOf(const std::string& grammar) {
    GrammarCache grammars(DemoVocabulary(), clock_, Limits(size_t{1} << 30));
    const MaskSource source = *MaskSource::Create(grammars, RulesOf(grammar));
    return grammars.counters().memory_bytes;
  }

  ManualClock clock_;
};

TEST_F(GrammarMemoryTest, AllTextsShareOneBound) {
  const std::string grammar = "start: /[0-9]{9}/";
  const size_t one = BytesOf(grammar);
  GrammarCache grammars(DemoVocabulary(), clock_, Limits(3 * one + one / 2));
  {
    std::deque<MaskSource> sources;
    for (int i = 0; i < 3; ++i) sources.push_back(*MaskSource::Create(grammars, RulesOf(grammar)));
    const absl::Status refused = MaskSource::Create(grammars, RulesOf(grammar)).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(refused.message()), HasSubstr("masks.grammar: "));
    EXPECT_FALSE(IsMaskFailure(refused));
    EXPECT_EQ(grammars.counters().memory_bytes, 3 * one);
    sources.pop_front();
    EXPECT_TRUE(MaskSource::Create(grammars, RulesOf(grammar)).ok());
  }
  EXPECT_EQ(grammars.counters().memory_bytes, 0u);
  EXPECT_EQ(grammars.counters().memory_refusals, 1u);
  EXPECT_EQ(grammars.counters().refused, 0u) << "the grammar is good";
}

TEST_F(GrammarMemoryTest, ATextThatFindsNoMoreEndsAndFreesAll) {
  GrammarCache grammars(DemoVocabulary(), clock_, Limits(BytesOf(kGrowing) + 200'000));
  MaskSource source = *MaskSource::Create(grammars, RulesOf(kGrowing));
  MaskBuffer buffer;
  absl::Status status;
  for (size_t i = 0; i < 300 && status.ok(); ++i) {
    buffer.Clear();
    std::vector<TokenMask> masks;
    status = source.AppendMasks({}, buffer, masks);
    if (!status.ok()) break;
    const std::vector<int32_t> allowed = AllowedIds(masks.at(0));
    status = source.Take(allowed.at(i % allowed.size()));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_EQ(grammars.counters().memory_bytes, 0u);
  EXPECT_FALSE(source.Take(300).ok()) << "it is final";
}

// What is kept gives way to nobody, but is not kept where there is no room.
TEST_F(GrammarMemoryTest, KeepsNoGrammarThatThereIsNoRoomFor) {
  const std::string grammar = "start: /[0-9]{9}/";
  const size_t one = BytesOf(grammar);
  GrammarCache grammars(DemoVocabulary(), clock_, {.memory_bytes = one + one / 4});
  {
    const MaskSource source = *MaskSource::Create(grammars, RulesOf(grammar));
    EXPECT_EQ(grammars.counters().cache_bytes, 0u);
  }
  EXPECT_EQ(grammars.counters().memory_bytes, 0u);
}

TEST_F(GrammarMemoryTest, AGrammarIsChargedWhileAnyTextHasIt) {
  const std::string grammar = "start: " + std::string(20'000, ' ') + "/[0-9]{9}/";
  GrammarCache grammars(DemoVocabulary(), clock_, Limits(size_t{1} << 30));
  {
    const MaskSource source = *MaskSource::Create(grammars, RulesOf(grammar));
    EXPECT_GT(grammars.counters().memory_bytes, 100 * grammar.size());  // more than a text's own
    EXPECT_EQ(grammars.counters().cache_bytes, 0u);
  }
  EXPECT_EQ(grammars.counters().memory_bytes, 0u);
}

TEST_F(GrammarMemoryTest, WhatWaitsToBeMadeHasItsRoom) {
  GrammarCache grammars(DemoVocabulary(), clock_, Limits(size_t{3} << 20));
  std::vector<std::function<void()>> tasks;
  MaskMaker maker(grammars, [&](std::function<void()> task) {
    tasks.push_back(std::move(task));
    return true;
  });
  const MaskRules rules = RulesOf("start: /[0-9]{9}/");
  const size_t compiling = grammars.BytesToCompile(rules.grammar);
  auto first = *maker.Start(rules, std::vector<std::vector<int32_t>>(4));
  const absl::Status refused = maker.Start(rules, std::vector<std::vector<int32_t>>(3)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  const size_t booked = grammars.counters().memory_bytes;
  tasks.front()();
  for (const auto& masks : first) EXPECT_TRUE(masks->status().ok()) << masks->status();
  EXPECT_LT(grammars.counters().memory_bytes, booked) << "they need less than what is usual";
  const auto second = *maker.Start(rules, std::vector<std::vector<int32_t>>(3));
  first.clear();
  EXPECT_EQ(grammars.counters().memory_bytes, (size_t{3} << 19) + compiling)
      << "what is usual for three, and the rules that they share";
  const std::string large = "start: " + std::string(20'000, ' ') + "/[0-9]{9}/";
  EXPECT_EQ(maker.Start(RulesOf(large), {{}}).status().code(), absl::StatusCode::kResourceExhausted)
      << "there is room for a usual text, not for these rules";
  MaskRules free;
  free.forced_prefix = {300};
  EXPECT_TRUE(maker.Start(free, {{}}).ok()) << "no grammar, no memory";
}

}  // namespace
}  // namespace baton::engine
