#include "proto/session_outbox.h"

#include <gtest/gtest.h>
#include <string>

namespace baton::wire {
namespace {

using Outbox = SessionOutbox<std::string>;

TEST(SessionOutbox, WritesBeatsThenControlThenBulk) {
  Outbox outbox(8);
  outbox.Push(Outbox::Lane::kBulk, "bulk");
  outbox.Push(Outbox::Lane::kControl, "first");
  outbox.Push(Outbox::Lane::kControl, "second");
  outbox.Push(Outbox::Lane::kBeat, "old beat");
  outbox.Push(Outbox::Lane::kBeat, "beat");
  for (const char* expected : {"beat", "first", "second", "bulk"}) {
    EXPECT_EQ(outbox.Next(), expected);
    EXPECT_EQ(outbox.Next(), std::nullopt) << "one write at a time";
    outbox.Written();
  }
  EXPECT_EQ(outbox.Next(), std::nullopt);
}

TEST(SessionOutbox, RefusesWhatExceedsItsLimit) {
  Outbox outbox(2);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "a"), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kBulk, "b"), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "c"), Outbox::Pushed::kFull);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kBeat, "beat"), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Size(), 2u);
}

TEST(SessionOutbox, RefusesWhatExceedsItsBytesUntilSomeAreWritten) {
  Outbox outbox(100, 50);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "a", 30), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kBulk, "b", 20), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "c", 1), Outbox::Pushed::kFull);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kBulk, "d", SIZE_MAX), Outbox::Pushed::kFull);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "small"), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kBeat, "beat", 99), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Next(), "beat");
  outbox.Written();
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "c", 1), Outbox::Pushed::kFull);
  EXPECT_EQ(outbox.Next(), "a");
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "c", 31), Outbox::Pushed::kFull);
  EXPECT_EQ(outbox.Push(Outbox::Lane::kControl, "c", 30), Outbox::Pushed::kQueued);
  EXPECT_EQ(outbox.Size(), 3u);
}

}  // namespace
}  // namespace baton::wire
