#include "router/plan/worker_table.h"

#include <algorithm>
#include <utility>

namespace baton::router {

bool WorkerRecord::IsSuspect(absl::Time now, const PlanConfig& config) const {
  return now - last_heard >= config.suspect_after;
}

double WorkerRecord::PrefillRate(const PlanConfig& config) const {
  if (load && load->prefill_tokens_per_s > 0) return load->prefill_tokens_per_s;
  return config.assumed_prefill_tokens_per_s;
}

// What it reported includes what we sent it, unless that came later; other routers' work only shows
// there.
uint64_t WorkerRecord::QueuedTokens() const {
  return std::max(open_tokens, load ? load->queued_prompt_tokens : 0);
}

bool WorkerRecord::HasPrefillSlot(absl::Time now, const PlanConfig& config) const {
  if (now < no_prefill_before || open_prefills >= config.max_prefills_per_worker) return false;
  if (open_prefills == 0) return true;  // other routers' work is the worker's to refuse
  const double seconds = static_cast<double>(QueuedTokens()) / PrefillRate(config);
  return absl::Seconds(seconds) < config.max_worker_queue;
}

void WorkerRecord::HoldBack(const wire::Refused& refused, absl::Time again) {
  if (refused.lacks_grammar_room)
    no_grammar_before = std::max(no_grammar_before, again);
  else if (refused.stage == wire::Stage::kRun)
    no_prefill_before = again;
  else
    no_landing_before = again;
}

DecodeCandidate WorkerRecord::AsDecodeCandidate() const {
  DecodeCandidate candidate{
      .worker = id, .free_pages = hello.pages, .max_sequences = hello.max_sequences};
  if (load) {
    candidate.free_pages = load->free_pages + load->cached_pages;
    candidate.sequences = load->running + load->waiting;
    candidate.running = load->running;
    candidate.last_step_us = load->last_step_us;
  }
  const uint32_t promised = asked_pages + fresh_pages;
  candidate.free_pages -= std::min(candidate.free_pages, promised);
  candidate.sequences += asked_sequences + fresh_sequences;
  return candidate;
}

WorkerRecord& WorkerTable::Add(WorkerId id, std::string address) {
  WorkerRecord& worker = workers_[id];
  worker.id = id;
  worker.address = std::move(address);
  return worker;
}

WorkerRecord* WorkerTable::Find(WorkerId id) {
  const auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

const WorkerRecord* WorkerTable::Find(WorkerId id) const {
  const auto it = workers_.find(id);
  return it == workers_.end() ? nullptr : &it->second;
}

void WorkerTable::Up(WorkerRecord& worker, wire::WorkerHello hello, absl::Time now) {
  WorkerRecord fresh;
  fresh.id = worker.id;
  fresh.address = std::move(worker.address);
  fresh.is_up = true;
  fresh.was_up = true;
  fresh.hello = std::move(hello);
  fresh.last_heard = now;
  worker = std::move(fresh);
}

void WorkerTable::Down(WorkerRecord& worker) {
  WorkerRecord fresh;
  fresh.id = worker.id;
  fresh.address = std::move(worker.address);
  fresh.was_up = true;
  fresh.hello = std::move(worker.hello);  // its name, for the view
  worker = std::move(fresh);
}

bool WorkerTable::IsCovered() const {
  for (const auto& [decode_id, decode] : workers_) {
    if (!decode.IsServing() || !decode.hello.serves_decode) continue;
    if (decode.hello.serves_prefill) return true;
    for (const auto& [prefill_id, prefill] : workers_) {
      if (!prefill.IsServing() || !prefill.hello.serves_prefill) continue;
      if (prefill.hello.weights == decode.hello.weights &&
          prefill.hello.layout == decode.hello.layout)
        return true;
    }
  }
  return false;
}

namespace {

std::string StateName(const WorkerRecord& worker, absl::Time now, const PlanConfig& config) {
  if (!worker.is_up) return worker.was_up ? "gone" : "connecting";
  if (worker.IsDraining()) return "draining";
  if (worker.IsWedged()) return "wedged";
  return worker.IsSuspect(now, config) ? "suspect" : "ready";
}

ClusterView::Worker AsView(const WorkerRecord& worker, absl::Time now, const PlanConfig& config) {
  ClusterView::Worker view;
  view.name = worker.hello.worker_id;
  view.address = worker.address;
  view.state = StateName(worker, now, config);
  view.serves_prefill = worker.hello.serves_prefill;
  view.serves_decode = worker.hello.serves_decode;
  view.pages = worker.hello.pages;
  if (!worker.load) return view;
  view.free_pages = worker.load->free_pages;
  view.leased_pages = worker.load->leased_pages;
  view.cached_pages = worker.load->cached_pages;
  view.running = worker.load->running;
  view.waiting = worker.load->waiting;
  view.queued_prompt_tokens = worker.load->queued_prompt_tokens;
  return view;
}

}  // namespace

void WorkerTable::FillView(absl::Time now, const PlanConfig& config, ClusterView& view) const {
  view.workers.reserve(workers_.size());
  for (const auto& [id, worker] : workers_) {
    view.workers.push_back(AsView(worker, now, config));
    if (!worker.IsReady()) continue;
    if (worker.hello.serves_prefill) ++view.prefill_ready;
    if (worker.hello.serves_decode) ++view.decode_ready;
    const int context = static_cast<int>(worker.hello.max_context);
    view.max_context = view.max_context == 0 ? context : std::min(view.max_context, context);
    view.weights = worker.hello.weights;
  }
}

}  // namespace baton::router
