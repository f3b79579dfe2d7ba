#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/bounded_queue.h"
#include "common/clock.h"
#include "common/cpu_pool.h"
#include "common/metrics.h"
#include "common/rng.h"
#include "engine/grammar/mask_maker.h"
#include "kvtransfer/agent_thread.h"
#include "kvtransfer/staged/staged_transport.h"
#include "worker/backend.h"
#include "worker/device_memory.h"
#include "worker/engine_stack.h"
#include "worker/engine_watch.h"
#include "worker/metrics_server.h"
#include "worker/session_service.h"
#include "worker/worker_config.h"
#include "worker/worker_core.h"
#include "worker/worker_metrics.h"

namespace baton::worker {

// A running worker: engine thread, transfer thread, grammar threads, session service and metrics
// port. Start, Stop and Wait: the main thread.
class WorkerProcess final : private AgentLink {
 public:
  // Everything listens when this returns; the ports are logged.
  static absl::StatusOr<std::unique_ptr<WorkerProcess>> Start(const WorkerConfig& config,
                                                              const Backend& backend,
                                                              const Clock& clock);
  // Ends sessions and threads.
  ~WorkerProcess() override;

  // Refuses new work; the process is done when what is open has ended or `drain_timeout` is over.
  void Drain();
  // Not waiting: whether the engine thread has ended (drained, or by an error), and how.
  bool IsDone() const { return is_done_; }
  absl::Status result() const;

 private:
  WorkerProcess(const WorkerConfig& config, const Clock& clock);

  absl::Status OpenTransfers(const Backend& backend);
  // The pages' region, their digester, and staging where they are not in host memory.
  absl::StatusOr<kvtransfer::RegionId> RegisterPages();
  absl::StatusOr<kvtransfer::RegionId> StagePages();
  void MakeSetup(kvtransfer::RegionId pages, kvtransfer::RegionId tails);
  engine::MaskMaker* MakeMaskMaker();
  void MakeCore();
  absl::Status Serve();
  wire::WorkerHello MakeHello() const;
  void EngineLoop();
  bool RunRound();  // false: the thread ends
  void UpdateMetrics();
  ProbeAnswer Ready() const;

  absl::Status Execute(kvtransfer::AgentCommand command) override {
    return agent_thread_->Execute(std::move(command));
  }
  std::vector<kvtransfer::AgentEvent> TakeEvents() override;

  const WorkerConfig config_;
  const Clock& clock_;
  SystemRng rng_;  // the engine thread's, once it runs
  Incarnation incarnation_;
  std::unique_ptr<EngineStack> engine_;
  std::unique_ptr<WorkerSetup> setup_;
  OpenTransport transport_;
  std::unique_ptr<DeviceCopier> copier_;
  std::unique_ptr<kvtransfer::StagedTransport> staged_;
  kvtransfer::Transport* pages_transport_ = nullptr;  // staged_, or transport_'s
  const char* page_memory_ = "host";                  // host, staged or direct
  std::unique_ptr<DeviceDigester> digester_;
  std::unique_ptr<kvtransfer::TransferAgent> agent_;
  BoundedQueue<SessionEvent> inbox_;
  CpuPool grammar_pool_;
  std::unique_ptr<engine::MaskMaker> masks_;
  std::unique_ptr<kvtransfer::AgentThread> agent_thread_;
  EngineWatch watch_;
  MetricRegistry registry_;
  WorkerMetrics metrics_;
  std::unique_ptr<SessionService> sessions_;
  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<MetricsServer> metrics_server_;

  std::vector<SessionEvent> batch_;
  absl::Time next_metrics_;
  absl::Time drain_until_ = absl::InfiniteFuture();
  std::atomic<bool> must_drain_ = false;
  std::atomic<bool> must_stop_ = false;
  std::atomic<bool> is_done_ = false;
  absl::Status result_;  // written before is_done_
  bool did_work_ = false;
  std::thread engine_thread_;
};

}  // namespace baton::worker
