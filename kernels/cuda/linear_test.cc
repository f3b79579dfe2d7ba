#include "kernels/cuda/linear.h"

#include <cmath>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cuda/gpu_test_model.h"

// The tensor-core linears against the CPU back end's, over generated shapes, and against
// themselves: a row's bits must not depend on how many rows there are.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;
using testing::RandomValues;
using testing::StoredMatrix;

constexpr int kMaxRows = 300;

struct Case {
  const char* name;
  StoredMatrix weight;
  bool is_fp8_input;
  int k_segments = 1;
  int groups = 1;
};

// x, as the CPU takes it (codes as values, scales apart) and as the GPU does.
struct Input {
  std::vector<float> values, scales;
  std::vector<uint16_t> bf16;
};

Input MakeInput(int rows, int cols, bool is_fp8) {
  Input x;
  x.values = RandomValues(Count(rows, cols), 7, 3.0f);
  x.scales.resize(x.values.size() / 128);
  for (int row = 0; row < rows; ++row) {
    float* values = &x.values[Count(row, cols)];
    for (int i = 0; i < cols; ++i)
      values[i] = cpu::RoundBf16(values[i] * std::ldexp(1.0f, row % 5));
    if (!is_fp8) continue;
    cpu::QuantiseRow(values, cols, NumericsMode::kOfficial, values,
                     &x.scales[Count(row, cols / 128)]);
  }
  for (size_t i = 0; i < x.values.size(); ++i) {
    x.bf16.push_back(cpu::EncodeBf16(is_fp8 ? x.values[i] * x.scales[i / 128] : x.values[i]));
  }
  return x;
}

std::vector<float> OnCpu(const Case& c, const Input& x, int rows) {
  const auto weight = c.weight.Prepare();
  const int per_group = weight->rows() / c.groups;
  std::vector<float> y(Count(rows, weight->rows()));
  const ParallelFor none;
  const cpu::GemmRunner runner(none, cpu::ChooseIsa(false));
  for (int group = 0; group < c.groups; ++group) {
    cpu::GemmArgs args;
    args.weight = weight.get();
    args.x = x.values.data() + group * weight->cols();
    args.x_stride = int64_t{c.groups} * weight->cols();
    args.x_scales = c.is_fp8_input ? x.scales.data() : nullptr;
    args.y = y.data() + group * per_group;
    args.y_stride = weight->rows();
    args.num_rows = rows;
    args.first_output = group * per_group;
    args.num_outputs = per_group;
    runner.RunHere(args);
  }
  return y;
}

class LinearOnGpu {
 public:
  LinearOnGpu(CudaDevice& device, const Case& c, const Input& x) : device_(device) {
    HostMatrix host = c.weight.host;
    host.values = c.weight.values.data();
    host.scales = c.weight.scales.empty() ? nullptr : c.weight.scales.data();
    weight_ = ViewOf(*device.Upload(host));
    args_.weight = weight_;
    args_.x_stride = int64_t{c.groups} * weight_.cols;
    args_.x =
        reinterpret_cast<const uint16_t*>(*device.UploadBytes(x.bf16.data(), x.bf16.size() * 2));
    args_.has_fp8_input = c.is_fp8_input;
    y_ = *device.Allocate(Count(kMaxRows, weight_.rows) * sizeof(float));
    args_.y = y_;
    args_.y_stride = weight_.rows;
    args_.output = OutputFormat::kF32;
    args_.k_segments = c.k_segments;
    args_.groups = c.groups;
  }

  std::vector<float> Run(int rows) {
    args_.rows = rows;
    args_.output = OutputFormat::kF32;
    device_.Zero(y_, Count(kMaxRows, weight_.rows) * sizeof(float));
    CHECK(RunLinear(args_, device_.stream()) == cudaSuccess);
    return Download<float>(device_, y_, Count(rows, weight_.rows));
  }

  // As many of `rows` as the device says.
  std::vector<float> RunLive(int live, int rows) {
    args_.num_rows = reinterpret_cast<const int32_t*>(*device_.UploadBytes(&live, sizeof(int32_t)));
    std::vector<float> y = Run(rows);
    args_.num_rows = nullptr;
    return y;
  }

