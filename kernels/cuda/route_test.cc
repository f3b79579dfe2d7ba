#include "kernels/cuda/route.h"

#include "kernels/cpu/quantise.h"
#include "kernels/cuda/gpu_test_model.h"
#include "kernels/cuda/linear.h"

namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;

constexpr int kExperts = 256, kSlots = 6, kTokens = 50;

class RouteCase {
 public:
  RouteCase(CudaDevice& device, int hidden, int rows, int live) : device_(device), rows_(rows) {
    const std::vector<int32_t> num_rows = {live};
    std::vector<int32_t> tokens;
    for (int i = 0; i < rows; ++i) tokens.push_back(i * 7 % kTokens);
    route_.step.num_rows = *device.UploadIndices(num_rows);
    route_.step.token = *device.UploadIndices(tokens);
    route_.step.rows = rows;
    route_.shape.hidden = hidden;
    route_.shape.experts = kExperts;
    route_.shape.experts_per_token = kSlots;
    route_.shape.routed_scaling = 1.5f;
    const auto bias = testing::RandomValues(kExperts, 1, 0.3f);
    route_.bias = reinterpret_cast<const float*>(*device.UploadBytes(bias.data(), 4 * kExperts));
    gate_.values = reinterpret_cast<const uint8_t*>(Bf16Values(Count(kExperts, hidden), 2, 0.05f));
    gate_.format = ValueFormat::kBf16;
    gate_.rows = kExperts;
    gate_.cols = hidden;
    x_ = Bf16Values(Count(rows, hidden), 3, 2.0f);
    logits_ = reinterpret_cast<float*>(*device.Allocate(Count(rows, kExperts) * 4));
  }

  void HashTokens() {
    std::vector<int32_t> experts;
    for (int i = 0; i < kTokens * kSlots; ++i) experts.push_back(i * 37 % kExperts);
    route_.token_experts = *device_.UploadIndices(experts);
    route_.bias = nullptr;
  }

  // Chosen experts, then their weights.
  std::pair<std::vector<int32_t>, std::vector<uint32_t>> Run(bool in_one_launch) {
    const std::vector<int32_t> empty(Count(rows_, kSlots), -1);
    route_.ids = const_cast<int32_t*>(*device_.UploadIndices(empty));
    route_.weights = reinterpret_cast<float*>(const_cast<int32_t*>(*device_.UploadIndices(empty)));
    route_.logits = logits_;
    if (in_one_launch) {
      CHECK(FitsGateRoute(gate_, route_));
      const GateRouteArgs args = {route_, reinterpret_cast<const uint16_t*>(gate_.values), x_};
      CHECK(RunGateRoute(args, device_.stream()) == cudaSuccess);
    } else {
      LinearArgs linear;
      linear.weight = gate_;
      linear.x = x_;
      linear.x_stride = gate_.cols;
      linear.num_rows = route_.step.num_rows;
      linear.rows = rows_;
      linear.y = logits_;
      linear.y_stride = kExperts;
      linear.output = OutputFormat::kF32;
      CHECK(RunLinear(linear, device_.stream()) == cudaSuccess);
      CHECK(RunRoute(route_, device_.stream()) == cudaSuccess);
    }
    return {Download<int32_t>(device_, route_.ids, empty.size()),
            Download<uint32_t>(device_, route_.weights, empty.size())};
  }

 private:
  const uint16_t* Bf16Values(size_t n, uint32_t seed, float most) {
    std::vector<uint16_t> codes;
    for (const float x : testing::RandomValues(n, seed, most)) codes.push_back(cpu::EncodeBf16(x));
    return reinterpret_cast<const uint16_t*>(*device_.UploadBytes(codes.data(), 2 * n));
  }

  CudaDevice& device_;
  int rows_;
  RouteArgs route_;
  MatrixView gate_;
  const uint16_t* x_ = nullptr;
  float* logits_ = nullptr;
};

// Gate and routing in one launch have the bits of the linear and of the routing, which lockstep
// tests compare with the CPU.
TEST(CudaRoute, OneLaunchEqualsTwo) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  for (const int hidden : {1024, 4096}) {
    for (const int rows : {1, 7, 8, 9, 100, 128}) {
      for (const bool is_hashed : {false, true}) {
        RouteCase c(static_cast<CudaDevice&>(*device), hidden, rows, rows - rows / 4);
        if (is_hashed) c.HashTokens();
        const auto one = c.Run(true), two = c.Run(false);
        EXPECT_EQ(one.first, two.first) << hidden << " " << rows << " " << is_hashed;
        EXPECT_EQ(one.second, two.second) << hidden << " " << rows << " " << is_hashed;
      }
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cuda
