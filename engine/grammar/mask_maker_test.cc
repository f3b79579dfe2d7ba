#include "engine/grammar/mask_maker.h"

#include <deque>
#include <fstream>
#include <string>
#include <sys/resource.h>
#include <unistd.h>
#include <utility>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/clock.h"
#include "common/cpu_pool.h"
#include "common/demo_vocabulary.h"

namespace baton::engine {
namespace {

using testing::HasSubstr;

std::string Digits(int count) { return absl::StrFormat("start: /[0-9]{%d}/", count); }

class MaskMakerTest : public testing::Test {
 protected:
  // Of one sequence.
  std::shared_ptr<PendingMasks> Start(const MaskRules& rules, std::vector<int32_t> taken = {}) {
    return StartAll(rules, {std::move(taken)}).at(0);
  }
  std::vector<std::shared_ptr<PendingMasks>> StartAll(const MaskRules& rules,
                                                      std::vector<std::vector<int32_t>> taken) {
    auto started = maker_.Start(rules, std::move(taken));
    EXPECT_TRUE(started.ok()) << started.status();
    return *std::move(started);
  }
  void RunAll() {
    for (; !tasks_.empty(); tasks_.pop_front()) tasks_.front()();
  }

  ManualClock clock_;
  GrammarCache grammars_{DemoVocabulary(), clock_, {.cache_bytes = 0}};  // none is kept
  std::deque<std::function<void()>> tasks_;
  MaskMaker maker_{grammars_, [this](std::function<void()> task) {
                     if (tasks_.size() == 2) return false;
                     tasks_.push_back(std::move(task));
                     return true;
                   }};
};

TEST_F(MaskMakerTest, MakesThoseOfARequestsSequencesByCompilingOnce) {
  const auto all = StartAll(RulesOf(Digits(3)), {{}, {}, {}});
  EXPECT_FALSE(all[0]->IsReady());
  EXPECT_EQ(grammars_.counters().compiled, 0u) << "not here";
  RunAll();
  EXPECT_EQ(grammars_.counters().compiled, 1u);
  MaskBuffer buffer;
  std::vector<TokenMask> start, later;
  for (const auto& masks : all) {
    ASSERT_TRUE(masks->IsReady());
    ASSERT_TRUE(masks->status().ok()) << masks->status();
    MaskSource source = masks->Take();
    ASSERT_TRUE(source.AppendMasks({}, buffer, start).ok());
    EXPECT_THAT(start.back(), testing::ElementsAreArray(start[0]));
    ASSERT_TRUE(source.Take(AllowedIds(start[0]).at(0)).ok());  // which is its own
    ASSERT_TRUE(source.AppendMasks({}, buffer, later).ok());
    EXPECT_THAT(later.back(), testing::ElementsAreArray(later[0]));
  }
}

TEST_F(MaskMakerTest, MakesNothingThatNobodyWaitsFor) {
  auto all = StartAll(RulesOf(Digits(3)), {{}, {}});
  const size_t room = grammars_.counters().memory_bytes;
  all[0].reset();
  EXPECT_LT(grammars_.counters().memory_bytes, room);
  RunAll();
  EXPECT_TRUE(all[1]->IsReady() && all[1]->status().ok()) << all[1]->status();
  all[1].reset();
  EXPECT_EQ(grammars_.counters().memory_bytes, 0u);
  Start(RulesOf(Digits(3))).reset();
  RunAll();
  EXPECT_EQ(grammars_.counters().compiled, 1u);
}

// The first one's end takes nothing from the others, whatever else fills the memory meanwhile.
TEST_F(MaskMakerTest, RoomToCompileStaysWithWhoeverIsLeft) {
  const std::string grammar = absl::StrFormat("start: \"%s\"", std::string(5'000, 'a'));
  GrammarCharge others = grammars_.Room();
  auto all = StartAll(RulesOf(grammar), {{}, {}});
  all[0].reset();
  EXPECT_GE(grammars_.counters().memory_bytes, grammars_.BytesToCompile(grammar));
  const size_t room = GrammarLimits().memory_bytes - grammars_.counters().memory_bytes;
  ASSERT_TRUE(others.Resize(room).ok());
  RunAll();
  EXPECT_TRUE(all[1]->IsReady() && all[1]->status().ok()) << all[1]->status();
}

TEST_F(MaskMakerTest, RefusesWhenTooManyWait) {
  const auto a = Start(RulesOf(Digits(1))), b = Start(RulesOf(Digits(2)));
  const auto refused = maker_.Start(RulesOf(Digits(3)), {{}});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  MaskRules free;
  free.forced_prefix = {300};
  EXPECT_TRUE(Start(free)->IsReady()) << "no grammar, no waiting";
  RunAll();
  EXPECT_TRUE(a->IsReady() && b->IsReady());
}

TEST_F(MaskMakerTest, SaysWhatIsWrong) {
  MaskRules rules = RulesOf(R"(start: %json {"type":"strin"})");
  EXPECT_TRUE(maker_.Check(rules).ok()) << "only compiling shows it";
  const auto masks = Start(rules);
  RunAll();
  EXPECT_EQ(masks->status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(masks->status().message()), HasSubstr("masks.grammar: "));
  rules.reasoning_bans = {-1};
  EXPECT_EQ(maker_.Check(rules).code(), absl::StatusCode::kInvalidArgument);
}

// Without address space for the thread that compiles it.
TEST_F(MaskMakerTest, CountsItsOwnFailuresApart) {
  EXPECT_FALSE(grammars_.Get("start: nothing").ok());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  int64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  rlimit tight = before;
  tight.rlim_cur = static_cast<rlim_t>(pages * sysconf(_SC_PAGESIZE)) + (rlim_t{128} << 20);
  ASSERT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
  const absl::Status status = grammars_.Get(Digits(3)).status();
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_EQ(grammars_.counters().refused, 1u);
  EXPECT_EQ(grammars_.counters().failures, 1u);
  EXPECT_TRUE(grammars_.Get(Digits(3)).ok()) << "there may be one later";
}

// A grammar that takes no text at all is the client's error.
TEST_F(MaskMakerTest, RefusesAGrammarWithAnEmptyFirstMask) {
  const absl::Status status = grammars_.Get("start: a\na: b\nb: a\n").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

TEST_F(MaskMakerTest, TakesWhatWasReceived) {
  MaskRules rules;
  rules.forced_prefix = {300, 301, 302};
  const auto masks = Start(rules, {300, 301});
  const auto wrong = Start(rules, {300, 302});
  ASSERT_TRUE(masks->status().ok());
  EXPECT_EQ(masks->Take().num_taken(), 2);
  EXPECT_EQ(wrong->status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(wrong->status().message()), HasSubstr("is not one the grammar allows"));
}

TEST_F(MaskMakerTest, KeepsTheGrammarsThatWereUsedLast) {
  GrammarCache all(DemoVocabulary(), clock_);
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(all.Get(Digits(i)).ok());
  const size_t three = all.counters().cache_bytes;
  EXPECT_GT(three, 0u);

  GrammarCache two(DemoVocabulary(), clock_, {.cache_bytes = three - 1});
  for (int i = 1; i <= 3; ++i) ASSERT_TRUE(two.Get(Digits(i)).ok());
  EXPECT_LT(two.counters().cache_bytes, three);
  ASSERT_TRUE(two.Get(Digits(2)).ok());
  EXPECT_EQ(two.counters().compiled, 3u);
  EXPECT_EQ(two.counters().reused, 1u);
  ASSERT_TRUE(two.Get(Digits(1)).ok());  // gone, and takes the place of 3
  ASSERT_TRUE(two.Get(Digits(2)).ok());
  EXPECT_EQ(two.counters().compiled, 4u);

  GrammarCache none(DemoVocabulary(), clock_, {.cache_bytes = 1});
  for (int i = 0; i < 2; ++i) EXPECT_TRUE(none.Get(Digits(1)).ok());
  EXPECT_EQ(none.counters().compiled, 2u);
  EXPECT_EQ(none.counters().cache_bytes, 0u);
}

// Two threads at once, the same grammar and others.
TEST_F(MaskMakerTest, ThreadsShareTheCache) {
  CpuPool pool(2, 100);
  GrammarCache grammars(DemoVocabulary(), clock_);
  MaskMaker maker(grammars,
                  [&](std::function<void()> task) { return pool.TryRun(std::move(task)); });
  std::vector<std::shared_ptr<PendingMasks>> all;
  for (int i = 0; i < 40; ++i) {
    const auto started = *maker.Start(RulesOf(Digits(1 + i % 4)), {{}, {}});
    all.insert(all.end(), started.begin(), started.end());
  }
  for (const auto& masks : all) {
    while (!masks->IsReady()) baton::SleepFor(absl::Milliseconds(1));
    EXPECT_TRUE(masks->status().ok()) << masks->status();
  }
  pool.Stop();
  const GrammarCounters counters = grammars.counters();
  EXPECT_EQ(counters.compiled + counters.reused, 40u);
  EXPECT_LE(counters.compiled, 8u);
}

}  // namespace
}  // namespace baton::engine
