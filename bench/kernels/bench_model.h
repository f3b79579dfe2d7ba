#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/kernels/floors.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/weights.h"

// A model of real-size layers with made-up weights, a few times over: launch after launch reads
// other weights, so that none is found in L2.
namespace baton::bench {

// Prints and ends the process unless the work could be queued.
void Must(const absl::Status& status, const char* what);
template <typename T>
T Must(absl::StatusOr<T> result, const char* what) {
  Must(result.status(), what);
  return *std::move(result);
}

// Memory that matrices of one format take their values from in turn, again from its start when it
// is used up.
struct WeightPool {
  uint8_t* base = nullptr;
  size_t bytes = 0, used = 0;
  const uint8_t* Take(size_t count);
};

class BenchModel {
 public:
  static constexpr int kMaxRows = 8192, kMaxSequences = 128, kMaxContext = 1 << 20;
  static constexpr int kLayers = 60;  // of a kind

  // `ranks`: the share of one GPU among that many under tensor parallelism, sums left out: heads,
  // output groups and the width of every expert are divided, the indexer is whole on each.
  explicit BenchModel(kernels::cuda::CudaDevice& device, int ranks = 1);

  kernels::cuda::CudaOps& ops() { return *ops_; }
  kernels::cuda::CudaDevice& device() { return device_; }
  const std::vector<kernels::LayerWeights>& layers(Kind kind) const;
  // The first layers of a kind that have experts and a number of their own.
  int NumWholeLayers(Kind kind) const;
  const kernels::Matrix* embed() const { return embed_; }
  // A matrix of that format whose values no other of the last hundred megabytes has.
  const kernels::Matrix* MakeMatrix(kernels::cuda::ValueFormat format, int rows, int columns);

  // The next step: the last rows of sequences of `context` tokens, whose pages are scattered.
  void Start(const StepSize& step);
  // Activations of a whole layer of each kind, so that every phase finds sensible ones.
  void RunAllPhases();
  // Experts that the step's rows name at the moment.
  int CountDistinctExperts(const StepSize& step);

 private:
  void AllocatePools();
  void FillPages(const kernels::PageLayout& layout);
  kernels::LayerWeights MakeLayer(int number, Kind kind);
  kernels::MixWeights MakeMix();
  kernels::CompressorWeights MakeCompressor(Kind kind, int dim);
  void AddExperts(kernels::LayerWeights& layer);
  void RunLayer(const kernels::LayerWeights& layer);
  kernels::Vector Ones(size_t count) const { return {ones_, count}; }
  kernels::Vector Zeros(size_t count) const { return {zeros_, count}; }

  kernels::cuda::CudaDevice& device_;
  const int ranks_;
  std::unique_ptr<kernels::cuda::CudaOps> ops_;
  WeightPool fp4_, fp8_, bf16_, f32_;
  float *ones_ = nullptr, *zeros_ = nullptr, *fp8_scales_ = nullptr, *fp4_scales_ = nullptr;
  uint8_t* fp4_exponents_ = nullptr;
  uint8_t* pages_ = nullptr;
  std::vector<std::unique_ptr<kernels::cuda::DeviceMatrix>> matrices_;
  std::vector<kernels::LayerWeights> window_layers_, csa_layers_, hca_layers_;
  const kernels::Matrix* embed_ = nullptr;
};

}  // namespace baton::bench
