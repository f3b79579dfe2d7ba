#include "router/metrics_export.h"

#include <algorithm>

namespace baton::router {

RouterMetrics::RouterMetrics(const std::vector<std::string>& key_names)
    : known_runs_(registry_.AddCounter(
          "baton_router_prompt_texts_total",
          "Longer texts of chat prompts; known: their ids were kept from a request before.",
          {{"ids", "known"}})),
      new_runs_(registry_.AddCounter(
          "baton_router_prompt_texts_total",
          "Longer texts of chat prompts; known: their ids were kept from a request before.",
          {{"ids", "new"}})),
      known_grammars_(registry_.AddCounter(
          "baton_router_grammars_total",
          "Requests with a grammar; known: its verdict was kept from a request before.",
          {{"verdict", "known"}})),
      new_grammars_(registry_.AddCounter(
          "baton_router_grammars_total",
          "Requests with a grammar; known: its verdict was kept from a request before.",
          {{"verdict", "new"}})),
      dropped_tools_(registry_.AddCounter(
          "baton_router_dropped_server_tools_total",
          "Anthropic's server tools in requests: nothing here runs them, the model is not told.")),
      connections_(registry_.AddGauge("baton_router_http_connections", "Open client connections.")),
      bodies_bytes_(registry_.AddGauge(
          "baton_router_http_bodies_bytes",
          "Request bodies that are read or handled, and large answers that are written.")),
      waiting_bodies_(registry_.AddGauge("baton_router_http_waiting_bodies",
                                         "Large bodies waiting for a CPU thread.")) {
  AddCounters();
  AddOutcomes();
  AddGauges();
  AddStages();
  AddHttpMetrics();
  AddTexts();
  AddKeys({"none"});
  AddKeys(key_names);
}

// A name of protocol.md 3.4.
void RouterMetrics::AddTexts() {
  for (size_t i = 0; i < kNumDsmlOutcomes; ++i) {
    const std::string name(DsmlOutcomeName(static_cast<DsmlOutcome>(i)));
    dsml_.push_back(registry_.AddCounter(
        "baton_router_dsml_parse_total",
        "Choices with tools, by what became of their calls' markup.", {{"result", name}}));
  }
}

void RouterMetrics::RaiseTexts(const DoorCounts& door) {
  for (size_t i = 0; i < kNumDsmlOutcomes; ++i) dsml_[i].RaiseTo(static_cast<double>(door.dsml[i]));
  known_runs_.RaiseTo(static_cast<double>(door.known_runs));
  new_runs_.RaiseTo(static_cast<double>(door.new_runs));
  known_grammars_.RaiseTo(static_cast<double>(door.known_grammars));
  new_grammars_.RaiseTo(static_cast<double>(door.new_grammars));
}

void RouterMetrics::AddKeys(const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const MetricLabels labels = {{"key", name}};
    keys_.push_back(
        {.requests =
             registry_.AddCounter("baton_router_key_requests_total",
                                  "Requests that an API key paid for, by its name.", labels),
         .refusals = registry_.AddCounter(
             "baton_router_key_refusals_total",
             "Requests beyond a key's limits, by its name; none: without a valid key.", labels),
         .tokens =
             registry_.AddCounter("baton_router_key_tokens_total",
                                  "Tokens of prompts and answers that a key paid for.", labels)});
  }
}

void RouterMetrics::RaiseKeys(const DoorCounts& door) {
  keys_[0].refusals.RaiseTo(static_cast<double>(door.unauthorized));
  for (size_t i = 0; i < door.keys.size() && i + 1 < keys_.size(); ++i) {
    keys_[i + 1].requests.RaiseTo(static_cast<double>(door.keys[i].requests));
    keys_[i + 1].refusals.RaiseTo(static_cast<double>(door.keys[i].refusals));
    keys_[i + 1].tokens.RaiseTo(static_cast<double>(door.keys[i].tokens));
  }
}

