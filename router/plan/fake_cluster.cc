#include "router/plan/fake_cluster.h"

#include <algorithm>
#include <utility>

#include "gtest/gtest.h"

namespace baton::router {
namespace {

const absl::Duration kLatency = absl::Milliseconds(3);

wire::Refused Refusal(const TransferId& transfer, wire::Stage stage,
                      bool lacks_grammar_room = false) {
  wire::Refused refused;
  refused.transfer = transfer;
  refused.stage = stage;
  refused.code = absl::StatusCode::kResourceExhausted;
  refused.message = "full";
  refused.lacks_grammar_room = lacks_grammar_room;
  return refused;
}

}  // namespace

FakeCluster::FakeCluster(const FakeClusterOptions& options, const PlanConfig& config, uint64_t seed)
    : options_(options), rng_(seed), harness_(config, seed + 1) {
  const auto add = [this](int count, WorkerSpec spec) {
    for (int i = 0; i < count; ++i) {
      spec.pages = options_.pages;
      const WorkerId id{static_cast<uint32_t>(ids_.size()) + 1};
      ids_.push_back(id);
      workers_[id].spec = spec;
      Revive(id);
    }
  };
  add(options.num_prefill, kPrefillWorker);
  add(options.num_decode, kDecodeWorker);
  add(options.num_mixed, kMixedWorker);
}

void FakeCluster::At(absl::Duration after, std::function<void()> call) {
  calls_.emplace(harness_.now() + after, std::move(call));
}

// Not if the worker is lost before.
void FakeCluster::AtWorker(WorkerId id, absl::Duration after, std::function<void()> call) {
  const uint64_t epoch = workers_.at(id).epoch;
  At(after, [this, id, epoch, call = std::move(call)] {
    if (workers_.at(id).is_alive && workers_.at(id).epoch == epoch) call();
  });
}

void FakeCluster::RunFor(absl::Duration time) {
  const absl::Time end = harness_.now() + time;
  while (!calls_.empty() && calls_.begin()->first <= end) {
    harness_.Advance(std::max(calls_.begin()->first - harness_.now(), absl::ZeroDuration()));
    Settle();
    if (calls_.begin()->first > harness_.now()) continue;  // a timer's message comes first
    const auto call = std::move(calls_.begin()->second);
    calls_.erase(calls_.begin());
    call();
    Settle();
  }
  harness_.Advance(end - harness_.now());
  Settle();
}

void FakeCluster::Revive(WorkerId id) {
  Worker& worker = workers_.at(id);
  worker.is_alive = true;
  worker.is_draining = false;
  worker.last_in = worker.last_out = harness_.now();
  harness_.Up(id.value, worker.spec);
  Settle();
  AtWorker(id, absl::Milliseconds(100), [this, id] { SendLoad(id); });
}

void FakeCluster::Kill(WorkerId id) {
  Worker& worker = workers_.at(id);
  if (!worker.is_alive) return;
  worker.is_alive = false;
  ++worker.epoch;
  worker.landings.clear();
  worker.jobs.clear();
  const absl::Duration heard = Delay(options_.detection);
  At(heard, [this, id] { harness_.Down(id); });
  At(heard + Delay(options_.revival), [this, id] { Revive(id); });
}

RequestKey FakeCluster::Arrive(GenerateRequest request) {
  const RequestKey key = harness_.Arrive(std::move(request));
  Settle();
  return key;
}

void FakeCluster::ClientGone(RequestKey key) {
  harness_.ClientGoneNow(key);
  Settle();
}

void FakeCluster::CancelChoice(RequestKey key, int choice) {
  harness_.On(router::CancelChoice{.key = key, .choice = choice, .reason = "stop string"});
  Settle();
}

void FakeCluster::Settle() {
  const std::vector<SendToWorker>& sent = harness_.sent();
  for (; num_settled_ < sent.size(); ++num_settled_) outbox_.Add(sent[num_settled_]);
  for (auto& [id, message] : outbox_.Take()) {
    Worker& worker = workers_.at(id);
    worker.last_in = std::max(worker.last_in, harness_.now() + Delay(kLatency));
    AtWorker(id, worker.last_in - harness_.now(),
             [this, to = id, moved = std::move(message)] { Deliver(to, moved); });
  }
}

void FakeCluster::ToRouter(WorkerId id, wire::WorkerMessage message) {
  Worker& worker = workers_.at(id);
  worker.last_out = std::max(worker.last_out, harness_.now() + Delay(kLatency));
  AtWorker(id, worker.last_out - harness_.now(),
           [this, id, moved = std::move(message)] { harness_.Say(id, moved); });
}

void FakeCluster::Deliver(WorkerId id, const wire::RouterMessage& message) {
  for (const auto& item : message.cancels) OnCancel(workers_.at(id), item);
  for (const auto& item : message.reserves) OnReserve(id, item);
  for (const auto& item : message.retargets) OnRetarget(id, item);
  for (const auto& item : message.runs) OnRun(id, item);
  for (const auto& item : message.prompt_chunks) OnChunk(id, item);
  for (const auto& item : message.moves) OnMove(id, item);
}

void FakeCluster::OnCancel(Worker& worker, const wire::Cancel& cancel) {
  const bool is_known =
      worker.landings.contains(cancel.transfer) || worker.jobs.contains(cancel.transfer);
  if (!cancel.sequence) {
    worker.landings.erase(cancel.transfer);
    worker.jobs.erase(cancel.transfer);
  } else if (is_known) {
    worker.landings[cancel.transfer].cancelled.insert(*cancel.sequence);
  }
}

uint32_t FakeCluster::UsedPages(const Worker& worker) const {
  uint32_t pages = 0;
  for (const auto& [transfer, landing] : worker.landings) pages += landing.reserve.num_pages;
  return pages;
}

void FakeCluster::SendLoad(WorkerId id) {
  const Worker& worker = workers_.at(id);
  wire::Load load;
  load.free_pages = worker.spec.pages - UsedPages(worker);
  load.prefill_tokens_per_s = 20'000;
  load.last_step_us = 5'000;
  load.is_draining = worker.is_draining;
  for (const auto& [transfer, landing] : worker.landings)
    ++(landing.is_filled ? load.running : load.waiting);
  wire::WorkerMessage message;
  message.load = load;
  ToRouter(id, std::move(message));
  AtWorker(id, absl::Milliseconds(100), [this, id] { SendLoad(id); });
}

void FakeCluster::OnReserve(WorkerId id, const wire::Reserve& reserve) {
  Worker& worker = workers_.at(id);
  ASSERT_FALSE(worker.landings.contains(reserve.transfer));
  wire::WorkerMessage message;
  const bool is_full =
      worker.is_draining || UsedPages(worker) + reserve.num_pages > worker.spec.pages;
  const bool lacks_grammar_room = LacksGrammarRoom(reserve.masks);
  if (is_full || lacks_grammar_room || Chance(options_.refusal)) {
    message.refused.push_back(Refusal(reserve.transfer, wire::Stage::kReserve, lacks_grammar_room));
    return ToRouter(id, std::move(message));
  }
  Landing& landing = worker.landings[reserve.transfer];
  landing.reserve = reserve;
  wire::Reserved reserved;
  reserved.transfer = reserve.transfer;
  reserved.landing.num_ranks = id.value;  // how the jobs find their landing
  message.reserved.push_back(std::move(reserved));
  ToRouter(id, std::move(message));
}

void FakeCluster::OnRetarget(WorkerId id, const wire::Retarget& retarget) {
  Worker& worker = workers_.at(id);
  wire::WorkerMessage message;
  const auto it = worker.landings.find(retarget.transfer);
  if (it == worker.landings.end()) {
    message.refused.push_back(Refusal(retarget.transfer, wire::Stage::kRetarget));
  } else {
    it->second.attempt = retarget.attempt;
    message.retargeted.push_back(
        {.transfer = retarget.transfer, .attempt = retarget.attempt, .verified_pages = {false}});
  }
  ToRouter(id, std::move(message));
}

void FakeCluster::OnRun(WorkerId id, const wire::Run& run) {
  Worker& worker = workers_.at(id);
  const bool lacks_grammar_room = LacksGrammarRoom(run.masks);
  if (worker.is_draining || lacks_grammar_room || Chance(options_.refusal)) {
    wire::WorkerMessage message;
    message.refused.push_back(Refusal(run.transfer, wire::Stage::kRun, lacks_grammar_room));
    return ToRouter(id, std::move(message));
  }
  ASSERT_FALSE(worker.jobs.contains(run.transfer));
  worker.jobs[run.transfer].run = run;
}

void FakeCluster::OnChunk(WorkerId id, const wire::PromptChunk& chunk) {
  Worker& worker = workers_.at(id);
  const auto job = worker.jobs.find(chunk.transfer);
  if (job != worker.jobs.end()) {
    EXPECT_EQ(job->second.prompt_received, chunk.offset);
    job->second.prompt_received += static_cast<uint32_t>(chunk.tokens.size());
    if (chunk.is_last) StartJob(id, chunk.transfer);
    return;
  }
  const auto landing = worker.landings.find(chunk.transfer);
  if (landing == worker.landings.end()) return;  // refused
  if (landing->second.prompt_received == landing->second.reserve.prompt_tokens)
    return;  // of a refused job
  EXPECT_EQ(landing->second.prompt_received, chunk.offset);
  landing->second.prompt_received += static_cast<uint32_t>(chunk.tokens.size());
}

void FakeCluster::StartJob(WorkerId id, const TransferId& transfer) {
  Job& job = workers_.at(id).jobs.at(transfer);
  EXPECT_EQ(job.prompt_received, job.run.prompt_tokens);
  const Attempt attempt = job.run.attempt;
  const absl::Duration time = absl::Milliseconds(5) +
                              absl::Seconds(job.run.prompt_tokens / 20'000.0) +
                              Delay(absl::Milliseconds(40));
  const uint32_t half = job.run.prompt_tokens / 2;
  AtWorker(id, rng_.Uniform() * time,
           [this, id, transfer, attempt, half] { Report(id, transfer, attempt, half); });
  AtWorker(id, time, [this, id, transfer, attempt] { FinishJob(id, transfer, attempt); });
}

// What is not yet said of the prompt, up to `end`.
void FakeCluster::Report(WorkerId id, const TransferId& transfer, Attempt attempt, uint32_t end) {
  auto& jobs = workers_.at(id).jobs;
  const auto it = jobs.find(transfer);
  if (it == jobs.end() || it->second.run.attempt != attempt) return;
  Job& job = it->second;
  wire::PromptLogprobs report;
  report.transfer = transfer;
  report.first_position = job.num_reported + 1;
  for (; job.num_reported + 1 < end; ++job.num_reported)
    report.tokens.push_back(CoreHarness::TokenAt(0, job.num_reported + 1));
  if (!job.run.prompt_logprobs || report.tokens.empty()) return;
  wire::WorkerMessage message;
  message.prompt_logprobs.push_back(std::move(report));
  ToRouter(id, std::move(message));
}

void FakeCluster::FinishJob(WorkerId id, const TransferId& transfer, Attempt attempt) {
  Worker& worker = workers_.at(id);
  const auto it = worker.jobs.find(transfer);
  if (it == worker.jobs.end()) return;  // cancelled
  const wire::Run& run = it->second.run;
  wire::WorkerMessage message;
  if (Chance(options_.failure)) {
    wire::Failed failed;
    failed.transfer = transfer;
    failed.code = absl::StatusCode::kDataLoss;
    message.failed.push_back(std::move(failed));
    worker.jobs.erase(it);
    return ToRouter(id, std::move(message));
  }
  Report(id, transfer, attempt, run.prompt_tokens);
  wire::FirstToken first;
  first.transfer = transfer;
  first.attempt = attempt;
  first.prefill_us = 4'000;
  for (const wire::SequenceSpec& sequence : run.sequences)
    first.tokens.push_back(
        CoreHarness::TokenAt(static_cast<int>(sequence.choice), run.prompt_tokens));
  message.first_tokens.push_back(std::move(first));
  const WorkerId decode{run.landing.num_ranks};
  ToRouter(id, std::move(message));
  AtWorker(id, Delay(absl::Milliseconds(20)), [this, decode, transfer, attempt, id] {
    if (workers_.at(id).jobs.contains(transfer)) Fill(decode, transfer, attempt, id);
  });
}

// The last block arrives, if the landing still is the one that the attempt was meant for.
void FakeCluster::Fill(WorkerId decode, const TransferId& transfer, Attempt attempt,
                       WorkerId prefill) {
  Worker& worker = workers_.at(decode);
  const auto it = worker.landings.find(transfer);
  if (!worker.is_alive || it == worker.landings.end() || it->second.attempt != attempt) return;
  Landing& landing = it->second;
  if (landing.is_filled) return;
  landing.is_filled = true;
  EXPECT_EQ(landing.prompt_received >= landing.reserve.prompt_tokens, true);
  wire::Landed landed;
  landed.transfer = transfer;
  landed.attempt = attempt;
  for (uint32_t i = 0; i < landing.reserve.sequences.size(); ++i) {
    const wire::SequenceSpec& sequence = landing.reserve.sequences[i];
    landed.tokens.push_back(
        CoreHarness::TokenAt(static_cast<int>(sequence.choice), landing.reserve.prompt_tokens));
    landing.next[i] = landing.reserve.prompt_tokens + 1;  // forced tokens are told again
  }
  wire::WorkerMessage message;
  message.landed.push_back(std::move(landed));
  ToRouter(decode, std::move(message));
  wire::WorkerMessage done;
  done.prefilled.push_back({.transfer = transfer, .attempt = attempt});
  ToRouter(prefill, std::move(done));
  workers_.at(prefill).jobs.erase(transfer);
  AtWorker(decode, absl::Milliseconds(5), [this, decode, transfer] { Step(decode, transfer); });
}

void FakeCluster::Drain(WorkerId id) { workers_.at(id).is_draining = true; }

// Without a landing the sequence stops, its last tokens first; with one its pages go there.
void FakeCluster::OnMove(WorkerId id, const wire::Move& move) {
  for (auto& [transfer, landing] : workers_.at(id).landings) {
    if (landing.reserve.sequences[0].handle != move.handle || !landing.is_filled) continue;
    if (!move.landing) return Stop(id, landing, move.handle);
    EXPECT_TRUE(landing.is_stopped) << "moved without being stopped";
    const WorkerId decode{move.landing->num_ranks};
    const uint64_t epoch = workers_.at(decode).epoch;
    const TransferId source = transfer;
    AtWorker(id, Delay(absl::Milliseconds(30)), [this, id, decode, epoch, source, move] {
      const bool is_here = workers_.at(id).landings.contains(source);
      if (is_here && workers_.at(decode).epoch == epoch) FillMoved(decode, source, move);
    });
    return;
  }
}

void FakeCluster::Stop(WorkerId id, Landing& landing, SequenceHandle handle) {
  wire::WorkerMessage message;
  if (landing.finished.contains(0)) return;  // its Finished is on the way
  if (Chance(options_.refusal)) {
    message.refused.push_back(Refusal(landing.reserve.transfer, wire::Stage::kMove));
    return ToRouter(id, std::move(message));
  }
  landing.is_stopped = true;
  message.parked.push_back(handle);
  ToRouter(id, std::move(message));
}

void FakeCluster::FillMoved(WorkerId decode, const TransferId& source, const wire::Move& move) {
  Worker& worker = workers_.at(decode);
  const auto it = worker.landings.find(move.transfer);
  if (!worker.is_alive || it == worker.landings.end()) return;
  EXPECT_FALSE(source == move.transfer);
  wire::WorkerMessage message;
  if (Chance(options_.failure)) {
    wire::Failed failed;
    failed.transfer = move.transfer;
    failed.code = absl::StatusCode::kDataLoss;
    message.failed.push_back(std::move(failed));
    worker.landings.erase(it);
    return ToRouter(decode, std::move(message));
  }
  Landing& landing = it->second;
  landing.is_filled = true;
  EXPECT_EQ(landing.prompt_received, landing.reserve.prompt_tokens);
  const wire::SequenceSpec& sequence = landing.reserve.sequences[0];
  const int64_t last = landing.reserve.prompt_tokens + int64_t(sequence.received.size());
  landing.next[0] = last + 1;
  wire::Landed landed;
  landed.transfer = move.transfer;
  landed.attempt = 1;
  landed.tokens.push_back(CoreHarness::TokenAt(static_cast<int>(sequence.choice), last));
  message.landed.push_back(std::move(landed));
  ToRouter(decode, std::move(message));
  AtWorker(decode, absl::Milliseconds(5),
           [this, decode, transfer = move.transfer] { Step(decode, transfer); });
}

void FakeCluster::Step(WorkerId id, const TransferId& transfer) {
  Worker& worker = workers_.at(id);
  const auto it = worker.landings.find(transfer);
  if (it == worker.landings.end() || it->second.is_stopped) return;
  Landing& landing = it->second;
  wire::WorkerMessage message;
  message.tokens.emplace();
  for (uint32_t i = 0; i < landing.reserve.sequences.size(); ++i) {
    if (landing.cancelled.contains(i) || landing.finished.contains(i)) continue;
    const wire::SequenceSpec& sequence = landing.reserve.sequences[i];
    const int64_t end = landing.reserve.prompt_tokens + landing.reserve.finish.max_tokens;
    wire::SequenceStep step;
    step.handle = sequence.handle;
    step.first_position = static_cast<uint32_t>(landing.next[i]);
    const int64_t count = 1 + static_cast<int64_t>(rng_.Below(3));
    for (int64_t k = 0; k < count && landing.next[i] < end; ++k)
      step.tokens.push_back(
          CoreHarness::TokenAt(static_cast<int>(sequence.choice), landing.next[i]++));
    if (!step.tokens.empty()) message.tokens->sequences.push_back(std::move(step));
    if (landing.next[i] < end) continue;
    landing.finished.insert(i);
    message.finished.push_back({.handle = sequence.handle, .reason = FinishReason::kLength});
  }
  ToRouter(id, std::move(message));
  AtWorker(id, absl::Milliseconds(5), [this, id, transfer] { Step(id, transfer); });
}

}  // namespace baton::router
