#include "router/plan/planner_thread.h"

#include <memory>
#include <numeric>
#include <thread>
#include <utility>

#include "gtest/gtest.h"

#include "common/clock.h"

namespace baton::router {
namespace {

// Records what is sent; plays a worker that is both ends if asked to. Any thread.
class FakeLinks : public WorkerLinks {
 public:
  void Send(WorkerId worker, wire::RouterMessage message) override {
    for (const wire::Reserve& reserve : message.reserves) Answer(worker, reserve);
    for (const wire::Run& run : message.runs) Answer(worker, run);
    MutexLock lock(mutex_);
    sent_.emplace_back(worker, std::move(message));
  }
  void Close(WorkerId worker, const absl::Status&) override {
    MutexLock lock(mutex_);
    closed_.push_back(worker);
  }
  void PlayFor(PlannerThread& planner) { planner_ = &planner; }
  size_t num_sent() const {
    MutexLock lock(mutex_);
    return sent_.size();
  }
  // Workers that were told to drop their caches.
  std::vector<WorkerId> dropped() const {
    MutexLock lock(mutex_);
    std::vector<WorkerId> workers;
    for (const auto& [worker, message] : sent_)
      if (message.drops_cache) workers.push_back(worker);
    return workers;
  }
  std::vector<WorkerId> closed() const {
    MutexLock lock(mutex_);
    return closed_;
  }

 private:
  void Answer(WorkerId worker, const wire::Reserve& reserve) {
    if (planner_ == nullptr) return;
    wire::WorkerMessage message;
    message.reserved.emplace_back().transfer = reserve.transfer;
    planner_->OnWorkerEvent(worker, std::move(message));
  }
  void Answer(WorkerId worker, const wire::Run& run) {
    if (planner_ == nullptr) return;
    wire::WorkerMessage message;
    wire::Landed& landed = message.landed.emplace_back();
    landed.transfer = run.transfer;
    landed.tokens.resize(1);
    const SequenceHandle handle = run.sequences[0].handle;
    wire::SequenceStep step;
    step.handle = handle;
    step.first_position = run.prompt_tokens + 1;
    step.tokens.resize(static_cast<size_t>(run.finish.max_tokens - 1));
    message.tokens.emplace().sequences.push_back(std::move(step));
    message.finished.push_back({.handle = handle, .reason = FinishReason::kLength});
    planner_->OnWorkerEvent(worker, std::move(message));
  }