  std::vector<uint16_t> RunToBf16(int rows) {
    args_.rows = rows;
    args_.output = OutputFormat::kBf16;
    device_.Zero(y_, Count(kMaxRows, weight_.rows) * sizeof(float));
    CHECK(RunLinear(args_, device_.stream()) == cudaSuccess);
    return Download<uint16_t>(device_, y_, Count(rows + 1, weight_.rows));  // the last: not written
  }

 private:
  CudaDevice& device_;
  MatrixView weight_;
  LinearArgs args_;
  std::byte* y_;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto bf16 = [](int rows, int cols) {
    return testing::Bf16Matrix(rows, cols, RandomValues(Count(rows, cols), 3));
  };
  cases.push_back({"fp8", testing::RandomFp8(192, 256, 1), true});
  cases.push_back({"fp8 deep, 4 segments", testing::RandomFp8(128, 1280, 2), true, 4});
  cases.push_back({"fp8 8 segments", testing::RandomFp8(384, 1024, 3), true, 8});
  cases.push_back({"fp8 odd rows", testing::RandomFp8(201, 128, 4), true});
  cases.push_back({"fp4", testing::RandomFp4(256, 384, 3, 5), true});
  cases.push_back({"fp4 of spread 14", testing::RandomFp4(128, 256, 14, 6), true});
  cases.push_back({"bf16", bf16(5, 512), false});
  cases.push_back({"bf16 wide", bf16(320, 1024), false});
  cases.push_back({"bf16 4 segments", bf16(192, 1152), false, 4});
  cases.push_back({"fp8 8 segments, wide", testing::RandomFp8(1152, 1024, 10), true, 8});
  cases.push_back({"fp8 widened, 2 groups", testing::RandomFp8(128, 256, 8), false, 1, 2});
  cases.push_back({"fp8 widened, 8 groups", testing::RandomFp8(512, 384, 9), false, 1, 8});
  return cases;
}

// Largest error in units of the root mean square of the row's outputs.
double WorstError(const std::vector<float>& x, const std::vector<float>& y, size_t width) {
  double worst = 0;
  for (size_t row = 0; row < x.size() / width; ++row) {
    double square = 0, error = 0;
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      square += double{y[i]} * double{y[i]};
      error = std::max(error, std::fabs(double{x[i]} - double{y[i]}));
      if (!std::isfinite(x[i])) return 1e30;
    }
    worst = std::max(worst, error / std::sqrt(square / static_cast<double>(width)));
  }
  return worst;
}

TEST(CudaLinear, AgreesWithTheCpu) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  for (const Case& c : Cases()) {
    const Input x = MakeInput(kMaxRows, c.weight.host.cols * c.groups, c.is_fp8_input);
    LinearOnGpu gpu(cuda, c, x);
    const std::vector<float> expected = OnCpu(c, x, kMaxRows);
    const double error =
        WorstError(gpu.Run(kMaxRows), expected, static_cast<size_t>(c.weight.host.rows));
    EXPECT_LT(error, 3e-5) << c.name;
    std::printf("linear %-24s worst error %.2e\n", c.name, error);
  }
}

TEST(CudaLinear, RowsDoNotDependOnTheirNumber) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  for (const Case& c : Cases()) {
    const Input x = MakeInput(kMaxRows, c.weight.host.cols * c.groups, c.is_fp8_input);
    LinearOnGpu gpu(cuda, c, x);
    const std::vector<float> all = gpu.Run(kMaxRows);
    for (const int rows : {1, 7, 8, 9, 31, 32, 33, 64, 127, 128, 129, 256}) {
      const std::vector<float> some = gpu.Run(rows);
      ASSERT_TRUE(std::equal(some.begin(), some.end(), all.begin())) << c.name << " " << rows;
    }
  }
}

TEST(CudaLinear, TheDeviceSaysHowManyRowsThereAre) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  for (const Case& c : Cases()) {
    const Input x = MakeInput(kMaxRows, c.weight.host.cols * c.groups, c.is_fp8_input);
    LinearOnGpu gpu(cuda, c, x);
    const std::vector<float> all = gpu.Run(kMaxRows);
    for (const int rows : {8, 100, kMaxRows}) {
      for (const int live : {0, 5, rows}) {
        std::vector<float> expected(all.begin(), all.begin() + Count(live, c.weight.host.rows));
        expected.resize(Count(rows, c.weight.host.rows));
        ASSERT_EQ(gpu.RunLive(live, rows), expected) << c.name << " " << live << " of " << rows;
      }
    }
  }
}

