// Both ends of a session over loopback: the router's SessionPool and the worker's SessionService
// (contracts.md 5).
#include <atomic>
#include <functional>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/rng.h"
#include "proto/session.grpc.pb.h"
#include "proto/wire.h"
#include "router/net/session_client.h"
#include "router/plan/planner_thread.h"
#include "worker/session_service.h"

namespace baton {
namespace {

constexpr absl::Duration kPatience = absl::Seconds(20);  // on a machine that does much else

// Starts at the machine's time and can be pushed forward, so that silence needs no waiting.
class SkippingClock final : public Clock {
 public:
  absl::Time Now() const override { return real_.Now() + absl::Milliseconds(skipped_ms_.load()); }
  void Skip(absl::Duration by) { skipped_ms_ += absl::ToInt64Milliseconds(by); }

 private:
  SteadyClock real_;
  std::atomic<int64_t> skipped_ms_ = 0;
};

wire::WorkerHello Hello(uint64_t incarnation) {
  wire::WorkerHello hello;
  hello.worker_id = "decode-0";
  hello.incarnation = Incarnation{incarnation};
  hello.serves_decode = hello.serves_prefill = true;
  hello.kv_address = "127.0.0.1:1";
  hello.pages = 64;
  hello.max_sequences = 4;
  hello.max_context = 4096;
  return hello;
}

class Worker {
 public:
  Worker(int port, uint64_t incarnation, const Clock& clock,
         absl::Duration beat = absl::Milliseconds(20)) {
    worker::SessionServiceOptions options;
    options.listen_address = absl::StrFormat("127.0.0.1:%d", port);
    options.beat_interval = beat;
    options.silence = kPatience * 2;
    auto service = worker::SessionService::Start(
        options,
        {.hello = Hello(incarnation), .engine_beat = [] { return wire::Beat{.engine_steps = 5}; }},
        clock, events_);
    EXPECT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
  }
  void CloseInbox() { events_.Close(); }
  int port() const { return service_->port(); }
  worker::SessionService& service() { return *service_; }

  // The next event of kind Event, or nullopt after kPatience.
  template <typename Event>
  std::optional<Event> Next() {
    const SteadyClock clock;
    for (const absl::Time until = clock.Now() + kPatience; clock.Now() < until;) {
      std::vector<worker::SessionEvent> events;
      events_.Drain(events, 1, absl::Milliseconds(50));
      if (!events.empty() && std::holds_alternative<Event>(events[0]))
        return std::get<Event>(events[0]);
    }
    return std::nullopt;
  }

 private:
  BoundedQueue<worker::SessionEvent> events_{1024};
  std::unique_ptr<worker::SessionService> service_;
};

class SessionTest : public testing::Test {
 protected:
  void Connect(const std::string& address, size_t max_outbox = 1024) {
    router::SessionPoolOptions options;
    options.incarnation = Incarnation{77};
    options.workers = {address};
    options.beat_interval = absl::Milliseconds(20);
    options.silence = kPatience * 2;
    options.reconnect_interval = absl::Milliseconds(20);
    options.max_outbox_messages = max_outbox;
    pool_.emplace(options, clock_);
    planner_.emplace(plan_, router::PlannerThreadConfig{}, real_, rng_, *pool_);
    ASSERT_TRUE(pool_->Start(*planner_).ok());
    planner_->Start();
  }
  void TearDown() override {
    if (planner_) planner_->Stop();
    if (pool_) pool_->Stop();
  }

  bool Eventually(const std::function<bool()>& holds) const {
    for (const absl::Time until = real_.Now() + kPatience; real_.Now() < until;
         baton::SleepFor(absl::Milliseconds(2)))
      if (holds()) return true;
    return false;
  }
  std::string State() const {
    const auto view = planner_->View();
    return view->workers.empty() ? "unknown" : view->workers[0].state;
  }
  bool IsReady() const { return planner_->View()->decode_ready == 1; }

