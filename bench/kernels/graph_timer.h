#pragma once

#include <functional>

#include "kernels/cuda/cuda_device.h"

namespace baton::bench {

struct Timing {
  double microseconds = 0;  // of one of the copies
  double launches = 0;      // kernels of one copy
};

// Times work that is queued on the device's stream, by events around replays of a CUDA graph that
// holds it `copies` times.
class GraphTimer {
 public:
  // `eager`: queues one copy twice, without graph and clock, for a profiler to look at.
  GraphTimer(kernels::cuda::CudaDevice& device, bool eager);
  ~GraphTimer();
  GraphTimer(const GraphTimer&) = delete;
  GraphTimer& operator=(const GraphTimer&) = delete;

  // queue(i) queues copy i, with weights of its own.
  Timing Time(int copies, const std::function<void(int copy)>& queue);

 private:
  double Replay(cudaGraphExec_t graph);
  double Once(const std::function<void(int copy)>& queue);
  double Elapsed();

  cudaStream_t stream_;
  const bool is_eager_;
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

}  // namespace baton::bench
