#include <algorithm>

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// Repeat: the phases of a step as CUDA graphs, one for each part and launch shape.
namespace baton::kernels::cuda {
namespace {

constexpr size_t kMaxGraphs = 256;
constexpr int kMaxRecordedRows = 128;  // beyond it kernels are longer than their launches

}  // namespace

CudaOps::~CudaOps() {
  device_.Synchronize().IgnoreError();
  DropGraphs();
}

void CudaOps::DropGraphs() {
  for (const auto& [key, graph] : graphs_) {
    if (graph != nullptr) cudaGraphExecDestroy(graph);
  }
  graphs_.clear();
  seen_.clear();
}

// The first run of a shape is not recorded: it makes what a layer needs once (TableOf), and a shape
// that never comes back costs no graph. What cannot be recorded runs as it is.
absl::Status CudaOps::Repeat(StepPart part, int drafts,
                             const std::function<absl::Status()>& phases) {
  GraphKey key{.part = part, .drafts = drafts, .shape = launch_, .drafting = {}};
  if (part == StepPart::kDrafter) {
    key.shape = drafter_parts_[0].launch;
    if (drafts > 0) key.drafting = drafter_parts_[1].launch;
  }
  if (!options_.has_graphs || std::max(key.shape.rows, key.drafting.rows) > kMaxRecordedRows) {
    return phases();
  }
  if (!graphs_.contains(key)) {
    if (seen_.insert(key).second) return phases();
    if (graphs_.size() == kMaxGraphs) DropGraphs();
    ASSIGN_OR_RETURN(graphs_[key], Record(phases));
  }
  cudaGraphExec_t graph = graphs_.at(key);
  if (graph == nullptr) return phases();
  return ToStatus(cudaGraphLaunch(graph, stream()), "launch the step's graph");
}

// Null where the driver has no room for the graph.
absl::StatusOr<cudaGraphExec_t> CudaOps::Record(const std::function<absl::Status()>& phases) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal),
                           "record the step"));
  const absl::Status queued = phases();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream(), &graph);
  if (!queued.ok() && graph != nullptr) cudaGraphDestroy(graph);
  RETURN_IF_ERROR(queued);
  RETURN_IF_ERROR(ToStatus(ended, "record the step"));
  cudaGraphExec_t executable = nullptr;
  if (cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) {
    cudaGetLastError();
    executable = nullptr;
  }
  cudaGraphDestroy(graph);
  return executable;
}

}  // namespace baton::kernels::cuda
