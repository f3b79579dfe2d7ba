#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

#include "kernels/cuda/experts.h"
#include "kernels/cuda/matrix_view.h"

// Gate and routing of few rows in one launch, with the bits of RunLinear and RunRoute. Device
// pointers, asynchronous.
namespace baton::kernels::cuda {

inline constexpr int kMaxGateRouteRows = 128;

struct GateRouteArgs {
  RouteArgs route;                 // without logits
  const uint16_t* gate = nullptr;  // [E, H] bf16
  const uint16_t* x = nullptr;     // [rows, H] bf16
};
bool FitsGateRoute(const MatrixView& gate, const RouteArgs& route);
cudaError_t RunGateRoute(const GateRouteArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
