#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pick.cuh"
#include "kernels/cuda/select.h"

// Top-k of rows of scores, a block of threads a row. Of a long row, whose groups' maxima are there,
// the k-th largest maximum bounds the k-th largest score from below: the few scores that reach it,
// all in groups whose maximum does, are gathered in their order and picked from.
namespace baton::kernels::cuda {
namespace {

constexpr int kShortThreads = 512;
constexpr int kLongThreads = 1024;
constexpr int kMostOfThread = 16;
constexpr int kMostGroups = 1024;    // that reach the bound
constexpr int kMostGathered = 8192;  // scores that do
constexpr int kCsaRatio = 4;

struct LongShared {
  PickShared picker;
  int32_t groups[kMostGroups];
  float scores[kMostGathered];
  int32_t entries[kMostGathered];
};

struct Row {
  const float* scores;
  int32_t* selected;
  int n;  // scores
};

// Those of short rows are all taken.
__device__ Row RowOf(const PickArgs& args) {
  const int row = static_cast<int>(blockIdx.x);
  const int n = args.counts != nullptr ? args.counts[row] : (args.positions[row] + 1) / kCsaRatio;
  const int live = args.num_rows != nullptr ? *args.num_rows - args.first_row : args.rows;
  if (row >= live) return {};
  int32_t* selected = args.selected + static_cast<int64_t>(row) * args.k;
  if (threadIdx.x == 0) args.num_selected[row] = n < args.k ? n : args.k;
  if (n <= args.k) {
    for (int i = static_cast<int>(threadIdx.x); i < n; i += static_cast<int>(blockDim.x)) {
      selected[i] = i;
    }
  }
  return {args.scores + row * args.stride, selected, n};
}

template <int kThreads, int kHeld>
__device__ void PickFromAll(const Row& row, int k, PickShared& shared) {
  const auto load = [&row](int i) { return row.scores[i]; };
  RowPicker<kThreads, kHeld, decltype(load)> picker(load, row.n, k, shared);
  const auto threshold = picker.Find();
  picker.Take(
      threshold, [](int i) { return i; }, row.selected);
}

template <int kThreads, int kHeld>
__global__ void __launch_bounds__(kThreads) PickKernel(PickArgs args) {
  __shared__ PickShared shared;
  StartAfterEarlier();
  const Row row = RowOf(args);
  if (row.n > args.k) PickFromAll<kThreads, kHeld>(row, args.k, shared);
}

// False: too many groups or scores reach the bound.
__device__ bool PickFromGroups(const Row& row, const float* maxima, int k, LongShared& s) {
  const int groups = (row.n + kGroupScores - 1) / kGroupScores;
  if (groups > kMostOfThread * kLongThreads) return false;
  const auto load_maximum = [maxima](int i) { return maxima[i]; };
  RowPicker<kLongThreads, kMostOfThread, decltype(load_maximum)> bounds(load_maximum, groups, k,
                                                                        s.picker);
  const uint32_t bound = groups > k ? bounds.Find().value : 1;
  const uint32_t listed = bounds.Compact(
      bound, kMostGroups, [&s](uint32_t place, int i, uint32_t) { s.groups[place] = i; });
  if (listed > kMostGroups) return false;
  __syncthreads();
  const auto entry_of = [&s](int i) {
    return s.groups[i / kGroupScores] * kGroupScores + i % kGroupScores;
  };
  const auto load_score = [&](int i) { return row.scores[entry_of(i)]; };
  const int missing = s.groups[listed - 1] == groups - 1 ? groups * kGroupScores - row.n : 0;
  RowPicker<kLongThreads, kMostOfThread, decltype(load_score)> gatherer(
      load_score, static_cast<int>(listed) * kGroupScores - missing, k, s.picker);
  const uint32_t gathered =
      gatherer.Compact(bound, kMostGathered, [&](uint32_t place, int i, uint32_t value) {
        s.scores[place] = FromOrdered(value);
        s.entries[place] = entry_of(i);
      });
  if (gathered > kMostGathered) return false;
  __syncthreads();
  const auto load_gathered = [&s](int i) { return s.scores[i]; };
  RowPicker<kLongThreads, kMostGathered / kLongThreads, decltype(load_gathered)> picker(
      load_gathered, static_cast<int>(gathered), k, s.picker);
  const auto threshold = picker.Find();
  picker.Take(
      threshold, [&s](int i) { return s.entries[i]; }, row.selected);
  return true;
}

__global__ void __launch_bounds__(kLongThreads) PickLongKernel(PickArgs args) {
  extern __shared__ __align__(16) uint8_t raw[];
  auto& shared = *reinterpret_cast<LongShared*>(raw);
  StartAfterEarlier();
  const Row row = RowOf(args);
  if (row.n <= args.k) return;
  const float* maxima = args.maxima + blockIdx.x * args.maxima_stride;
  if (PickFromGroups(row, maxima, args.k, shared)) return;
  __syncthreads();
  PickFromAll<kLongThreads, 0>(row, args.k, shared.picker);
}

}  // namespace

cudaError_t RunPick(const PickArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.rows));
  const auto launch = [&](auto kernel, int threads, size_t bytes) {
    return EarlyLaunch(grid, threads, bytes, stream).Run(kernel, args);
  };
  if (args.longest <= 4 * kShortThreads)
    return launch(PickKernel<kShortThreads, 4>, kShortThreads, 0);
  if (args.longest <= 16 * kShortThreads)
    return launch(PickKernel<kShortThreads, 16>, kShortThreads, 0);
  if (args.maxima == nullptr) return launch(PickKernel<kLongThreads, 0>, kLongThreads, 0);
  if (const cudaError_t error = cudaFuncSetAttribute(
          PickLongKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(LongShared))) {
    return error;
  }
  return launch(PickLongKernel, kLongThreads, sizeof(LongShared));
}

}  // namespace baton::kernels::cuda
