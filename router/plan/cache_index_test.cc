#include "router/plan/cache_index.h"

#include <vector>

#include "gtest/gtest.h"

namespace baton::router {
namespace {

PageName Name(uint8_t value) {
  PageName name;
  name.bytes.fill(value);
  return name;
}
std::vector<PageName> Names(std::initializer_list<uint8_t> values) {
  std::vector<PageName> names;
  for (const uint8_t value : values) names.push_back(Name(value));
  return names;
}
wire::CacheEvents Part(uint64_t generation, bool is_snapshot, uint32_t part, bool is_last) {
  wire::CacheEvents events;
  events.generation = generation;
  events.is_snapshot = is_snapshot;
  events.part = part;
  events.is_last = is_last;
  return events;
}

TEST(CacheIndex, CountsLeadingNamesWithoutAGap) {
  CacheIndex index;
  auto snapshot = Part(1, true, 0, true);
  snapshot.added = Names({1, 2, 4});
  index.Apply(snapshot);
  EXPECT_EQ(index.Overlap(Names({1, 2, 3, 4})), 2);
  EXPECT_EQ(index.Overlap(Names({3, 1})), 0);
  EXPECT_EQ(index.Overlap({}), 0);
}

TEST(CacheIndex, ASnapshotReplacesWhenItsLastPartIsIn) {
  CacheIndex index;
  auto first = Part(1, true, 0, true);
  first.added = Names({1});
  index.Apply(first);
  auto part = Part(2, true, 0, false);
  part.added = Names({2});
  index.Apply(part);
  EXPECT_EQ(index.Overlap(Names({1})), 1);
  auto last = Part(2, true, 1, true);
  last.added = Names({3});
  index.Apply(last);
  EXPECT_EQ(index.Overlap(Names({1})), 0);
  EXPECT_EQ(index.Overlap(Names({2, 3})), 2);
}

TEST(CacheIndex, ADeltaAddsAndRemovesAsAWhole) {
  CacheIndex index;
  auto first = Part(1, true, 0, true);
  first.added = Names({1, 2});
  index.Apply(first);
  auto delta = Part(2, false, 0, false);
  delta.added = Names({3});
  index.Apply(delta);
  EXPECT_EQ(index.Overlap(Names({1, 2, 3})), 2);
  delta = Part(2, false, 1, true);
  delta.removed = Names({1});
  index.Apply(delta);
  EXPECT_EQ(index.Overlap(Names({2, 3})), 2);
  EXPECT_EQ(index.size(), 2u);
}

TEST(CacheIndex, DropsPartsThatContinueNothing) {
  CacheIndex index;
  auto stray = Part(1, true, 1, true);
  stray.added = Names({1});
  index.Apply(stray);
  EXPECT_EQ(index.size(), 0u);
  auto begun = Part(2, true, 0, false);
  begun.added = Names({2});
  index.Apply(begun);
  auto other = Part(3, true, 0, true);  // interrupts it
  other.added = Names({3});
  index.Apply(other);
  EXPECT_EQ(index.Overlap(Names({3})), 1);
  EXPECT_EQ(index.size(), 1u);
  index.Clear();
  EXPECT_EQ(index.size(), 0u);
}

}  // namespace
}  // namespace baton::router
