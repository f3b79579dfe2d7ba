#include "worker/worker_config.h"

#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/ids.h"
#include "engine/planning/batch_planner.h"

namespace baton::worker {

bool WorkerConfig::serves(std::string_view role) const {
  return std::ranges::find(serve, role) != serve.end();
}

absl::Duration WorkerConfig::beat() const {
  return timers == "dev" ? absl::Seconds(1) : absl::Milliseconds(500);
}

absl::Duration WorkerConfig::silence() const {
  return timers == "dev" ? absl::Seconds(10) : absl::Seconds(2);
}

void BindConfig(ConfigReader& reader, WorkerConfig& c) {
  constexpr int kMany = 1 << 24;
  reader.Bind("checkpoint", &c.checkpoint,
              "folder of the checkpoint: config.json and safetensors files");
  reader.Bind("worker_id", &c.worker_id, "name in hellos and logs; empty: role and incarnation");
  reader.Bind("serve", &c.serve, "prefill, decode or both");
  reader.BindChoice("mode", &c.mode, {"official", "float32"}, "numerics mode");
  reader.Bind("listen", &c.listen, "address of the session service; port 0: any");
  reader.Bind("metrics_listen", &c.metrics_listen,
              "address of /metrics, /health and /ready; port 0: any");
  reader.Bind("log_level", &c.log_level, "debug, info, warn or error");
  reader.Bind("cache_folder", &c.cache_folder,
              "where weights ids are kept between starts; empty: nowhere");
  reader.BindChoice("timers", &c.timers, {"production", "dev"},
                    "beats and silence; dev: for sanitizers on two cores");
  reader.BindMs("drain_timeout_ms", &c.drain_timeout, absl::ZeroDuration(), absl::Hours(1),
                "after SIGTERM, for what is open");
  reader.BindMs("wedge_floor_ms", &c.wedge_floor, absl::Milliseconds(100), absl::Hours(1),
                "a step longer than this, and than 20 usual ones, makes the worker not ready");
  reader.Bind("kv.listen", &c.kv_listen, "numeric address of the transfer plane; port 0: any");
  reader.Bind("kv.advertise", &c.kv_advertise, "host that peers use; empty: the one of kv.listen");
  reader.Bind("kv.transports", &c.kv_transports,
              "UCX_TLS; with cuda_ipc pages go from GPU to GPU, and every peer must be on this "
              "machine");
  reader.Bind("kv.required", &c.kv_required,
              "a transport that must carry the self-test, e.g. rc, or the worker does not start; "
              "empty: any");
  reader.Bind("kv.window", &c.limits.window, 1, 4096, "blocks of a transfer that may be un-acked");
  reader.BindChoice(
      "engine.backend", &c.backend, {"auto", "cuda", "cpu"},
      "what computes; auto: cuda where this program has it and finds a GPU, else cpu");
  reader.Bind("engine.gpu", &c.gpu, 0, 63, "which GPU of the machine");
  reader.Bind("engine.cuda_graphs", &c.has_graphs,
              "whether steps of up to 128 rows run as CUDA graphs");
  reader.Bind("engine.memory_fraction", &c.memory_fraction, 0.01, 1.0,
              "of the GPU's memory for weights, workspace and pages together, where engine.pages "
              "is 0");
  reader.Bind("engine.threads", &c.threads, 0, 1024,
              "threads that compute (cpu) or read weights (cuda); 0: one per core");
  reader.Bind("engine.pages", &c.pages, 0, kMany,
              "pages of 256 tokens; 0: as many as the GPU has memory for");
  reader.Bind("engine.max_rows", &c.max_rows, 256, 65536, "rows of a step");
  reader.Bind("engine.chunk_tokens", &c.chunk_tokens, 256, 65536,
              "prompt rows of a step, a multiple of 256");
  reader.Bind("engine.num_drafts", &c.num_drafts, 0, 3, "drafts per step; 0: no speculation");
  reader.Bind("limits.max_context", &c.limits.max_context, 0, 1 << 20,
              "tokens of prompt and answer; 0: what model and half the pages allow, 32768 at most");
  reader.Bind("limits.max_sequences", &c.limits.max_sequences, 1, 1024,
              "sequences landed here and not over");
  reader.Bind("limits.max_queued_prompts", &c.limits.max_queued_prompts, 1, kMany,
              "prompts that wait for a place");
  reader.Bind("limits.max_queued_tokens", &c.limits.max_queued_tokens, 1, int64_t{1} << 40,
              "prompt tokens that wait or are being computed");
  reader.Bind("limits.max_computing_prompts", &c.limits.max_computing_prompts, 1, 1024,
              "prompts computed at once");
  reader.Bind("limits.headroom_pages", &c.limits.headroom_pages, 0, 4096,
              "pages booked per sequence beyond its prompt");
  reader.Bind("limits.tail_interval", &c.limits.tail_interval, 0, 4096,
              "pages between the boundary tails of a prompt; 0: only at its last full page");
  reader.Bind("limits.cached_tail_mib", &c.cached_tail_mib, 0, int64_t{1} << 20,
              "host memory for boundary tails");
  reader.Bind(
      "limits.grammar_mib", &c.grammar_mib, 256, int64_t{1} << 20,
      "host memory for grammars and what each text under way needs of its own; without room "
      "a request with a grammar waits or goes elsewhere");
}

absl::Status Validate(const WorkerConfig& config) {
  if (config.checkpoint.empty())
    return absl::InvalidArgumentError("checkpoint is empty: which folder holds the weights?");
  if (config.serve.empty())
    return absl::InvalidArgumentError("serve is empty: prefill, decode or both");
  for (const std::string& role : config.serve) {
    if (role == "prefill" || role == "decode") continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("serve names \"%s\": only prefill and decode are known", role));
  }
  if (config.chunk_tokens % kPageTokens != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("engine.chunk_tokens is %d, it must be a multiple of %d",
                        config.chunk_tokens, kPageTokens));
  }
  if (config.chunk_tokens > config.max_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("engine.chunk_tokens is %d, more than engine.max_rows %d",
                        config.chunk_tokens, config.max_rows));
  }
  const int least_rows = config.limits.max_sequences * (1 + engine::kMaxDrafts) + kPageTokens;
  if (config.max_rows < least_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("engine.max_rows is %d, limits.max_sequences %d needs %d", config.max_rows,
                        config.limits.max_sequences, least_rows));
  }
  return absl::OkStatus();
}

absl::Status CheckTransports(const WorkerConfig& config, const std::string& found) {
  if (config.kv_required.empty()) return absl::OkStatus();
  // UCX tells kinds of a transport apart: rc is rc_verbs or rc_mlx5.
  const std::string list = absl::StrFormat(",%s,", found);
  for (const char end : {',', '_'})
    if (list.find(absl::StrFormat(",%s%c", config.kv_required, end)) != std::string::npos)
      return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "kv.required is %s, but of kv.transports %s it is %s that carries blocks here",
      config.kv_required, config.kv_transports, found));
}

}  // namespace baton::worker
