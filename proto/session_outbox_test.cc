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

}  // namespace
}  // namespace baton::wire
