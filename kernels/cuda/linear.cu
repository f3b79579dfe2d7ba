#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_kernel.cuh"

namespace baton::kernels::cuda {
namespace {

template <typename Kernel>
cudaError_t AllowShared(Kernel kernel, int bytes) {
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

unsigned Tiles(int n, int tile) { return static_cast<unsigned>((n + tile - 1) / tile); }

template <LinearKind kKind, int kN>
cudaError_t Launch(const LinearArgs& args, cudaStream_t stream) {
  using Tile = LinearTile<kKind, kN>;
  const auto kernel = LinearKernel<kKind, kN>;
  if (const cudaError_t error = AllowShared(kernel, Tile::kSharedBytes)) return error;
  const dim3 grid(Tiles(args.weight.rows / args.groups, Tile::kM), Tiles(args.rows, kN),
                  static_cast<unsigned>(args.groups));
  kernel<<<grid, Tile::kThreads, Tile::kSharedBytes, stream>>>(args);
  return cudaPeekAtLastError();
}

template <LinearKind kKind>
cudaError_t LaunchKind(const LinearArgs& args, cudaStream_t stream) {
  switch (TileRows(args.rows)) {
    case 8:
      return Launch<kKind, 8>(args, stream);
    case 32:
      return Launch<kKind, 32>(args, stream);
    default:
      return Launch<kKind, 128>(args, stream);
  }
}

template <LinearKind kKind, int kN, bool kPer32>
cudaError_t LaunchExperts(const ExpertLinearArgs& args, cudaStream_t stream) {
  using Tile = LinearTile<kKind, kN>;
  const auto kernel = ExpertLinearKernel<kKind, kN, kPer32>;
  if (const cudaError_t error = AllowShared(kernel, Tile::kSharedBytes)) return error;
  const dim3 grid(Tiles(args.linear.weight.rows, Tile::kM), static_cast<unsigned>(args.max_tiles));
  kernel<<<grid, Tile::kThreads, Tile::kSharedBytes, stream>>>(args);
  return cudaPeekAtLastError();
}

template <LinearKind kKind>
cudaError_t LaunchExpertKind(const ExpertLinearArgs& args, cudaStream_t stream) {
  switch (args.tile_rows) {
    case 8:
      return args.promotes_per_32 ? LaunchExperts<kKind, 8, true>(args, stream)
                                  : LaunchExperts<kKind, 8, false>(args, stream);
    case 32:
      return args.promotes_per_32 ? LaunchExperts<kKind, 32, true>(args, stream)
                                  : LaunchExperts<kKind, 32, false>(args, stream);
    default:
      return args.promotes_per_32 ? LaunchExperts<kKind, 128, true>(args, stream)
                                  : LaunchExperts<kKind, 128, false>(args, stream);
  }
}

}  // namespace

int TileRows(int rows) { return rows <= 8 ? 8 : (rows <= 32 ? 32 : 128); }

cudaError_t RunLinear(const LinearArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  const bool is_fp8 = args.x_scales != nullptr;
  switch (args.weight.format) {
    case ValueFormat::kFp8:
      return is_fp8 ? LaunchKind<LinearKind::kFp8>(args, stream)
                    : LaunchKind<LinearKind::kWidened>(args, stream);
    case ValueFormat::kFp4:
      return is_fp8 ? LaunchKind<LinearKind::kFp4>(args, stream) : cudaErrorNotSupported;
    case ValueFormat::kBf16:
      return is_fp8 ? cudaErrorNotSupported : LaunchKind<LinearKind::kBf16>(args, stream);
    case ValueFormat::kF32:
      return cudaErrorNotSupported;
  }
  return cudaErrorNotSupported;
}

cudaError_t RunExpertLinear(const ExpertLinearArgs& args, cudaStream_t stream) {
  if (args.max_tiles == 0) return cudaSuccess;
  if (args.linear.weight.format == ValueFormat::kFp4) {
    return LaunchExpertKind<LinearKind::kFp4>(args, stream);
  }
  return LaunchExpertKind<LinearKind::kFp8>(args, stream);
}

}  // namespace baton::kernels::cuda
