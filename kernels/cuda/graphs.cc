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
  for (const auto& [key, graph] : graphs_) cudaGraphExecDestroy(graph);
  graphs_.clear();
  seen_.clear();
}

// The first run of a shape is not recorded: it makes what a layer needs once (TableOf), and a shape
// that never comes back costs no graph.
absl::Status CudaOps::Repeat(StepPart part, const std::function<absl::Status()>& phases) {
  if (!options_.has_graphs || launch_.rows > kMaxRecordedRows) return phases();
  const GraphKey key{.part = part, .shape = launch_};
  if (!graphs_.contains(key)) {
    if (seen_.insert(key).second) return phases();
    if (graphs_.size() == kMaxGraphs) DropGraphs();
    RETURN_IF_ERROR(Record(key, phases));
  }
  return ToStatus(cudaGraphLaunch(graphs_.at(key), stream()), "launch the step's graph");
}

absl::Status CudaOps::Record(const GraphKey& key, const std::function<absl::Status()>& phases) {
  RETURN_IF_ERROR(ToStatus(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeThreadLocal),
                           "record the step"));
  const absl::Status queued = phases();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(stream(), &graph);
  RETURN_IF_ERROR(queued);
  RETURN_IF_ERROR(ToStatus(ended, "record the step"));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  RETURN_IF_ERROR(ToStatus(made, "make the step's graph"));
  graphs_[key] = executable;
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
