#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "common/check.h"
#include "kernels/cpu/test_matrices.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/device.h"
#include "kernels/weights.h"

// Made-up models for the tests of this back end: the same weights on any device.
namespace baton::kernels::cuda::testing {

using cpu::testing::Bf16Matrix;
using cpu::testing::Count;
using cpu::testing::F32Matrix;
using cpu::testing::Fp8Twin;
using cpu::testing::RandomFp4;
using cpu::testing::RandomFp8;
using cpu::testing::RandomValues;
using cpu::testing::StoredMatrix;

struct TestShape {
  std::vector<int> ratios = {0, 4, 128, 4};
  int hidden = 256, heads = 4, head_dim = 128, rope_dim = 64, q_lora = 128;
  int o_groups = 2, o_lora = 64;
  int experts = 5, experts_per_token = 3, intermediate = 128, hash_layers = 1;
  int index_heads = 2, index_dim = 128, index_topk = 8, window = 128;
  int streams = 4, vocabulary = 300;
  int wide_expert = -1;  // whose group scales lie 2^15 apart
  bool has_fp8_experts = false, has_bounded_scores = true;
  IndexFormat index = IndexFormat::kFp8;
};

ModelConfig ConfigOf(const TestShape& t);
LayoutShape LayoutOf(const TestShape& t);

// Uploads a model's weights; the same shape gives the same weights on every device.
ModelWeights MakeWeights(const TestShape& shape, Device& device);

// GPU 0; null, and the running test is marked as skipped, where there is none.
inline std::unique_ptr<Device> DeviceOrSkip() {
  auto device = MakeCudaDevice(0);
  if (device.ok()) return *std::move(device);
  []() { GTEST_SKIP() << "needs a GPU"; }();
  return nullptr;
}

// Copies between host and device memory of test objects.
template <typename T>
std::vector<T> Download(CudaDevice& device, const void* data, size_t count) {
  std::vector<T> values(count);
  CHECK(cudaStreamSynchronize(device.stream()) == cudaSuccess);
  CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
  return values;
}
template <typename T>
void WriteTo(CudaDevice& device, void* data, const std::vector<T>& values) {
  CHECK(cudaStreamSynchronize(device.stream()) == cudaSuccess);
  CHECK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice) ==
        cudaSuccess);
}

}  // namespace baton::kernels::cuda::testing