  const SteadyClock real_;
  SkippingClock clock_;
  SystemRng rng_;
  router::PlanConfig plan_;
  std::optional<router::SessionPool> pool_;
  std::optional<router::PlannerThread> planner_;
};

wire::RouterMessage Cancel(uint8_t number) {
  wire::RouterMessage message;
  message.cancels.emplace_back();
  message.cancels[0].transfer.bytes[0] = number;
  return message;
}

TEST_F(SessionTest, SaysHelloBothWaysAndBeats) {
  Worker worker(0, 1, clock_);
  Connect(absl::StrFormat("127.0.0.1:%d", worker.port()));
  const auto opened = worker.Next<worker::SessionOpened>();
  ASSERT_TRUE(opened.has_value());
  EXPECT_EQ(opened->hello.incarnation.value, 77u);
  EXPECT_TRUE(Eventually([this] { return IsReady(); }));
  EXPECT_EQ(planner_->View()->max_context, 4096);
  EXPECT_EQ(worker.service().num_sessions(), 1);
}

TEST_F(SessionTest, KeepsChunksBehindTheirRunAndInOrder) {
  Worker worker(0, 1, clock_);
  Connect(absl::StrFormat("127.0.0.1:%d", worker.port()));
  ASSERT_TRUE(worker.Next<worker::SessionOpened>().has_value());
  ASSERT_TRUE(Eventually([this] { return IsReady(); }));
  constexpr uint32_t kChunks = 50;
  for (uint32_t i = 0; i < kChunks; ++i) {
    wire::RouterMessage message = Cancel(static_cast<uint8_t>(i));
    message.prompt_chunks.push_back(
        {.transfer = {}, .offset = i, .tokens = {1}, .is_last = i + 1 == kChunks});
    pool_->Send(WorkerId{1}, message);
  }
  uint32_t chunks = 0;
  while (chunks < kChunks) {
    const auto message = worker.Next<worker::SessionMessage>();
    ASSERT_TRUE(message.has_value());
    for (const wire::PromptChunk& chunk : message->message.prompt_chunks)
      EXPECT_EQ(chunk.offset, chunks++);
  }
}

TEST_F(SessionTest, ReachesThePlanner) {
  Worker worker(0, 1, clock_);
  Connect(absl::StrFormat("127.0.0.1:%d", worker.port()));
  const auto opened = worker.Next<worker::SessionOpened>();
  ASSERT_TRUE(opened.has_value());
  wire::WorkerMessage message;
  message.load.emplace();
  message.load->free_pages = 41;
  worker.service().Send(opened->session, message);
  EXPECT_TRUE(
      Eventually([this] { return IsReady() && planner_->View()->workers[0].free_pages == 41; }));
}

TEST_F(SessionTest, SilenceEndsTheSessionAndAnotherBegins) {
  Worker worker(0, 1, real_, /*beat=*/kPatience);
  Connect(absl::StrFormat("127.0.0.1:%d", worker.port()));
  ASSERT_TRUE(worker.Next<worker::SessionOpened>().has_value());
  ASSERT_TRUE(Eventually([this] { return IsReady(); }));
  clock_.Skip(kPatience * 3);  // as if nothing had been heard for so long
  EXPECT_TRUE(worker.Next<worker::SessionClosed>().has_value());
  EXPECT_TRUE(worker.Next<worker::SessionOpened>().has_value());
  EXPECT_TRUE(Eventually([this] { return planner_->Facts()->workers_lost == 1 && IsReady(); }));
}

TEST_F(SessionTest, AWorkerThatStartsAgainIsFoundAgain) {
  auto worker = std::make_unique<Worker>(0, 1, clock_);
  const int port = worker->port();
  Connect(absl::StrFormat("127.0.0.1:%d", port));
  ASSERT_TRUE(Eventually([this] { return IsReady(); }));
  worker.reset();
  ASSERT_TRUE(Eventually([this] { return State() == "gone"; })) << State();
  worker = std::make_unique<Worker>(port, 2, clock_);
  EXPECT_TRUE(worker->Next<worker::SessionOpened>().has_value());
  EXPECT_TRUE(Eventually([this] { return IsReady(); }));
}

// A program that ends takes no more events, and does not say that it has too many of them.
TEST_F(SessionTest, AWorkerThatEndsRefusesSessionsAsUnavailable) {
  Worker worker(0, 1, clock_);
  worker.CloseInbox();
  auto stub = pb::Worker::NewStub(grpc::CreateChannel(
      absl::StrFormat("127.0.0.1:%d", worker.port()), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  auto stream = stub->Session(&context);
  wire::RouterMessage hello;
  hello.hello.emplace().router_id = "router-0";
  pb::RouterMessage outgoing;
  wire::ToProto(hello, outgoing);
  ASSERT_TRUE(stream->Write(outgoing));
  for (pb::WorkerMessage incoming; stream->Read(&incoming);) {
  }
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_EQ(status.error_message(), "the worker is ending");
}

TEST_F(SessionTest, AFullOutboxEndsTheSession) {
  Worker worker(0, 1, clock_);
  Connect(absl::StrFormat("127.0.0.1:%d", worker.port()), /*max_outbox=*/4);
  ASSERT_TRUE(worker.Next<worker::SessionOpened>().has_value());
  ASSERT_TRUE(Eventually([this] { return IsReady(); }));
  wire::RouterMessage large;
  large.prompt_chunks.push_back(
      {.transfer = {}, .offset = 0, .tokens = std::vector<int32_t>(60'000, 7), .is_last = false});
  for (int i = 0; i < 200; ++i) pool_->Send(WorkerId{1}, large);  // faster than the stream writes
  EXPECT_TRUE(worker.Next<worker::SessionClosed>().has_value());
  EXPECT_TRUE(Eventually([this] { return planner_->Facts()->workers_lost >= 1; }));
}

TEST_F(SessionTest, RefusesAnAddressThatIsNone) {
  for (const std::string address : {"nowhere", "host:0", "host:99999", ":80", "dns:host"}) {
    router::SessionPoolOptions options;
    options.workers = {address};
    router::SessionPool pool(options, clock_);
    router::PlannerThread planner(plan_, {}, real_, rng_, pool);
    const absl::Status status = pool.Start(planner);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_NE(status.message().find(address), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace baton
