#include "kvtransfer/agent_thread.h"

#include <algorithm>
#include <atomic>
#include <gtest/gtest.h>

#include "common/rng.h"
#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"

namespace baton::kvtransfer {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);

// One process that sends to itself over inproc, on a real transfer thread.
class AgentThreadTest : public ::testing::Test {
 protected:
  AgentThreadTest()
      : transport_(network_.Create("a", Incarnation{1})),
        memory_(64 * 1024),
        region_(*transport_->Register(memory_, MemoryKind::kHost)),
        agent_({.incarnation = Incarnation{1}, .limits = {}}, *transport_, digester_, clock_) {
    digester_.AddRegion(region_, memory_);
  }
  std::unique_ptr<AgentThread> Start(const AgentThreadConfig& config,
                                     std::function<void()> on_events = nullptr) {
    auto thread = AgentThread::Create(config, agent_, *transport_, clock_, std::move(on_events));
    EXPECT_TRUE(thread.ok());
    return *std::move(thread);
  }
  BlockMemory Memory(int slot, uint32_t block) const {
    return {.block = block,
            .memory = slot,
            .place = {region_, static_cast<uint64_t>(slot) * 1024, 1024}};
  }
  // A landing of 16 pages and a tail into slots 32.., and its send from slots 0..
  std::vector<AgentCommand> Transfer(const TransferId& transfer) const {
    std::vector<AgentCommand> commands;
    commands.push_back(OpenLanding{.transfer = transfer,
                                   .attempt = 1,
                                   .secret = {},
                                   .num_pages = 16,
                                   .page_bytes = 1024,
                                   .tail_bytes = 1024,
                                   .layout = {}});
    AddCredit credit{.transfer = transfer, .memory = {}};
    for (int i = 0; i < 16; ++i) credit.memory.push_back(Memory(32 + i, 0));
    credit.memory.push_back(Memory(48, kTailBlock));
    commands.push_back(std::move(credit));
    commands.push_back(OpenSend{.transfer = transfer,
                                .attempt = 1,
                                .secret = {},
                                .address = "a",
                                .incarnation = Incarnation{1},
                                .num_pages = 16,
                                .layout = {}});
    for (int i = 0; i < 16; ++i)
      commands.push_back(
          OfferBlock{.transfer = transfer, .memory = Memory(i, static_cast<uint32_t>(i))});
    commands.push_back(OfferBlock{.transfer = transfer, .memory = Memory(16, kTailBlock)});
    return commands;
  }
  // Collects events until `count` of type Event came.
  template <typename Event>
  size_t Await(AgentThread& thread, size_t count) {
    const absl::Time end = clock_.Now() + kPatience;
    size_t seen = 0;
    while (seen < count && clock_.Now() < end) {
      std::vector<AgentEvent> events;
      thread.events().Drain(events, 64, absl::Milliseconds(50));
      for (const AgentEvent& event : events) seen += std::holds_alternative<Event>(event) ? 1 : 0;
    }
    return seen;
  }

  SteadyClock clock_;
  SeededRng rng_{1};
  InprocNetwork network_{clock_, rng_};
  std::unique_ptr<InprocTransport> transport_;
  std::vector<std::byte> memory_;
  const RegionId region_;
  CpuDigester digester_;
  TransferAgent agent_;
};

TEST_F(AgentThreadTest, ExecutesCommandsAndDeliversEvents) {
  std::fill(memory_.begin(), memory_.begin() + 17 * 1024, std::byte{3});
  std::atomic<int> notified = 0;
  auto thread = Start({}, [&] { ++notified; });
  SeededRng ids(2);
  for (AgentCommand& command : Transfer(ids.DrawBytes<TransferId>()))
    ASSERT_TRUE(thread->Execute(std::move(command)).ok());
  EXPECT_EQ(Await<BlockAcked>(*thread, 17), 17u);
  EXPECT_GT(notified, 0);
  thread.reset();
  EXPECT_EQ(std::count(memory_.begin() + 32 * 1024, memory_.begin() + 49 * 1024, std::byte{3}),
            17 * 1024);
}

TEST_F(AgentThreadTest, AFullEventQueueHoldsEventsBackInsteadOfLosingThem) {
  auto thread = Start({.max_events = 2});
  SeededRng ids(3);
  for (AgentCommand& command : Transfer(ids.DrawBytes<TransferId>()))
    ASSERT_TRUE(thread->Execute(std::move(command)).ok());
  EXPECT_EQ(Await<BlockAcked>(*thread, 17), 17u);
}

TEST_F(AgentThreadTest, AFullCommandQueueSaysSo) {
  auto thread = Start({.max_commands = 4, .max_events = 1});
  // Nobody takes events, so after one backlog no command is taken either.
  absl::Status status;
  for (int i = 0; i < 100000 && status.ok(); ++i) status = thread->Execute(CloseLanding{});
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(AgentThreadTest, WakesUpFromSleepForACommand) {
  auto thread = Start({.spin = absl::ZeroDuration()});
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(thread->Execute(CloseLanding{}).ok());
    EXPECT_EQ(Await<LandingClosed>(*thread, 1), 1u);
  }
}

TEST_F(AgentThreadTest, TakesCommandsFromSeveralThreads) {
  auto thread = Start({});
  std::vector<std::thread> producers;
  for (int p = 0; p < 4; ++p)
    producers.emplace_back([&] {
      for (int i = 0; i < 100; ++i) EXPECT_TRUE(thread->Execute(CloseSend{}).ok());
    });
  EXPECT_EQ(Await<SendReleased>(*thread, 400), 400u);
  for (std::thread& producer : producers) producer.join();
  EXPECT_EQ(agent_.metrics().open_sends.load(), 0);  // readable from any thread
}

}  // namespace
}  // namespace baton::kvtransfer
