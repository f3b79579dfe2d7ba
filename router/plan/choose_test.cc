#include "router/plan/choose.h"

#include <optional>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace baton::router {
namespace {

PrefillCandidate Prefill(uint64_t queued, double rate, uint32_t cached) {
  return {
      .worker = WorkerId{1}, .queued_tokens = queued, .tokens_per_s = rate, .cached_pages = cached};
}
DecodeCandidate Decode(uint32_t free_pages, uint32_t sequences, uint32_t running,
                       uint32_t step_us) {
  return {.worker = WorkerId{1},
          .free_pages = free_pages,
          .sequences = sequences,
          .running = running,
          .max_sequences = 8,
          .last_step_us = step_us};
}

struct PrefillCase {
  std::string name;
  std::vector<PrefillCandidate> candidates;
  std::optional<size_t> best;
};

TEST(ChoosePrefill, TakesTheWorkerThatIsExpectedToFinishFirst) {
  const std::vector<PrefillCase> cases = {
      {"none", {}, std::nullopt},
      {"a tie goes to the first", {Prefill(0, 100, 0), Prefill(0, 100, 0)}, 0},
      {"a shorter queue", {Prefill(500, 100, 0), Prefill(100, 100, 0)}, 1},
      {"a faster worker despite its queue", {Prefill(0, 100, 0), Prefill(1'000, 1'000, 0)}, 1},
      {"a warm prefix", {Prefill(0, 100, 0), Prefill(0, 100, 2)}, 1},
      {"a warm prefix outweighs a short queue", {Prefill(0, 100, 0), Prefill(400, 100, 2)}, 1},
      {"a long queue outweighs a warm prefix", {Prefill(0, 100, 0), Prefill(600, 100, 2)}, 0},
  };
  for (const PrefillCase& test : cases) {
    const auto choice = ChoosePrefill(test.candidates, {.prompt_tokens = 1'000});
    ASSERT_EQ(choice.has_value(), test.best.has_value()) << test.name;
    if (choice) {
      EXPECT_EQ(choice->index, *test.best) << test.name;
    }
  }
}

TEST(ChoosePrefill, CountsTheUncachedTokens) {
  const auto choice = ChoosePrefill(std::vector{Prefill(100, 50, 3)}, {.prompt_tokens = 1'000});
  EXPECT_EQ(choice->uncached_tokens, 1'000u - 3 * 256);
  EXPECT_DOUBLE_EQ(choice->seconds, (100 + 232) / 50.0);
  EXPECT_EQ(UncachedTokens({.prompt_tokens = 512}, 2), 1u);  // the last one is always computed
  EXPECT_EQ(UncachedTokens({.prompt_tokens = 512, .reads_cache = false}, 2), 512u);
}

struct DecodeCase {
  std::string name;
  std::vector<DecodeCandidate> candidates;
  std::optional<size_t> best;
};

TEST(ChooseDecode, TakesTheFastestStepThatHasRoom) {
  const std::vector<DecodeCase> cases = {
      {"none", {}, std::nullopt},
      {"a tie goes to the first", {Decode(50, 0, 0, 0), Decode(50, 0, 0, 0)}, 0},
      {"no pages", {Decode(9, 0, 0, 0), Decode(10, 4, 4, 9'000)}, 1},
      {"no slot", {Decode(50, 8, 8, 100), Decode(50, 7, 7, 9'000)}, 1},
      {"no room at all", {Decode(9, 0, 0, 0), Decode(50, 8, 8, 100)}, std::nullopt},
      {"a smaller batch", {Decode(50, 4, 4, 10'000), Decode(50, 2, 2, 6'000)}, 1},
      {"an idle worker", {Decode(50, 3, 3, 12'000), Decode(50, 0, 0, 90'000)}, 1},
      {"promised sequences count", {Decode(50, 6, 0, 0), Decode(50, 1, 0, 0)}, 1},
  };
  for (const DecodeCase& test : cases) {
    const auto choice = ChooseDecode(test.candidates, {.prompt_tokens = 1, .num_pages = 10}, {});
    EXPECT_EQ(choice, test.best) << test.name;
  }
}

}  // namespace
}  // namespace baton::router
