#include "router/plan/outbox.h"

#include "gtest/gtest.h"

namespace baton::router {
namespace {

const WorkerId kWorker{7};

TransferId Transfer(uint8_t value) {
  TransferId id;
  id.bytes.fill(value);
  return id;
}
template <typename Item>
SendToWorker Piece(uint8_t transfer, bool introduces = false) {
  Item item;
  item.transfer = Transfer(transfer);
  return {.worker = kWorker, .piece = std::move(item), .introduces = introduces};
}
SendToWorker Chunk(uint8_t transfer, size_t tokens) {
  wire::PromptChunk chunk;
  chunk.transfer = Transfer(transfer);
  chunk.tokens.resize(tokens);
  return {.worker = kWorker, .piece = std::move(chunk)};
}

TEST(Outbox, PacksABatchIntoOneMessagePerWorker) {
  Outbox outbox;
  outbox.Add(Piece<wire::Reserve>(1, true));
  outbox.Add(Chunk(1, 10));
  outbox.Add(Piece<wire::Run>(2, true));
  outbox.Add(Chunk(2, 10));
  outbox.Add(Piece<wire::Cancel>(3));
  auto other = Piece<wire::Retarget>(1);
  other.worker = WorkerId{8};
  outbox.Add(other);
  const auto messages = outbox.Take();
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].first, kWorker);
  EXPECT_EQ(messages[0].second.reserves.size(), 1u);
  EXPECT_EQ(messages[0].second.runs.size(), 1u);
  EXPECT_EQ(messages[0].second.prompt_chunks.size(), 2u);
  EXPECT_EQ(messages[0].second.cancels.size(), 1u);
  EXPECT_EQ(messages[1].second.retargets.size(), 1u);
  EXPECT_TRUE(outbox.Take().empty());
}

TEST(Outbox, ACancelTakesBackWhatWasNotSentYet) {
  Outbox outbox;
  outbox.Add(Piece<wire::Reserve>(1, true));
  outbox.Add(Chunk(1, 10));
  outbox.Add(Piece<wire::Cancel>(1));
  EXPECT_TRUE(outbox.Take().empty());
}

TEST(Outbox, ACancelStaysIfTheWorkerHeardOfTheTransferBefore) {
  Outbox outbox;
  outbox.Add(Piece<wire::Run>(1));  // a worker that is both ends: its Reserve is out
  outbox.Add(Chunk(1, 10));
  outbox.Add(Piece<wire::Cancel>(1));
  const auto messages = outbox.Take();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].second.cancels.size(), 1u);
  EXPECT_TRUE(messages[0].second.runs.empty());
  EXPECT_TRUE(messages[0].second.prompt_chunks.empty());
}

TEST(Outbox, ASequencesCancelComesAfterItsReserve) {
  Outbox outbox;
  outbox.Add(Piece<wire::Reserve>(1, true));
  auto cancel = Piece<wire::Cancel>(1);
  std::get<wire::Cancel>(cancel.piece).sequence = 0;
  outbox.Add(cancel);
  const auto messages = outbox.Take();
  ASSERT_EQ(messages.size(), 2u);
  EXPECT_EQ(messages[0].second.reserves.size(), 1u);
  EXPECT_EQ(messages[1].second.cancels.size(), 1u);
}

TEST(Outbox, KeepsMessagesUnderTheLimit) {
  Outbox outbox;
  outbox.Add(Piece<wire::Reserve>(1, true));
  for (int i = 0; i < 8; ++i) outbox.Add(Chunk(1, wire::kMaxPromptChunk));
  const auto messages = outbox.Take();
  EXPECT_EQ(messages.size(), 3u);
  for (const auto& [worker, message] : messages) EXPECT_LE(message.prompt_chunks.size(), 3u);
}

}  // namespace
}  // namespace baton::router
