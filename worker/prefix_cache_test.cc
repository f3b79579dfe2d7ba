#include "worker/prefix_cache.h"

#include <gtest/gtest.h>
#include <vector>

namespace baton::worker {
namespace {

constexpr int kPages = 8;
constexpr uint64_t kStride = 64;
constexpr LayoutId kLayout = {};
constexpr Secret kSecret = {};

PageName Name(uint8_t i) {
  PageName name;
  name.bytes[0] = i;
  return name;
}
std::vector<PageName> Names(std::vector<uint8_t> values) {
  std::vector<PageName> names;
  for (const uint8_t value : values) names.push_back(Name(value));
  return names;
}

class PrefixCacheTest : public testing::Test {
 protected:
  // Takes pages, gives them to the cache under the names, and lets go of them.
  std::vector<PageId> Fill(PrefixCache& cache, const std::vector<PageName>& names) {
    engine::Booking booking = pool_.Book(static_cast<int>(names.size())).value();
    const engine::PageLease lease = pool_.Take(booking, static_cast<int>(names.size()));
    cache.AddPages(names, lease.ids());
    return {lease.ids().begin(), lease.ids().end()};
  }
  std::vector<std::byte> memory_ = std::vector<std::byte>(kPages * kStride);
  engine::PagePool pool_{memory_.data(), kPages, kStride, kStride};
};

TEST_F(PrefixCacheTest, MatchEndsAtTheLongestKeptTail) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3, 4});
  const auto pages = Fill(cache, names);
  EXPECT_EQ(cache.Lookup(names, 4).pages.size(), 0);  // pages without a tail are no start
  cache.AddTail(names[1], std::vector<std::byte>(10));
  cache.AddTail(names[3], std::vector<std::byte>(20));
  EXPECT_EQ(cache.Lookup(names, 4).tokens(), 4 * kPageTokens);
  const PrefixMatch match = cache.Lookup(names, 3);  // the prompt needs a token to compute
  ASSERT_EQ(match.pages.size(), 2);
  EXPECT_EQ(match.pages.ids()[1], pages[1]);
  EXPECT_EQ(match.tail->size(), 10u);
  EXPECT_EQ(cache.Lookup(Names({1, 9, 3}), 3).pages.size(), 0);
}

TEST_F(PrefixCacheTest, EvictsTheDeepestPageOfTheOldestPromptFirst) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  Fill(cache, Names({1, 2, 3}));
  Fill(cache, Names({11, 12, 13}));
  EXPECT_EQ(pool_.Counts().free, 2);
  ASSERT_TRUE(cache.MakeRoom(3));
  cache.AddTail(Name(2), std::vector<std::byte>(1));
  cache.AddTail(Name(3), std::vector<std::byte>(1));  // its page is gone: not kept
  EXPECT_EQ(cache.num_tails(), 1u);
  EXPECT_EQ(cache.Lookup(Names({1, 2, 3}), 3).pages.size(), 2);
}

TEST_F(PrefixCacheTest, ClearForgetsAllButWhatSequencesHold) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3});
  Fill(cache, names);
  Fill(cache, Names({11}));
  cache.AddTail(names[1], std::vector<std::byte>(10));
  const PrefixMatch held = cache.Lookup(names, 3);
  cache.TakeDelta();
  cache.Clear();
  EXPECT_EQ(cache.num_pages(), 0u);
  EXPECT_EQ(cache.tail_bytes(), 0u);
  EXPECT_EQ(cache.Lookup(names, 3).pages.size(), 0);
  EXPECT_EQ(pool_.Counts().free, kPages - 2);  // the match's
  const auto delta = cache.TakeDelta();
  ASSERT_EQ(delta.size(), 1u);
  EXPECT_EQ(delta[0].removed.size(), 4u);
  Fill(cache, names);  // and begins anew
  EXPECT_EQ(cache.num_pages(), 3u);
}

TEST_F(PrefixCacheTest, PagesInUseAreNotEvicted) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2});
  Fill(cache, names);
  cache.AddTail(names[1], std::vector<std::byte>(1));
  const PrefixMatch match = cache.Lookup(names, 2);
  EXPECT_FALSE(cache.MakeRoom(kPages));
  EXPECT_EQ(cache.num_pages(), 2u);
  EXPECT_EQ(pool_.Counts().leased, 2);
}

TEST_F(PrefixCacheTest, TailsStayWithinTheirBytesAndLeaveWithTheirPage) {
  PrefixCache cache(pool_, kLayout, kSecret, 25);
  const auto names = Names({1, 2, 3});
  Fill(cache, names);
  cache.AddTail(names[0], std::vector<std::byte>(10));
  cache.AddTail(names[1], std::vector<std::byte>(10));
  cache.AddTail(names[2], std::vector<std::byte>(10));
  EXPECT_EQ(cache.tail_bytes(), 20u);
  EXPECT_FALSE(cache.HasTail(names[0]));
  cache.AddTail(names[0], std::vector<std::byte>(26));  // larger than everything
  EXPECT_FALSE(cache.HasTail(names[0]));
  ASSERT_TRUE(cache.MakeRoom(kPages));
  EXPECT_EQ(cache.tail_bytes(), 0u);
  EXPECT_EQ(cache.num_pages(), 0u);
}

