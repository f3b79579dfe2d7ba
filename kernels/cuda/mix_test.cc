#include "kernels/cuda/mix.h"

#include <cstring>

#include "kernels/cpu/quantise.h"
#include "kernels/cuda/gpu_test_model.h"

// A boundary in one launch against its three parts, which lockstep tests compare with the CPU.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;

// As it lies in device memory.
MatrixView Fn(CudaDevice& device, int rows, int cols, const std::vector<float>& values) {
  testing::StoredMatrix fn = testing::F32Matrix(rows, cols, values);
  fn.host.values = fn.values.data();
  return ViewOf(*device.Upload(fn.host));
}

class BoundaryCase {
 public:
  BoundaryCase(CudaDevice& device, int hidden, int rows, int live)
      : device_(device), all_(Count(rows, hidden)), rows_(rows), live_({live}) {
    shape_.hidden = hidden;
    shape_.streams = 4;
    shape_.sinkhorn_iterations = 20;
    shape_.norm_epsilon = shape_.mix_epsilon = 1e-6f;
    fn_ = Fn(device, 24, 4 * hidden, testing::RandomValues(Count(24, 4 * hidden), 3, 0.02f));
    enter_.base = Floats(24, 4);
    enter_.scale = Floats(3, 5);
    enter_.norm = Floats(Count(hidden, 1), 6);
  }

  // Everything that a boundary writes.
  std::vector<std::vector<uint8_t>> Run(bool in_one_launch) {
    const std::vector<uint8_t> empty(2 * all_, 0x5a);
    enter_.post = Floats(Count(rows_, 4), 7);
    enter_.comb = Floats(Count(rows_, 16), 8);
    leave_.step.num_rows = enter_.num_rows = *device_.UploadIndices(live_);
    leave_.step.rows = enter_.rows = rows_;
    leave_.shape = enter_.shape = shape_;
    leave_.branch = Bf16Values(all_, 9);
    leave_.streams = Bf16Values(4 * all_, 10);
    leave_.post = enter_.post;
    leave_.comb = enter_.comb;
    enter_.streams = leave_.streams;
    enter_.normed = reinterpret_cast<uint16_t*>(Up(empty));
    enter_.normed8 = reinterpret_cast<uint16_t*>(Up(empty));
    if (in_one_launch) {
      CHECK(FitsOneLaunch(enter_));
      CHECK(RunBoundary(leave_, fn_, enter_, device_.stream()) == cudaSuccess);
    } else {
      RunParts();
    }
    return {Download<uint8_t>(device_, leave_.streams, 8 * all_),
            Download<uint8_t>(device_, enter_.post, Count(rows_, 16)),
            Download<uint8_t>(device_, enter_.comb, Count(rows_, 64)),
            Download<uint8_t>(device_, enter_.normed, 2 * all_),
            Download<uint8_t>(device_, enter_.normed8, 2 * all_)};
  }

 private:
  template <typename T>
  uint8_t* Up(const std::vector<T>& values) {
    return const_cast<uint8_t*>(*device_.UploadBytes(values.data(), values.size() * sizeof(T)));
  }
  float* Floats(size_t n, uint32_t seed) {
    return reinterpret_cast<float*>(Up(testing::RandomValues(n, seed, 0.7f)));
  }
  uint16_t* Bf16Values(size_t n, uint32_t seed) {
    std::vector<uint16_t> codes;
    for (const float x : testing::RandomValues(n, seed, 2.0f)) codes.push_back(cpu::EncodeBf16(x));
    return reinterpret_cast<uint16_t*>(Up(codes));
  }

  void RunParts() {
    MixProductsArgs products;
    products.num_rows = enter_.num_rows;
    products.rows = rows_;
    products.width = 4 * shape_.hidden;
    products.streams = leave_.streams;
    products.fn = fn_;
    products.products = Floats(Count(rows_, 25), 11);
    enter_.products = products.products;
    CHECK(RunLeaveSite(leave_, device_.stream()) == cudaSuccess);
    CHECK(RunMixProducts(products, device_.stream()) == cudaSuccess);
    CHECK(RunEnterSite(enter_, device_.stream()) == cudaSuccess);
  }

  CudaDevice& device_;
  size_t all_;
  int rows_;
  std::vector<int32_t> live_;
  ModelShape shape_;
  MatrixView fn_;
  LeaveSiteArgs leave_;
  EnterSiteArgs enter_;
};

TEST(CudaMix, OneLaunchEqualsThree) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  for (const int hidden : {1024, 4096}) {
    for (const int rows : {1, 3, 8, 15, 16, 23, 32, 45, 46, 70, 90, 91, 100, 128}) {
      BoundaryCase c(static_cast<CudaDevice&>(*device), hidden, rows, rows - rows / 3);
      const auto one = c.Run(true), three = c.Run(false);
      for (size_t i = 0; i < one.size(); ++i) {
        EXPECT_TRUE(one[i] == three[i]) << hidden << " " << rows << " result " << i;
      }
    }
  }
}

// The products of many rows come from another layout of threads than those of few.
TEST(CudaMix, ManyRowsHaveTheBitsOfFew) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  constexpr int kRows = 4100, kWidth = 1024;
  for (const int outputs : {24, 8, 4}) {
    std::vector<uint16_t> x;
    for (const float value : testing::RandomValues(Count(kRows, kWidth), 1, 2.0f)) {
      x.push_back(cpu::EncodeBf16(value));
    }
    MixProductsArgs args;
    args.width = kWidth;
    args.fn = Fn(cuda, outputs, kWidth, testing::RandomValues(Count(outputs, kWidth), 2, 0.1f));
    const auto* streams =
        reinterpret_cast<const uint16_t*>(*cuda.UploadBytes(x.data(), 2 * x.size()));
    auto* products = reinterpret_cast<float*>(*device->Allocate(Count(kRows, 25) * 4));
    const auto run = [&](int first, int rows) {
      args.streams = streams + Count(first, kWidth);
      args.rows = rows;
      args.products = products;
      CHECK(RunMixProducts(args, cuda.stream()) == cudaSuccess);
      return Download<float>(cuda, products, Count(rows, outputs + 1));
    };
    const std::vector<float> all = run(0, kRows);
    for (const int rows : {20, 67, 255, 1000}) {
      for (const int first : {0, kRows - rows}) {
        const std::vector<float> some = run(first, rows);
        EXPECT_EQ(std::memcmp(some.data(), &all[Count(first, outputs + 1)], 4 * some.size()), 0)
            << outputs << " " << rows << " " << first;
      }
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cuda
