#include "bench/router/fake_worker.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "common/check.h"

namespace baton::bench {
namespace {

constexpr uint32_t kPrefillTokensPerSecond = 1'000'000'000;  // of a prefill that takes no time
constexpr absl::Duration kLoadEvery = absl::Milliseconds(50);

wire::WorkerHello Hello() {
  wire::WorkerHello hello;
  hello.worker_id = "fake-0";
  hello.incarnation = Incarnation{1};
  hello.serves_prefill = hello.serves_decode = true;
  hello.kv_address = "127.0.0.1:1";
  hello.pages = 1 << 20;
  hello.max_sequences = 4096;
  hello.max_context = 1 << 20;
  return hello;
}

}  // namespace

FakeWorker::FakeWorker(std::vector<int32_t> text, absl::Duration interval)
    : text_(std::move(text)), interval_(interval) {
  worker::SessionServiceOptions options;
  options.listen_address = "127.0.0.1:0";
  options.silence = absl::Seconds(60);
  auto service = worker::SessionService::Start(
      options, {.hello = Hello(), .engine_beat = [] { return wire::Beat{.engine_steps = 1}; }},
      clock_, events_);
  CHECK(service.ok());
  service_ = *std::move(service);
  thread_ = std::thread([this] { Loop(); });
}

FakeWorker::~FakeWorker() {
  is_stopping_ = true;
  thread_.join();
}

void FakeWorker::Loop() {
  std::vector<worker::SessionEvent> events;
  absl::Time next_step = clock_.Now(), next_load = next_step;
  while (!is_stopping_) {
    events.clear();
    const absl::Duration left = next_step - clock_.Now();
    events_.Drain(events, 1024, std::clamp(left, absl::ZeroDuration(), absl::Milliseconds(20)));
    for (const worker::SessionEvent& event : events) {
      if (const auto* opened = std::get_if<worker::SessionOpened>(&event))
        sessions_[opened->session];
      if (const auto* said = std::get_if<worker::SessionMessage>(&event))
        Apply(said->session, said->message);
      if (const auto* closed = std::get_if<worker::SessionClosed>(&event))
        sessions_.erase(closed->session);
    }
    if (clock_.Now() >= next_load) {
      SayLoad();
      next_load = clock_.Now() + kLoadEvery;
    }
    if (clock_.Now() < next_step) continue;
    bool is_busy = false;
    for (auto& [id, session] : sessions_) {
      is_busy = is_busy || !session.running.empty();
      Step(id, session);
    }
    // Idle without a pace: the queue is waited for.
    next_step = clock_.Now() + (is_busy ? interval_ : absl::Milliseconds(1));
  }
}

// Until it is said the router counts what it was promised since as still there.
void FakeWorker::SayLoad() {
  for (const auto& [id, session] : sessions_) {
    wire::WorkerMessage message;
    message.load = {.free_pages = Hello().pages,
                    .running = static_cast<uint32_t>(session.running.size()),
                    .waiting = static_cast<uint32_t>(session.transfers.size()),
                    .prefill_tokens_per_s = kPrefillTokensPerSecond};
    service_->Send(id, std::move(message));
  }
}

TokenRecord FakeWorker::TokenAt(uint32_t position) const {
  return {.token = text_[position % text_.size()], .logprob = 0, .top = {}};
}

void FakeWorker::Apply(SessionId id, const wire::RouterMessage& message) {
  Session& session = sessions_[id];
  wire::WorkerMessage answer;
  for (const wire::Cancel& cancel : message.cancels) {
    session.transfers.erase(cancel.transfer);
    session.running.erase(cancel.transfer);
  }
  for (const wire::Reserve& reserve : message.reserves)
    answer.reserved.emplace_back().transfer = reserve.transfer;
  if (!answer.reserved.empty()) service_->Send(id, std::move(answer));
  for (const wire::Run& run : message.runs) session.transfers[run.transfer].run = run;
  for (const wire::PromptChunk& chunk : message.prompt_chunks)
    if (chunk.is_last) Begin(id, session, chunk.transfer);
}

void FakeWorker::Begin(SessionId id, Session& session, const TransferId& transfer) {
  const auto it = session.transfers.find(transfer);
  if (it == session.transfers.end()) return;
  const wire::Run& run = it->second.run;
  wire::WorkerMessage answer;
  wire::FirstToken& first = answer.first_tokens.emplace_back();
  first.transfer = transfer;
  first.attempt = run.attempt;
  wire::Landed& landed = answer.landed.emplace_back();
  landed.transfer = transfer;
  landed.attempt = run.attempt;
  std::vector<Sequence>& running = session.running[transfer];
  for (const wire::SequenceSpec& sequence : run.sequences) {
    first.tokens.push_back(TokenAt(run.prompt_tokens));
    landed.tokens.push_back(TokenAt(run.prompt_tokens));
    running.push_back({.handle = sequence.handle,
                       .position = run.prompt_tokens + 1,
                       .left = run.finish.max_tokens - 1});
  }
  answer.prefilled.push_back({.transfer = transfer, .attempt = run.attempt});
  session.transfers.erase(it);
  service_->Send(id, std::move(answer));
}

void FakeWorker::Step(SessionId id, Session& session) {
  wire::WorkerMessage message;
  wire::Tokens tokens{.step = ++num_steps_, .sequences = {}};
  for (auto it = session.running.begin(); it != session.running.end();) {
    std::vector<Sequence>& sequences = it->second;
    std::erase_if(sequences, [&](Sequence& sequence) {
      if (sequence.left > 0) {
        wire::SequenceStep& step = tokens.sequences.emplace_back();
        step.handle = sequence.handle;
        step.first_position = sequence.position;
        step.tokens.push_back(TokenAt(sequence.position));
        ++sequence.position;
        --sequence.left;
      }
      if (sequence.left > 0) return false;
      message.finished.push_back({.handle = sequence.handle, .reason = FinishReason::kLength});
      return true;
    });
    it = sequences.empty() ? session.running.erase(it) : std::next(it);
  }
  if (!tokens.sequences.empty()) message.tokens = std::move(tokens);
  if (message.tokens || !message.finished.empty()) service_->Send(id, std::move(message));
}

}  // namespace baton::bench