// Between 65 and 128 rows tiles have all rows, which blocks of a cluster fetch for one another or
// which meet segments of a sum there: the bits of what few rows get.
TEST(CudaLinear, WideTilesHaveTheBitsOfNarrowOnes) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  constexpr int kRows = 100, kFew = 20, kWidth = 1024;
  const Input x = MakeInput(kRows, kWidth, true);
  const auto* from =
      reinterpret_cast<const uint16_t*>(*cuda.UploadBytes(x.bf16.data(), 2 * x.bf16.size()));
  const auto bf16 = [](int rows) {
    return testing::Bf16Matrix(rows, kWidth, RandomValues(Count(rows, kWidth), 3));
  };
  struct Group {
    std::vector<StoredMatrix> weights;
    int k_segments;
  };
  const std::vector<Group> groups = {
      {{testing::RandomFp8(2048, kWidth, 2)}, 8},
      {{testing::RandomFp8(1024, kWidth, 4), bf16(1024), bf16(64)}, 4},
      {{testing::RandomFp8(1536, kWidth, 6), bf16(576)}, 2},
      {{bf16(8200)}, 1},
      {{testing::RandomFp8(2050, kWidth, 7), testing::RandomFp8(130, kWidth, 8)}, 1},
      {{testing::RandomFp8(17000, kWidth, 5)}, 1}};
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<LinearArgs> linears;
    std::vector<float*> outputs;
    for (StoredMatrix weight : groups[g].weights) {
      weight.host.values = weight.values.data();
      weight.host.scales = weight.scales.empty() ? nullptr : weight.scales.data();
      LinearArgs args;
      args.weight = ViewOf(*device->Upload(weight.host));
      args.has_fp8_input = weight.host.format == WeightFormat::kFp8Block128;
      args.x_stride = kWidth;
      args.y_stride = args.weight.rows;
      args.output = args.weight.rows == 64 ? OutputFormat::kScaledF32 : OutputFormat::kF32;
      args.output_scale = 0.37f;
      args.k_segments = groups[g].k_segments;
      linears.push_back(args);
      outputs.push_back(
          reinterpret_cast<float*>(*device->Allocate(Count(kRows, args.weight.rows) * 4)));
    }
    const auto run = [&](int first, int rows) {
      std::vector<std::vector<float>> results;
      for (size_t i = 0; i < linears.size(); ++i) {
        linears[i].x = from + Count(first, kWidth);
        linears[i].rows = rows;
        linears[i].y = outputs[i];
      }
      const auto count = static_cast<int>(linears.size());
      CHECK(RunLinears(linears.data(), count, cuda.stream()) == cudaSuccess);
      for (size_t i = 0; i < linears.size(); ++i) {
        results.push_back(Download<float>(cuda, outputs[i], Count(rows, linears[i].weight.rows)));
      }
      return results;
    };
    const auto all = run(0, kRows);
    for (int first = 0; first < kRows; first += kFew) {
      const auto few = run(first, kFew);
      for (size_t i = 0; i < few.size(); ++i) {
        const float* expected = &all[i][Count(first, linears[i].weight.rows)];
        ASSERT_TRUE(std::equal(few[i].begin(), few[i].end(), expected)) << g << " " << i;
      }
    }
  }
}

TEST(CudaLinear, RoundsItsOutputs) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  for (const Case& c : Cases()) {
    const Input x = MakeInput(kMaxRows, c.weight.host.cols * c.groups, c.is_fp8_input);
    LinearOnGpu gpu(cuda, c, x);
    for (const int rows : {5, 30, 100, 290}) {
      std::vector<uint16_t> expected;
      for (const float value : gpu.Run(rows)) expected.push_back(cpu::EncodeBf16(value));
      expected.resize(Count(rows + 1, c.weight.host.rows));
      ASSERT_EQ(gpu.RunToBf16(rows), expected) << c.name << " " << rows;
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cuda