void RouterMetrics::AddCounters() {
  const auto counter = [this](const char* name, const char* help, uint64_t RouterFacts::*field) {
    counters_.push_back({registry_.AddCounter(std::string("baton_router_") + name, help), field});
  };
  counter("requests_total", "Requests that reached the planner, one per prompt.",
          &RouterFacts::requests);
  counter("prompt_tokens_total", "Prompt tokens of those requests.", &RouterFacts::prompt_tokens);
  counter("cached_tokens_total", "Prompt tokens served from a prefix cache.",
          &RouterFacts::cached_tokens);
  counter("completion_tokens_total", "Tokens sent to clients.", &RouterFacts::tokens_emitted);
  counter("recoveries_total", "Continuations by replay after a decode worker was lost.",
          &RouterFacts::recoveries);
  counter("retargets_total", "Landings given to another prefill worker.", &RouterFacts::retargets);
  counter("rebookings_total", "Landings given up before their first step.",
          &RouterFacts::rebookings);
  counter("refusals_total", "Bookings and prompts that workers refused.", &RouterFacts::refusals);
  counter("repeats_dropped_total", "Tokens that workers sent again, equal to the first time.",
          &RouterFacts::repeats_dropped);
  counter("repeat_mismatches_total", "Alarm: tokens sent again that differ.",
          &RouterFacts::repeat_mismatches);
  counter("position_gaps_total", "Alarm: positions that a worker skipped.",
          &RouterFacts::position_gaps);
  counter("prefills_on_decode_total",
          "Prompts computed by a decode worker for lack of a prefill worker.",
          &RouterFacts::prefill_on_decode);
  counter("stale_messages_total", "Messages about transfers that were given up before.",
          &RouterFacts::stale_messages);
  counter("cancels_total", "Cancels sent to workers.", &RouterFacts::cancels_sent);
  counter("workers_lost_total", "Sessions that ended.", &RouterFacts::workers_lost);
  // A name of contracts.md 1.2.
  counters_.push_back({registry_.AddCounter("baton_inexact_continuations_total",
                                            "Continuations on workers of another numerics class."),
                       &RouterFacts::inexact_continuations});
}

void RouterMetrics::AddOutcomes() {
  const auto outcome = [this](const char* name, uint64_t OutcomeCounts::*field) {
    outcomes_.push_back(
        {registry_.AddCounter("baton_router_requests_ended_total",
                              "Requests that ended, by outcome.", {{"outcome", name}}),
         field});
  };
  outcome("ok", &OutcomeCounts::ok);
  outcome("cancelled", &OutcomeCounts::cancelled);
  outcome("rejected", &OutcomeCounts::rejected);
  outcome("no_worker", &OutcomeCounts::no_worker);
  outcome("deadline", &OutcomeCounts::deadline);
  outcome("failed", &OutcomeCounts::failed);
  const auto move = [this](const char* name, uint64_t MoveCounts::*field) {
    moves_.push_back(
        {registry_.AddCounter("baton_router_moves_total",
                              "Sequences that a draining decode worker was to hand on, by outcome.",
                              {{"outcome", name}}),
         field});
  };
  move("moved", &MoveCounts::moved);
  move("recovered", &MoveCounts::recovered);
  move("ended", &MoveCounts::ended);
  move("refused", &MoveCounts::refused);
}

void RouterMetrics::AddGauges() {
  const auto gauge = [this](const char* name, const char* help, const MetricLabels& labels,
                            auto value) {
    gauges_.push_back(
        {registry_.AddGauge(std::string("baton_router_") + name, help, labels), value});
  };
  gauge("queued_requests", "Requests waiting for a place.", {},
        [](const RouterFacts& f) { return double(f.queued_requests); });
  gauge("queued_tokens", "Prompt tokens waiting for a place.", {},
        [](const RouterFacts& f) { return double(f.queued_tokens); });
  gauge("live_requests", "Requests that have not ended.", {},
        [](const RouterFacts& f) { return double(f.live_requests); });
  gauge("live_bytes", "Token ids held for live requests.", {},
        [](const RouterFacts& f) { return double(f.live_bytes); });
  constexpr char kQueueHelp[] =
      "Seconds of work waiting for a pool: prompt tokens over the measured rate; how long the "
      "queue's head lacked room.";
  gauge("queue_seconds", kQueueHelp, {{"pool", "prefill"}},
        [](const RouterFacts& f) { return f.prefill_queue_seconds; });
  gauge("queue_seconds", kQueueHelp, {{"pool", "decode"}},
        [](const RouterFacts& f) { return f.decode_queue_seconds; });
  gauge("decode_pages_used_ratio", "Pages in use of the decode pool, 0..1.", {},
        [](const RouterFacts& f) { return f.decode_page_use; });
  gauge("decode_step_seconds", "The slowest ready decode worker's last step.", {},
        [](const RouterFacts& f) { return double(f.decode_step_us) * 1e-6; });
  for (const char* state : {"connecting", "ready", "suspect", "draining", "wedged", "gone"})
    workers_.push_back(
        {registry_.AddGauge("baton_router_workers", "Known workers, by state.", {{"state", state}}),
         state});
}

