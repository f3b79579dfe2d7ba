#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/matrix_view.h"
#include "kernels/cuda/step_view.h"

// Residual streams: embedding, mHC borders, head collapse, drafter input (model.md 2, 7, 8.1). The
// sums have the CPU back end's order, so equal streams give equal bits. Device pointers,
// asynchronous; rows at or past *num_rows are left alone.
namespace baton::kernels::cuda {

inline constexpr int kMaxStreams = 16;

struct EmbedKernelArgs {
  DeviceStep step;
  ModelShape shape;
  const uint16_t* embed = nullptr;  // [V, H] bf16
  uint16_t* streams = nullptr;      // [rows, S, H] bf16
};
cudaError_t RunEmbed(const EmbedKernelArgs& args, cudaStream_t stream);

// streams[k] = r(post[k] * branch + sum over j of comb[j][k] * streams[j]).
struct LeaveSiteArgs {
  DeviceStep step;
  ModelShape shape;
  const uint16_t* branch = nullptr;  // [rows, H]
  const float* post = nullptr;       // [rows, S]
  const float* comb = nullptr;       // [rows, S, S]
  uint16_t* streams = nullptr;
};
cudaError_t RunLeaveSite(const LeaveSiteArgs& args, cudaStream_t stream);

// products[i] = fn . x and, in a last column, x . x; 16 lanes and their tree (R11).
struct MixProductsArgs {
  const int32_t* num_rows = nullptr;  // [1]; null: all `rows`
  int rows = 0;
  int width = 0;                      // S * H
  const uint16_t* streams = nullptr;  // [.., S * H]
  const int32_t* x_rows = nullptr;    // which row of streams is row i; null: i
  MatrixView fn;                      // f32 [outputs, S * H]
  float* products = nullptr;          // [rows, outputs + 1]
};
cudaError_t RunMixProducts(const MixProductsArgs& args, cudaStream_t stream);

// From the products: pre, post, comb; u = r(sum of pre[i] * streams[i]); x = r(rms(u) * weight);
// its fp8 form. With `is_head` only pre and x.
struct EnterSiteArgs {
  const int32_t* num_rows = nullptr;
  int rows = 0;
  bool is_head = false;
  ModelShape shape;
  const uint16_t* streams = nullptr;
  const int32_t* x_rows = nullptr;
  const float* products = nullptr;
  const float* base = nullptr;
  const float* scale = nullptr;
  const float* norm = nullptr;  // [H]
  float* post = nullptr;
  float* comb = nullptr;
  uint16_t* normed = nullptr;   // [rows, H]
  uint16_t* normed8 = nullptr;  // [rows, H] as fp8 linears take it
};
cudaError_t RunEnterSite(const EnterSiteArgs& args, cudaStream_t stream);

// All three in one launch, for rows that follow each other: the streams' branch is added, then
// mixed. Same bits. `fn`: f32 [outputs, S * H].
inline constexpr int kMaxFewRows = 128;  // beyond it the parts share more
bool FitsOneLaunch(const EnterSiteArgs& args);
cudaError_t RunBoundary(const LeaveSiteArgs& leave, const MatrixView& fn,
                        const EnterSiteArgs& enter, cudaStream_t stream);

// The drafter's inputs before their projections: r(rms(h) * hnorm) of every stream and
// r(rms(embed) * enorm), as fp8.
struct DraftNormArgs {
  DeviceStep step;
  ModelShape shape;
  const uint16_t* embed = nullptr;
  const float* enorm = nullptr;
  const float* hnorm = nullptr;
  const uint16_t* const* sources = nullptr;  // [rows] streams [S, H] each; null: row i of streams
  const uint16_t* streams = nullptr;         // [rows, S, H]
  uint16_t* streams8 = nullptr;              // [rows * S, H]
  uint16_t* embed8 = nullptr;                // [rows, H]
};
cudaError_t RunDraftNorm(const DraftNormArgs& args, cudaStream_t stream);

// streams[r][s] = r(streams[r][s] + branch[r]).
struct DraftAddArgs {
  DeviceStep step;
  ModelShape shape;
  const uint16_t* branch = nullptr;
  uint16_t* streams = nullptr;
};
cudaError_t RunDraftAdd(const DraftAddArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
