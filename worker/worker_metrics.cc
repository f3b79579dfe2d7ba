#include "worker/worker_metrics.h"

#include <array>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"

namespace baton::worker {
namespace {

const std::vector<double>& StepBounds() {
  static const std::vector<double> kBounds = {.001, .002, .005, .01, .02, .05, .1,
                                              .2,   .5,   1,    2,   5,   10};
  return kBounds;
}

}  // namespace

WorkerMetrics::WorkerMetrics(MetricRegistry& registry)
    : step_seconds_(
          registry.AddGauge("baton_worker_last_step_seconds", "Duration of the last engine step")),
      prefill_rate_(registry.AddGauge("baton_worker_prefill_tokens_per_second",
                                      "Moving average of prompt tokens computed")),
      is_wedged_(registry.AddGauge("baton_worker_wedged",
                                   "1 while work waits and no step ends, or memory stays bound")),
      self_test_(registry.AddGauge("baton_kv_self_test_bytes_per_second",
                                   "Transfer rate measured at start")),
      experts_promoted_(
          registry.AddGauge("baton_experts_promoted_per_32",
                            "Experts whose scales are too far apart for one factor per 128")),
      block_seconds_sum_(registry.AddCounter(
          "baton_kv_block_seconds_sum_total",
          "Seconds from a block's announcement to verified, over all that came in")),
      mask_seconds_(registry.AddCounter("baton_grammar_mask_seconds_total",
                                        "Seconds spent on masks of next tokens")),
      mask_failures_(registry.AddCounter("baton_grammar_failures_total",
                                         "Alarm: sequences that ended wrongly, their rules left no "
                                         "token or not the one received")),
      compile_seconds_(registry.AddCounter("baton_grammar_compile_seconds_total",
                                           "Seconds spent on compiling grammars")),
      grammars_compiled_(registry.AddCounter("baton_grammar_compiles_total",
                                             "Grammars compiled; the last used are kept")),
      grammars_reused_(
          registry.AddCounter("baton_grammar_reuses_total", "Grammars that were compiled already")),
      grammars_refused_(registry.AddCounter("baton_grammar_refused_total",
                                            "Grammars that are not valid or not supported")),
      grammars_failed_(registry.AddCounter(
          "baton_grammar_compile_failures_total",
          "Grammars that were not compiled for want of a thread, or by a fault of ours")),
      grammar_memory_refusals_(registry.AddCounter(
          "baton_grammar_memory_refusals_total",
          "Grammars and texts that found no room below limits.grammar_mib, or no more of it")),
      grammar_cache_bytes_(registry.AddGauge(
          "baton_grammar_cache_bytes", "Memory of the compiled grammars that are kept, estimated")),
      grammar_memory_bytes_(registry.AddGauge(
          "baton_grammar_memory_bytes",
          "Memory of all grammars, kept ones included, and of the texts under way, estimated")),
      step_histogram_(registry.AddHistogram("baton_worker_step_seconds", "Duration of engine steps",
                                            StepBounds())) {
  AddEngineMetrics(registry);
  AddCoreMetrics(registry);
  AddTransferMetrics(registry);
  AddHardwareMetrics(registry);
}

void WorkerMetrics::AddEngineMetrics(MetricRegistry& registry) {
  using engine::LoopCounters;
  using engine::PoolCounts;
  auto pool = [&](const char* state, int PoolCounts::*field) {
    pool_.push_back(
        {registry.AddGauge("baton_worker_pages", "Pages of the pool by state", {{"state", state}}),
         field});
  };
  pool("free", &PoolCounts::free);
  pool("booked", &PoolCounts::booked);
  pool("leased", &PoolCounts::leased);
  pool("cached", &PoolCounts::cached);
  pool("quarantined", &PoolCounts::quarantined);
  auto loop = [&](const char* name, const char* help, uint64_t LoopCounters::*field) {
    loop_counters_.push_back({registry.AddCounter(name, help), field});
  };
  loop("baton_worker_steps_total", "Engine steps", &LoopCounters::steps);
  loop("baton_worker_steps_ahead_total", "Engine steps queued before the one before was read",
       &LoopCounters::steps_ahead);
  loop("baton_worker_prefill_tokens_total", "Prompt tokens computed",
       &LoopCounters::prefill_tokens);
  loop("baton_worker_decode_tokens_total", "Tokens generated", &LoopCounters::decode_tokens);
  loop("baton_worker_drafts_total", "Draft tokens proposed", &LoopCounters::drafted);
  loop("baton_worker_drafts_accepted_total", "Draft tokens accepted",
       &LoopCounters::accepted_drafts);
  loop("baton_worker_replayed_tokens_total", "Known tokens computed again",
       &LoopCounters::replayed_tokens);
  loop("baton_grammar_masks_total", "Masks of next tokens", &LoopCounters::masks);
  loop("baton_grammar_limits_total", "Sequences ended: their grammar grew beyond a limit",
       &LoopCounters::mask_limits);
}

void WorkerMetrics::AddCoreMetrics(MetricRegistry& registry) {
  auto counter = [&](const char* name, const char* help, uint64_t CoreCounters::*field) {
    core_counters_.push_back({registry.AddCounter(name, help), field});
  };
  counter("baton_worker_reserves_total", "Reserve messages", &CoreCounters::reserves);
  counter("baton_worker_runs_total", "Run messages", &CoreCounters::runs);
  counter("baton_worker_refused_total", "Reserve, Run, Retarget and Move messages refused",
          &CoreCounters::refused);
  counter("baton_worker_cancels_total", "Cancel messages", &CoreCounters::cancels);
  counter("baton_worker_landed_total", "Landings that were verified", &CoreCounters::landed);
  counter("baton_worker_prefilled_total", "Prompts whose every block was acked",
          &CoreCounters::prefilled);
  counter("baton_worker_finished_total", "Sequences finished", &CoreCounters::finished);
  counter("baton_worker_failed_total", "Transfers and sequences failed", &CoreCounters::failed);
  counter("baton_replay_mismatch_total", "Replayed tokens that the sampler would not have chosen",
          &CoreCounters::replay_mismatches);
  counter("baton_worker_parked_total", "Sequences parked for lack of pages", &CoreCounters::parked);
  counter("baton_worker_moved_total", "Sequences sent off to another decode worker",
          &CoreCounters::moved);
  counter("baton_worker_local_fills_total", "Prompts prefilled by their own decode worker",
          &CoreCounters::local_fills);
  auto cache = [&](const char* name, const char* help, uint64_t CoreGauges::*field) {
    cache_counters_.push_back({registry.AddCounter(name, help), field});
  };
  cache("baton_worker_cache_hits_total", "Prompts that started from the prefix cache",
        &CoreGauges::cache_hits);
  cache("baton_worker_cache_misses_total", "Prompts that did not", &CoreGauges::cache_misses);
  cache("baton_pages_rotten_total", "Cached pages dropped because their bytes had changed",
        &CoreGauges::pages_rotten);
  auto gauge = [&](const char* name, const char* help, double (*value)(const CoreGauges&)) {
    core_gauges_.push_back({registry.AddGauge(name, help), value});
  };
  gauge("baton_worker_sessions", "Sessions of routers",
        [](const CoreGauges& g) { return double(g.sessions); });
  gauge("baton_worker_sequences_running", "Sequences that decode",
        [](const CoreGauges& g) { return double(g.running); });
  gauge("baton_worker_sequences_waiting", "Verified sequences without a place in the batch",
        [](const CoreGauges& g) { return double(g.landings_waiting); });
  gauge("baton_worker_prompts_queued", "Prompts that wait",
        [](const CoreGauges& g) { return double(g.queued_prompts); });
  gauge("baton_worker_prompts_computing", "Prompts being computed",
        [](const CoreGauges& g) { return double(g.computing_prompts); });
  gauge("baton_worker_prompts_sending", "Prompts with blocks not yet acked",
        [](const CoreGauges& g) { return double(g.sending_prompts); });
  gauge("baton_worker_queued_prompt_tokens", "Prompt tokens that are still to be computed",
        [](const CoreGauges& g) { return double(g.queued_tokens); });
  gauge("baton_worker_tail_buffers_free", "Tail buffers not in use",
        [](const CoreGauges& g) { return double(g.tail_buffers_free); });
  gauge("baton_worker_cache_pages", "Named pages of the prefix cache",
        [](const CoreGauges& g) { return double(g.cached_pages); });
  gauge("baton_worker_cache_tails", "Boundary tails kept",
        [](const CoreGauges& g) { return double(g.cached_tails); });
  gauge("baton_worker_cache_tail_bytes", "Host memory of boundary tails",
        [](const CoreGauges& g) { return double(g.cached_tail_bytes); });
  gauge("baton_worker_transfer_commands_waiting", "Commands the transfer thread had no room for",
        [](const CoreGauges& g) { return double(g.commands_waiting); });
}

void WorkerMetrics::AddTransferMetrics(MetricRegistry& registry) {
  using kvtransfer::TransferMetrics;
  auto counter = [&](const char* name, const char* help,
                     std::atomic<uint64_t> TransferMetrics::*field) {
    transfer_counters_.push_back({registry.AddCounter(name, help), field});
  };
  counter("baton_kv_blocks_offered_total", "Blocks announced, repeats included",
          &TransferMetrics::blocks_offered);
  counter("baton_kv_bytes_offered_total", "Bytes of announced blocks",
          &TransferMetrics::bytes_offered);
  counter("baton_kv_blocks_acked_total", "Blocks the receiver verified",
          &TransferMetrics::blocks_acked);
  counter("baton_kv_block_retries_total", "Blocks offered again after data loss",
          &TransferMetrics::block_retries);
  counter("baton_kv_blocks_pulled_total", "Blocks received", &TransferMetrics::blocks_pulled);
  counter("baton_kv_bytes_pulled_total", "Bytes received", &TransferMetrics::bytes_pulled);
  counter("baton_kv_blocks_landed_total", "Blocks received whose digest held",
          &TransferMetrics::blocks_landed);
  counter("baton_kv_digest_failures_total", "Blocks received whose digest did not hold",
          &TransferMetrics::digest_failures);
  counter("baton_kv_pull_failures_total", "Receives that ended with an error",
          &TransferMetrics::pull_failures);
  counter("baton_kv_peers_lost_total", "Peers down or silent", &TransferMetrics::peers_lost);
  counter("baton_kv_frames_dropped_total", "Frames not sent: the peer's queue was full",
          &TransferMetrics::frames_dropped);
  auto gauge = [&](const char* name, const char* help,
                   std::atomic<int64_t> TransferMetrics::*field) {
    transfer_gauges_.push_back({registry.AddGauge(name, help), field});
  };
  gauge("baton_kv_quarantined", "Pieces of memory under a receive whose landing is over",
        &TransferMetrics::quarantined);
  gauge("baton_kv_open_receives", "Receives posted", &TransferMetrics::open_receives);
  gauge("baton_kv_open_landings", "Landings open", &TransferMetrics::open_landings);
  gauge("baton_kv_open_sends", "Transfers being sent", &TransferMetrics::open_sends);
  for (size_t i = 0; i < kvtransfer::kNumStaleReasons; ++i) {
    const std::string reason(StaleReasonName(static_cast<kvtransfer::StaleReason>(i)));
    stale_.push_back(registry.AddCounter("baton_kv_stale_frames_total",
                                         "Frames that match no open block, by reason",
                                         {{"reason", reason}}));
  }
  for (size_t i = 0; i < kvtransfer::kNumFrameErrors; ++i) {
    const std::string reason(FrameErrorName(static_cast<kvtransfer::FrameError>(i)));
    bad_frames_.push_back(registry.AddCounter(
        "baton_kv_bad_frames_total", "Bytes that are no frame, by reason", {{"reason", reason}}));
  }
  for (size_t i = 1; i < TransferMetrics().refusals_sent.size(); ++i) {  // reasons begin at 1
    const MetricLabels labels = {
        {"reason", std::string(RefuseReasonName(static_cast<kvtransfer::RefuseReason>(i)))}};
    refusals_sent_.push_back(registry.AddCounter(
        "baton_kv_refusals_sent_total", "Blocks refused by this receiver, by reason", labels));
    refusals_received_.push_back(registry.AddCounter(
        "baton_kv_refusals_received_total", "Blocks refused to this sender, by reason", labels));
  }
  const auto& bounds = kvtransfer::kBlockSecondsBounds;
  for (size_t i = 0; i <= bounds.size(); ++i) {
    const std::string limit = i < bounds.size() ? absl::StrFormat("%g", bounds[i]) : "+Inf";
    block_seconds_.push_back(registry.AddCounter(
        "baton_kv_block_seconds_total",
        "Blocks that came in, by seconds from announcement to verified, cumulative",
        {{"at_most", limit}}));
  }
}

void WorkerMetrics::AddHardwareMetrics(MetricRegistry& registry) {
  using kvtransfer::StagingStats;
  const auto counter = [&](const char* name, const char* help, const char* direction,
                           std::atomic<uint64_t> StagingStats::*field) {
    staging_counters_.push_back(
        {registry.AddCounter(name, help, {{"direction", direction}}), field});
  };
  const char* const bytes = "Bytes of pages copied between GPU and pinned host memory";
  counter("baton_kv_staged_bytes_total", bytes, "to_host", &StagingStats::bytes_to_host);
  counter("baton_kv_staged_bytes_total", bytes, "to_device", &StagingStats::bytes_to_device);
  const char* const waits = "Pages that found no staging slot free";
  counter("baton_kv_staging_waits_total", waits, "to_host", &StagingStats::offers_waited);
  counter("baton_kv_staging_waits_total", waits, "to_device", &StagingStats::pulls_waited);
  staging_counters_.push_back(
      {registry.AddCounter("baton_kv_staging_failures_total", "Copies of pages that failed"),
       &StagingStats::copy_failures});
  const auto gauge = [&](const char* name, const char* help, const char* direction,
                         std::atomic<int64_t> StagingStats::*field) {
    staging_gauges_.push_back({registry.AddGauge(name, help, {{"direction", direction}}), field});
  };
  const char* const used = "Staging slots in use";
  gauge("baton_kv_staging_slots_in_use", used, "to_host", &StagingStats::offer_slots_in_use);
  gauge("baton_kv_staging_slots_in_use", used, "to_device", &StagingStats::pull_slots_in_use);
  const char* const waiting = "Pages that wait for a staging slot";
  gauge("baton_kv_staging_waiting", waiting, "to_host", &StagingStats::offers_waiting);
  gauge("baton_kv_staging_waiting", waiting, "to_device", &StagingStats::pulls_waiting);
  for (const auto& [backend, memory] :
       {std::pair("cpu", "host"), std::pair("cuda", "staged"), std::pair("cuda", "direct")}) {
    backends_.push_back({backend, memory,
                         registry.AddGauge("baton_worker_backend",
                                           "1 for what computes and how pages reach the transport",
                                           {{"backend", backend}, {"page_memory", memory}})});
  }
}

void WorkerMetrics::Update(const WorkerCore& core, const engine::LoopCounters& loop,
                           const EngineWatch& watch) {
  const CoreGauges gauges = core.Gauges();
  for (PoolGauge& g : pool_) g.gauge.Set(gauges.pool.*g.field);
  for (CoreGauge& g : core_gauges_) g.gauge.Set(g.value(gauges));
  for (CoreCounter& c : core_counters_)
    c.counter.RaiseTo(static_cast<double>(core.counters().*c.field));
  for (CacheCounter& c : cache_counters_) c.counter.RaiseTo(static_cast<double>(gauges.*c.field));
  for (LoopCounter& c : loop_counters_) c.counter.RaiseTo(static_cast<double>(loop.*c.field));
  step_seconds_.Set(absl::ToDoubleSeconds(loop.last_step));
  prefill_rate_.Set(loop.prefill_tokens_per_s);
  mask_seconds_.RaiseTo(absl::ToDoubleSeconds(loop.mask_time));
  mask_failures_.RaiseTo(static_cast<double>(loop.mask_failures + core.counters().mask_failures));
  is_wedged_.Set(watch.IsWedged() ? 1 : 0);
}

void WorkerMetrics::Update(const engine::GrammarCounters& grammars) {
  compile_seconds_.RaiseTo(absl::ToDoubleSeconds(grammars.compile_time));
  grammars_compiled_.RaiseTo(static_cast<double>(grammars.compiled));
  grammars_reused_.RaiseTo(static_cast<double>(grammars.reused));
  grammars_refused_.RaiseTo(static_cast<double>(grammars.refused));
  grammars_failed_.RaiseTo(static_cast<double>(grammars.failures));
  grammar_memory_refusals_.RaiseTo(static_cast<double>(grammars.memory_refusals));
  grammar_cache_bytes_.Set(static_cast<double>(grammars.cache_bytes));
  grammar_memory_bytes_.Set(static_cast<double>(grammars.memory_bytes));
}

void WorkerMetrics::ObserveStep(const engine::LoopCounters& loop) {
  if (loop.steps == seen_steps_) return;
  seen_steps_ = loop.steps;
  step_histogram_.Observe(absl::ToDoubleSeconds(loop.last_step));
}

void WorkerMetrics::Update(const kvtransfer::TransferMetrics& transfer) {
  for (TransferCounter& c : transfer_counters_)
    c.counter.RaiseTo(static_cast<double>((transfer.*c.field).load()));
  for (TransferGauge& g : transfer_gauges_)
    g.gauge.Set(static_cast<double>((transfer.*g.field).load()));
  for (size_t i = 0; i < refusals_sent_.size(); ++i) {
    refusals_sent_[i].RaiseTo(static_cast<double>(transfer.refusals_sent[i + 1].load()));
    refusals_received_[i].RaiseTo(static_cast<double>(transfer.refusals_received[i + 1].load()));
  }
  block_seconds_sum_.RaiseTo(static_cast<double>(transfer.block_micros_sum.load()) * 1e-6);
  for (size_t i = 0; i < stale_.size(); ++i)
    stale_[i].RaiseTo(static_cast<double>(transfer.stale_frames[i].load()));
  for (size_t i = 0; i < bad_frames_.size(); ++i)
    bad_frames_[i].RaiseTo(static_cast<double>(transfer.bad_frames[i].load()));
  uint64_t below = 0;
  for (size_t i = 0; i < block_seconds_.size(); ++i) {
    below += transfer.block_seconds[i].load();
    block_seconds_[i].RaiseTo(static_cast<double>(below));
  }
}

void WorkerMetrics::Update(const kvtransfer::StagingStats& staging) {
  for (StagingCounter& c : staging_counters_)
    c.counter.RaiseTo(static_cast<double>((staging.*c.field).load()));
  for (StagingGauge& g : staging_gauges_)
    g.gauge.Set(static_cast<double>((staging.*g.field).load()));
}

void WorkerMetrics::SetStart(const WorkerStart& start) {
  self_test_.Set(start.self_test_gbps * 1e9);
  experts_promoted_.Set(start.experts_promoted);
  for (BackendGauge& b : backends_)
    b.gauge.Set(b.backend == start.backend && b.page_memory == start.page_memory ? 1 : 0);
}

}  // namespace baton::worker
