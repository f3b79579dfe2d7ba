#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/config.h"
#include "worker/setup.h"

namespace baton::worker {

// Everything a worker program is told. The defaults run the small checkpoint on two cores.
struct WorkerConfig {
  std::string checkpoint;                      // folder in the official layout
  std::string worker_id;                       // empty: role and incarnation
  std::vector<std::string> serve;              // prefill, decode
  std::string mode = "official";               // official, float32
  std::string listen = "127.0.0.1:0";          // gRPC sessions
  std::string metrics_listen = "127.0.0.1:0";  // /metrics, /health, /ready
  std::string kv_listen = "127.0.0.1:0";       // numeric
  std::string kv_advertise;                    // host that peers use; empty: the one of kv_listen
  std::string kv_transports = "tcp,self";      // UCX_TLS
  std::string kv_required;   // a transport that must carry the blocks, e.g. rc; empty: any
  std::string cache_folder;  // for weights ids; empty: computed at every start
  std::string log_level = "info";
  std::string timers = "production";  // production, dev (contracts.md 4.5)
  std::string backend = "auto";       // cuda, cpu, auto
  int gpu = 0;                        // of the machine's
  bool has_graphs = true;             // of the CUDA back end
  double memory_fraction = 0.9;       // of a GPU's memory, where pages is 0
  int threads = 0;                    // of the CPU back end; 0: one per core
  int pages = 512;
  int max_rows = 1024;     // of a step
  int chunk_tokens = 512;  // of a prompt in one step
  int num_drafts = 1;
  int64_t cached_tail_mib = 256;
  int64_t grammar_mib = 2048;
  absl::Duration drain_timeout = absl::Seconds(60);
  absl::Duration wedge_floor = absl::Seconds(2);
  WorkerLimits limits;

  bool serves(std::string_view role) const;
  absl::Duration beat() const;     // of a session
  absl::Duration silence() const;  // of a session, then its work is cancelled
};

// Binds every key; `config` outlives the reader.
void BindConfig(ConfigReader& reader, WorkerConfig& config);
// What single keys cannot say. kInvalidArgument names the keys.
absl::Status Validate(const WorkerConfig& config);
// Whether kv.required is among the transports that carried the self-test, comma-separated.
absl::Status CheckTransports(const WorkerConfig& config, const std::string& found);

}  // namespace baton::worker