void RouterMetrics::AddStages() {
  const std::vector<double> bounds(kSecondsBorders.begin(), kSecondsBorders.end());
  const auto stage = [&](const char* name, SecondsHistogram StageHistograms::*field) {
    stages_.push_back(
        {registry_.AddHistogram(
             "baton_router_stage_seconds",
             "Stages of a request: parse to emit add up to the first token, transfer to "
             "first_step to the wait for the second.",
             bounds, {{"stage", name}}),
         field});
  };
  stage("parse", &StageHistograms::parse);
  stage("queue", &StageHistograms::queue);
  stage("booking", &StageHistograms::booking);
  stage("prefill_queue", &StageHistograms::prefill_queue);
  stage("prefill", &StageHistograms::prefill);
  stage("emit", &StageHistograms::emit);
  stage("transfer", &StageHistograms::transfer);
  stage("decode_queue", &StageHistograms::decode_queue);
  stage("first_step", &StageHistograms::first_step);
  stages_.push_back({registry_.AddHistogram("baton_router_first_token_seconds",
                                            "Arrival to first token.", bounds),
                     &StageHistograms::first_token});
  stages_.push_back({registry_.AddHistogram("baton_router_second_token_seconds",
                                            "First token to second token.", bounds),
                     &StageHistograms::second_token});
}

void RouterMetrics::AddHttpMetrics() {
  const auto counter = [this](const char* name, const char* help,
                              std::atomic<uint64_t> HttpCounters::*field) {
    http_.push_back({registry_.AddCounter(std::string("baton_router_http_") + name, help), field});
  };
  counter("connections_total", "Connections accepted.", &HttpCounters::accepted);
  counter("connections_refused_total", "Connections closed at once for lack of room.",
          &HttpCounters::refused);
  counter("requests_total", "HTTP requests read.", &HttpCounters::requests);
  counter("clients_gone_total", "Clients that left before their answer was complete.",
          &HttpCounters::clients_gone);
}

std::string RouterMetrics::Render(const RouterFacts& facts, const ClusterView& view,
                                  const HttpCounters& http, size_t waiting_bodies,
                                  const DoorCounts& door) {
  MutexLock lock(mutex_);
  for (FactCounter& item : counters_) item.counter.RaiseTo(static_cast<double>(facts.*item.field));
  for (OutcomeCounter& item : outcomes_)
    item.counter.RaiseTo(static_cast<double>(facts.outcomes.*item.field));
  for (MoveCounter& item : moves_)
    item.counter.RaiseTo(static_cast<double>(facts.moves.*item.field));
  for (FactGauge& item : gauges_) item.gauge.Set(item.value(facts));
  for (StageHistogram& item : stages_) {
    const SecondsHistogram& now = facts.stages.*item.field;
    if (now.count < item.seen.count) continue;  // a snapshot older than another scrape's
    std::vector<double> increments(now.buckets.size());
    for (size_t i = 0; i < increments.size(); ++i)
      increments[i] = static_cast<double>(now.buckets[i] - item.seen.buckets[i]);
    item.histogram.ObserveMany(increments, now.sum - item.seen.sum);
    item.seen = now;
  }
  for (WorkerGauge& item : workers_) {
    const auto is_here = [&](const ClusterView::Worker& worker) {
      return worker.state == item.state;
    };
    item.gauge.Set(
        static_cast<double>(std::count_if(view.workers.begin(), view.workers.end(), is_here)));
  }
  for (HttpCounter& item : http_)
    item.counter.RaiseTo(static_cast<double>((http.*item.field).load()));
  RaiseKeys(door);
  RaiseTexts(door);
  dropped_tools_.RaiseTo(static_cast<double>(door.dropped_tools));
  connections_.Set(static_cast<double>(http.connections.load()));
  bodies_bytes_.Set(static_cast<double>(http.bodies_bytes.load()));
  waiting_bodies_.Set(static_cast<double>(waiting_bodies));
  return registry_.Render();
}

}  // namespace baton::router