TEST_F(PrefixCacheTest, ARottenPageLeavesWithAllThatHangsOnIt) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3});
  const auto pages = Fill(cache, names);
  const auto branch = Names({1, 2, 13});
  Fill(cache, branch);  // its first two pages are here already
  const auto other = Names({21});
  Fill(cache, other);
  for (const PageName& name : {names[0], names[2], branch[2], other[0]})
    cache.AddTail(name, std::vector<std::byte>(1));
  ASSERT_TRUE(cache.Check(names, cache.Lookup(names, 3)));
  cache.TakeDelta();

  pool_.Data(pages[1])[kStride - 1] ^= std::byte{4};
  PrefixMatch match = cache.Lookup(names, 3);
  ASSERT_EQ(match.pages.size(), 3);
  EXPECT_FALSE(cache.Check(names, match));
  EXPECT_EQ(cache.rotten(), 1u);
  match = PrefixMatch();
  EXPECT_TRUE(pool_.CheckCounts().ok());
  EXPECT_EQ(pool_.Counts().free, kPages - 2);
  EXPECT_EQ(cache.TakeDelta().at(0).removed.size(), 3u);
  EXPECT_EQ(cache.Lookup(branch, 3).pages.size(), 1);
  EXPECT_TRUE(cache.Check(names, cache.Lookup(names, 3)));
  EXPECT_EQ(cache.Lookup(other, 1).pages.size(), 1);
  EXPECT_EQ(cache.num_tails(), 2u);
}

TEST_F(PrefixCacheTest, APageIsSealedWhenItClosesAndNeverAfter) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3, 4});
  engine::Booking booking = pool_.Book(4).value();
  const engine::PageLease lease = pool_.Take(booking, 4);
  cache.AddPages(std::span(names).first(2), lease.ids(), 0);
  cache.AddTail(names[1], std::vector<std::byte>(1));
  pool_.Data(lease.ids()[1])[0] ^= std::byte{1};
  EXPECT_FALSE(cache.Check(names, cache.Lookup(names, 2)));
  EXPECT_EQ(cache.TakeRotten(), std::vector<PageId>{lease.ids()[1]});
  EXPECT_TRUE(cache.TakeRotten().empty());

  cache.AddPages(std::span(names).first(3), lease.ids(), 2);
  EXPECT_FALSE(cache.HasPage(names[1]));
  EXPECT_FALSE(cache.HasPage(names[2])) << "its parent is not here";
  EXPECT_EQ(cache.num_pages(), 1u);
}

TEST_F(PrefixCacheTest, ACheckMayTakeSeveralTurns) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3});
  const auto pages = Fill(cache, names);
  cache.AddTail(names[2], std::vector<std::byte>(1));
  const PrefixMatch match = cache.Lookup(names, 3);
  pool_.Data(pages[2])[0] ^= std::byte{1};
  EXPECT_TRUE(cache.Check(names, match, 0, 2));
  EXPECT_FALSE(cache.Check(names, match, 2, 4));
  EXPECT_EQ(cache.num_pages(), 2u);
}

TEST_F(PrefixCacheTest, AParentDoesNotLeaveWithoutItsChildren) {
  PrefixCache cache(pool_, kLayout, kSecret, 1000);
  const auto names = Names({1, 2, 3});
  Fill(cache, Names({1, 2}));
  engine::Booking booking = pool_.Book(3).value();
  const engine::PageLease twin = pool_.Take(booking, 3);  // computed at the same time
  cache.AddPages(names, twin.ids(), 0);
  EXPECT_EQ(cache.num_pages(), 3u);
  EXPECT_EQ(pool_.Counts().free, 3);
  EXPECT_TRUE(cache.MakeRoom(4));
  EXPECT_EQ(cache.num_pages(), 1u);
  EXPECT_TRUE(cache.HasPage(names[0]));
  EXPECT_TRUE(cache.MakeRoom(5));
  EXPECT_TRUE(pool_.CheckCounts().ok());
}

TEST_F(PrefixCacheTest, EventsTellOtherMachinesWhatIsHere) {
  PrefixCache cache(pool_, kLayout, kSecret, 100);
  ASSERT_EQ(cache.Snapshot().size(), 1u);
  EXPECT_TRUE(cache.Snapshot()[0].is_last);
  EXPECT_TRUE(cache.TakeDelta().empty());
  Fill(cache, Names({1, 2}));
  const auto delta = cache.TakeDelta();
  ASSERT_EQ(delta.size(), 1u);
  EXPECT_EQ(delta[0].added.size(), 2u);
  EXPECT_FALSE(delta[0].is_snapshot);
  cache.MakeRoom(kPages - 1);
  const auto later = cache.TakeDelta();
  ASSERT_EQ(later.size(), 1u);
  EXPECT_EQ(later[0].removed, Names({2}));
  EXPECT_EQ(later[0].generation, delta[0].generation + 1);
  EXPECT_EQ(cache.Snapshot()[0].added, Names({1}));
}

TEST(PrefixCacheParts, NoPartCarriesMoreNamesThanAMessageMay) {
  constexpr int kMany = wire::kMaxCacheNames + 7;
  std::vector<std::byte> memory(kMany);
  engine::PagePool pool(memory.data(), kMany, 1, 1);
  PrefixCache cache(pool, kLayout, kSecret, 0);
  std::vector<PageName> names(kMany);
  for (size_t i = 0; i < names.size(); ++i)
    for (size_t byte = 0; byte < 4; ++byte)
      names[i].bytes[byte] = static_cast<uint8_t>(i >> (8 * byte));
  engine::Booking booking = pool.Book(kMany).value();
  const engine::PageLease lease = pool.Take(booking, kMany);
  cache.AddPages(names, lease.ids());
  const auto parts = cache.Snapshot();
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].added.size(), static_cast<size_t>(wire::kMaxCacheNames));
  EXPECT_FALSE(parts[0].is_last);
  EXPECT_EQ(parts[1].added.size(), 7u);
  EXPECT_EQ(parts[1].part, 1u);
  EXPECT_TRUE(parts[1].is_last);
}

}  // namespace
}  // namespace baton::worker
