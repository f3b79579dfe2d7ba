#include "bench/kernels/graph_timer.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace baton::bench {
namespace {

constexpr double kSlow = 10'000;  // us of a copy from which on one copy and few replays do
constexpr int kReplays = 15, kSlowReplays = 3;

void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernel_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

int CountKernels(cudaGraph_t graph) {
  size_t count = 0;
  Check(cudaGraphGetNodes(graph, nullptr, &count), "graph");
  std::vector<cudaGraphNode_t> nodes(count);
  Check(cudaGraphGetNodes(graph, nodes.data(), &count), "graph");
  return static_cast<int>(std::count_if(nodes.begin(), nodes.end(), [](cudaGraphNode_t node) {
    cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
    Check(cudaGraphNodeGetType(node, &type), "graph");
    return type == cudaGraphNodeTypeKernel;
  }));
}

}  // namespace

GraphTimer::GraphTimer(kernels::cuda::CudaDevice& device, bool eager)
    : stream_(device.stream()), is_eager_(eager) {
  Check(cudaEventCreate(&start_), "event");
  Check(cudaEventCreate(&end_), "event");
}

GraphTimer::~GraphTimer() {
  cudaEventDestroy(start_);
  cudaEventDestroy(end_);
}

double GraphTimer::Replay(cudaGraphExec_t graph) {
  Check(cudaEventRecord(start_, stream_), "event");
  Check(cudaGraphLaunch(graph, stream_), "launch");
  Check(cudaEventRecord(end_, stream_), "event");
  return Elapsed();
}

double GraphTimer::Once(const std::function<void(int copy)>& queue) {
  Check(cudaEventRecord(start_, stream_), "event");
  queue(0);
  Check(cudaEventRecord(end_, stream_), "event");
  return Elapsed();
}

double GraphTimer::Elapsed() {
  Check(cudaEventSynchronize(end_), "run");
  float milliseconds = 0;
  Check(cudaEventElapsedTime(&milliseconds, start_, end_), "event");
  return 1e3 * double{milliseconds};
}

Timing GraphTimer::Time(int copies, const std::function<void(int copy)>& queue) {
  queue(0);  // first use may set things up
  const double first = Once(queue);
  if (is_eager_) return {first, 0};
  const bool is_slow = first > kSlow;
  if (is_slow) copies = 1;
  for (int i = 1; i < copies; ++i) queue(i);

  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < copies; ++i) queue(i);
  Check(cudaStreamEndCapture(stream_, &graph), "capture");
  Check(cudaGraphInstantiate(&instance, graph, 0), "graph");
  Timing timing;
  timing.launches = double{1} * CountKernels(graph) / copies;
  std::vector<double> times;
  Replay(instance);
  const int replays = is_slow ? kSlowReplays : kReplays;
  for (int i = 0; i < replays; ++i) times.push_back(Replay(instance));
  std::nth_element(times.begin(), times.begin() + replays / 2, times.end());
  timing.microseconds = times[static_cast<size_t>(replays / 2)] / copies;
  Check(cudaGraphExecDestroy(instance), "graph");
  Check(cudaGraphDestroy(graph), "graph");
  return timing;
}

}  // namespace baton::bench