  PlannerThread* planner_ = nullptr;
  mutable Mutex mutex_;
  std::vector<std::pair<WorkerId, wire::RouterMessage>> sent_ GUARDED_BY(mutex_);
  std::vector<WorkerId> closed_ GUARDED_BY(mutex_);
};

struct Heard {
  mutable Mutex mutex;
  std::vector<RequestEvent> events GUARDED_BY(mutex);
  RequestSink Sink() {
    return [this](std::vector<RequestEvent> batch) {
      MutexLock lock(mutex);
      for (RequestEvent& event : batch) events.push_back(std::move(event));
    };
  }
  size_t count() const {
    MutexLock lock(mutex);
    return events.size();
  }
  std::optional<absl::Status> End() const {
    MutexLock lock(mutex);
    if (events.empty()) return std::nullopt;
    const auto* ended = std::get_if<RequestEnded>(&events.back());
    return ended == nullptr ? std::nullopt : std::optional(ended->status);
  }
  int num_tokens() const {
    MutexLock lock(mutex);
    int count = 0;
    for (const RequestEvent& event : events)
      if (const auto* tokens = std::get_if<TokensEmitted>(&event))
        count += static_cast<int>(tokens->tokens.size());
    return count;
  }
};

GenerateRequest MakeRequest(absl::Time now) {
  GenerateRequest request;
  request.prompt = std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>(300, 5));
  request.finish.max_tokens = 8;
  request.arrival = now;
  request.first_token_deadline = now + absl::Seconds(600);
  return request;
}

wire::WorkerHello MixedHello() {
  wire::WorkerHello hello;
  hello.worker_id = "mixed";
  hello.serves_prefill = hello.serves_decode = true;
  hello.pages = 100;
  hello.max_sequences = 16;
  hello.max_context = 10'000;
  return hello;
}

struct Fixture {
  ManualClock clock;
  SeededRng rng{1};
  FakeLinks links;
  PlannerThread planner;
  explicit Fixture(PlannerThreadConfig config = {}) : planner({}, config, clock, rng, links) {}
  void Turn() {
    while (planner.RunOnce(absl::ZeroDuration()) > 0) {
    }
  }
};

TEST(PlannerThread, CarriesARequestToItsEnd) {
  Heard heard;
  Fixture f;
  f.links.PlayFor(f.planner);
  const WorkerId worker = f.planner.AddWorker("host:1");
  f.planner.OnWorkerEvent(worker, SessionUp{.hello = MixedHello(), .address = "host:1"});
  f.planner.Submit(MakeRequest(f.clock.Now()), heard.Sink());
  f.Turn();
  ASSERT_TRUE(heard.End().has_value());
  EXPECT_TRUE(heard.End()->ok());
  EXPECT_EQ(heard.num_tokens(), 8);
}

TEST(PlannerThread, PublishesTheClusterAtOnceWhenAWorkerComes) {
  Fixture f;
  EXPECT_EQ(f.planner.View()->decode_ready, 0);
  const WorkerId worker = f.planner.AddWorker("host:1");
  f.Turn();
  ASSERT_EQ(f.planner.View()->workers.size(), 1u);
  EXPECT_EQ(f.planner.View()->workers[0].state, "connecting");
  f.planner.OnWorkerEvent(worker, SessionUp{.hello = MixedHello(), .address = "host:1"});
  f.Turn();
  EXPECT_EQ(f.planner.View()->decode_ready, 1);
  EXPECT_EQ(f.planner.View()->max_context, 10'000);
  EXPECT_EQ(f.planner.View()->workers[0].address, "host:1");
  f.planner.OnWorkerEvent(worker, SessionDown{absl::UnavailableError("silent for 2s")});
  f.Turn();
  EXPECT_EQ(f.planner.View()->workers[0].state, "gone");
  EXPECT_EQ(f.planner.Facts()->workers_lost, 1u);
}

TEST(PlannerThread, FiresTimersByItsClock) {
  Heard heard;  // outlives the planner, whose end it hears
  Fixture f;
  f.planner.Submit(MakeRequest(f.clock.Now()), heard.Sink());
  f.Turn();
  EXPECT_EQ(heard.count(), 1u);  // accepted, nobody there yet
  f.clock.Advance(absl::Seconds(4));
  f.planner.RunOnce(absl::ZeroDuration());
  ASSERT_TRUE(heard.End().has_value());
  EXPECT_TRUE(absl::IsUnavailable(*heard.End()));
}

TEST(PlannerThread, AFullQueueRefusesRequestsButLosesNoCancel) {
  Heard first;
  Heard others[5];
  Fixture f({.max_inputs = 4});
  const RequestKey key = f.planner.Submit(MakeRequest(f.clock.Now()), first.Sink());
  for (Heard& other : others) f.planner.Submit(MakeRequest(f.clock.Now()), other.Sink());
  ASSERT_TRUE(others[4].End().has_value());
  EXPECT_TRUE(absl::IsResourceExhausted(*others[4].End()));
  f.planner.Cancel(key, std::nullopt, "client left");
  f.Turn();
  ASSERT_TRUE(first.End().has_value());
  EXPECT_TRUE(absl::IsCancelled(*first.End()));
}

TEST(PlannerThread, ALostWorkerEventEndsItsSession) {
  Fixture f({.max_inputs = 3});
  const WorkerId worker = f.planner.AddWorker("host:1");
  f.planner.OnWorkerEvent(worker, SessionUp{.hello = MixedHello(), .address = "host:1"});
  for (int i = 0; i < 3; ++i) f.planner.OnWorkerEvent(worker, wire::WorkerMessage{});
  f.Turn();
  EXPECT_EQ(f.links.closed(), std::vector<WorkerId>{worker});
  EXPECT_EQ(f.planner.View()->workers[0].state, "gone");
}

TEST(PlannerThread, TellsEveryWorkerToDropItsCache) {
  Fixture f;
  const WorkerId first = f.planner.AddWorker("host:1"), second = f.planner.AddWorker("host:2");
  f.planner.Control(DropCaches{});
  f.Turn();
  EXPECT_EQ(f.links.dropped(), (std::vector<WorkerId>{first, second}));
}

TEST(PlannerThread, AbortsRequestsByTheirId) {
  Heard one, other, third;
  Fixture f;
  GenerateRequest request = MakeRequest(f.clock.Now());
  request.request_id = "a";
  f.planner.Submit(request, one.Sink());
  request.request_id = "b";
  f.planner.Submit(request, other.Sink());
  f.planner.Control(AbortRequests{.request_id = "a"});
  f.Turn();
  ASSERT_TRUE(one.End().has_value());
  EXPECT_EQ(one.End()->code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(other.End().has_value());
  f.planner.Submit(request, third.Sink());
  f.planner.Control(AbortRequests{});
  f.Turn();
  EXPECT_TRUE(other.End().has_value());
  EXPECT_TRUE(third.End().has_value());
}

TEST(PlannerThread, StoppingEndsLiveRequests) {
  Heard heard;  // outlives the planner, whose end it hears
  Fixture f;
  f.planner.Submit(MakeRequest(f.clock.Now()), heard.Sink());
  f.Turn();
  f.planner.Stop();
  ASSERT_TRUE(heard.End().has_value());
  EXPECT_TRUE(absl::IsUnavailable(*heard.End()));
  Heard late;
  f.planner.Submit(MakeRequest(f.clock.Now()), late.Sink());
  EXPECT_TRUE(absl::IsUnavailable(*late.End()));
}

// The thread itself, with clients and sessions on threads of their own; TSan looks at this one.
TEST(PlannerThread, ServesManyThreads) {
  SteadyClock clock;
  SeededRng rng(1);
  FakeLinks links;
  PlannerThread planner({}, {}, clock, rng, links);
  links.PlayFor(planner);
  planner.Start();
  const WorkerId worker = planner.AddWorker("host:1");
  planner.OnWorkerEvent(worker, SessionUp{.hello = MixedHello(), .address = "host:1"});
  std::vector<std::unique_ptr<Heard>> all;
  for (int i = 0; i < 40; ++i) all.push_back(std::make_unique<Heard>());
  std::vector<std::thread> clients;
  for (size_t t = 0; t < 4; ++t) {
    clients.emplace_back([&, t] {
      for (size_t i = 0; i < 10; ++i) {
        const RequestKey key = planner.Submit(MakeRequest(clock.Now()), all[t * 10 + i]->Sink());
        if (i % 3 == 0) planner.Cancel(key, std::nullopt, "client left");
        EXPECT_NE(planner.View(), nullptr);
        EXPECT_NE(planner.Facts(), nullptr);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  planner.Stop();
  for (const auto& heard : all) {
    ASSERT_TRUE(heard->End().has_value());
    if (heard->End()->ok()) {
      EXPECT_EQ(heard->num_tokens(), 8);
    }
  }
}

}  // namespace
}  // namespace baton::router
