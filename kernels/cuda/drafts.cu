#include "kernels/cuda/drafts.h"

// Drafts that follow one another: a few integers a row, one block.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) KeepDraftKernel(KeepDraftArgs args) {
  const int num_rows = *args.num_rows, index = *args.kept.num_kept;
  for (int row = static_cast<int>(threadIdx.x); row < num_rows; row += kThreads) {
    const int32_t token = args.results[row].token;
    if (index < args.kept.max_drafts) args.kept.tokens[index * args.kept.max_rows + row] = token;
    args.token[row] = token;
    ++args.position[row];
    ++args.runs[row].first;
    ++args.kept.rows[row].position;
  }
  __syncthreads();
  if (threadIdx.x == 0) *args.kept.num_kept = index + 1;
}

}  // namespace

cudaError_t RunKeepDraft(const KeepDraftArgs& args, cudaStream_t stream) {
  KeepDraftKernel<<<1, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
