#include "router/text/run_cache.h"

#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

#include "router/text/test_data.h"

namespace baton::router {
namespace {

const TokenId kUser = *RealTokenizer().IdOf("<｜User｜>");

std::string LongText(const std::string& word) {
  std::string text;
  while (text.size() < 2 * RunCache::kMinRunBytes) text += word + " ";
  return text;
}

TEST(RunCache, GivesTheTokenizersIds) {
  RunCache cache(1 << 20);
  const std::vector<Segment> segments = {
      Segment::Text("short"),          Segment::Special(kUser), Segment::Text(LongText("alpha")),
      Segment::Text(LongText("beta")), Segment::Special(kUser), Segment::Special(kUser),
      Segment::Text(LongText("漢字")), Segment::Text("")};
  const std::vector<TokenId> want = RealTokenizer().EncodeSegments(segments);
  EXPECT_EQ(cache.EncodeSegments(RealTokenizer(), segments), want);
  EXPECT_EQ(cache.misses(), 2u);
  EXPECT_EQ(cache.EncodeSegments(RealTokenizer(), segments), want);
  EXPECT_EQ(cache.hits(), 2u);
  EXPECT_TRUE(cache.EncodeSegments(RealTokenizer(), {}).empty());
}

// A conversation that grows: each turn tokenizes what is new in it.
TEST(RunCache, FindsTheHistoryOfTheTurnBefore) {
  RunCache cache(1 << 20);
  std::vector<Segment> segments;
  for (int turn = 0; turn < 6; ++turn) {
    segments.push_back(Segment::Special(kUser));
    segments.push_back(Segment::Text(LongText("turn " + std::to_string(turn))));
    EXPECT_EQ(cache.EncodeSegments(RealTokenizer(), segments),
              RealTokenizer().EncodeSegments(segments));
    EXPECT_EQ(cache.misses(), static_cast<uint64_t>(turn) + 1);
  }
  EXPECT_EQ(cache.hits(), 15u);
}

TEST(RunCache, StaysWithinItsLimit) {
  constexpr size_t kLimit = 64 << 10;
  RunCache cache(kLimit);
  for (int i = 0; i < 300; ++i) {
    const std::vector<Segment> segments = {Segment::Text(LongText("word" + std::to_string(i)))};
    EXPECT_EQ(cache.EncodeSegments(RealTokenizer(), segments),
              RealTokenizer().EncodeSegments(segments));
    EXPECT_LE(cache.bytes(), kLimit);
  }
  EXPECT_GT(cache.bytes(), kLimit / 2);
  const std::vector<Segment> huge = {Segment::Text(std::string(kLimit, 'x') + " y z")};
  const size_t before = cache.bytes();
  EXPECT_EQ(cache.EncodeSegments(RealTokenizer(), huge), RealTokenizer().EncodeSegments(huge));
  EXPECT_LE(cache.bytes(), before + kLimit / 16);
  RunCache none(0);
  EXPECT_EQ(none.EncodeSegments(RealTokenizer(), huge), RealTokenizer().EncodeSegments(huge));
  EXPECT_EQ(none.bytes() + none.hits() + none.misses(), 0u);
}

TEST(RunCache, ServesManyThreads) {
  RunCache cache(32 << 10);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const std::vector<Segment> segments = {
            Segment::Text(LongText("w" + std::to_string((i * 7 + static_cast<int>(t)) % 40)))};
        if (cache.EncodeSegments(RealTokenizer(), segments) !=
            RealTokenizer().EncodeSegments(segments))
          ++wrong[t];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
  EXPECT_EQ(cache.hits() + cache.misses(), 800u);
}

}  // namespace
}  // namespace baton::router
