#include "engine/load/views.h"

#include <bit>
#include <cmath>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "engine/load/test_checkpoint.h"

namespace baton::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
HostTensor TensorOf(DType dtype, const std::vector<T>& values) {
  return {"layers.3.w.scale",
          dtype,
          {static_cast<int64_t>(values.size())},
          std::as_bytes(std::span(values))};
}

TEST(Views, E8M0ScalesArePowersOfTwo) {
  const std::vector<uint8_t> bytes = {0, 1, 127, 254};
  const auto scales = ScalesOf(TensorOf(DType::kF8E8M0, bytes));
  ASSERT_TRUE(scales.ok()) << scales.status();
  EXPECT_THAT(*scales, ElementsAre(0x1p-127f, 0x1p-126f, 1.0f, 0x1p127f));
}

TEST(Views, E8M0NanIsRefusedByName) {
  const std::vector<uint8_t> bytes = {127, 255};
  EXPECT_THAT(ScalesOf(TensorOf(DType::kF8E8M0, bytes)).status().ToString(),
              HasSubstr("tensor layers.3.w.scale: scale 1 is 255"));
}

TEST(Views, F32ScalesMustBePowersOfTwo) {
  const std::vector<float> good = {1.0f, 0x1p-127f, 0x1p127f, 0x1p-20f};
  EXPECT_EQ(*ScalesOf(TensorOf(DType::kF32, good)), good);
  for (float bad : {0.0f, -1.0f, 1.5f, 0x1p-128f, std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN()}) {
    const std::vector<float> values = {1.0f, bad};
    EXPECT_THAT(ScalesOf(TensorOf(DType::kF32, values)).status().ToString(),
                HasSubstr("tensor layers.3.w.scale: scale 1 is"))
        << bad;
  }
}

TEST(Views, FloatsComeFromBf16AndF32) {
  const std::vector<uint16_t> halves = {0x3f80, 0xc000};
  EXPECT_THAT(*FloatsOf(TensorOf(DType::kBf16, halves)), ElementsAre(1.0f, -2.0f));
  const std::vector<float> floats = {0.1f};
  EXPECT_EQ(*FloatsOf(TensorOf(DType::kF32, floats)), floats);
  const std::vector<uint8_t> codes = {1};
  EXPECT_THAT(FloatsOf(TensorOf(DType::kI8, codes)).status().ToString(), HasSubstr("dtype I8"));
}

TEST(Views, IndicesStayBelowTheirLimit) {
  const std::vector<int64_t> wide = {0, 7};
  EXPECT_THAT(*IndicesOf(TensorOf(DType::kI64, wide), 8), ElementsAre(0, 7));
  EXPECT_THAT(IndicesOf(TensorOf(DType::kI64, wide), 7).status().ToString(),
              HasSubstr("entry 1 is 7, must be 0..6"));
  const std::vector<int32_t> narrow = {-1};
  EXPECT_FALSE(IndicesOf(TensorOf(DType::kI32, narrow), 7).ok());
}

// Code values as the formats define them, written without the writer's tables (model.md 9.3).
double E4M3(uint8_t code) {
  const double sign = (code & 0x80) != 0 ? -1 : 1;
  const int exponent = (code >> 3) & 15;
  const double fraction = (code & 7) / 8.0;
  return sign * (exponent == 0 ? fraction * 0x1p-6 : (1 + fraction) * std::exp2(exponent - 7));
}

double E2M1(int code) {
  const double sign = (code & 8) != 0 ? -1 : 1;
  const int exponent = (code >> 1) & 3;
  const double fraction = (code & 1) / 2.0;
  return sign * (exponent == 0 ? fraction : (1 + fraction) * std::exp2(exponent - 1));
}

double ValueAt(const kernels::HostMatrix& m, int row, int col) {
  const auto byte = [&m](size_t i) { return std::to_integer<uint8_t>(m.values[i]); };
  const auto index =
      static_cast<size_t>(row) * static_cast<size_t>(m.cols) + static_cast<size_t>(col);
  switch (m.format) {
    case kernels::WeightFormat::kF32:
      break;
    case kernels::WeightFormat::kBf16: {
      const uint32_t half = static_cast<uint32_t>(byte(2 * index) | (byte(2 * index + 1) << 8));
      return static_cast<double>(std::bit_cast<float>(half << 16));
    }
    case kernels::WeightFormat::kFp8Block128:
      return E4M3(byte(index)) *
             static_cast<double>(m.scales[(row / 128) * (m.cols / 128) + col / 128]);
    case kernels::WeightFormat::kFp4Group32:
      return E2M1((byte(index / 2) >> (4 * (col % 2))) & 15) *
             static_cast<double>(m.scales[row * (m.cols / 32) + col / 32]);
  }
  ADD_FAILURE() << "unexpected format";
  return 0;
}

// Layouts of one seed hold the same numbers.
TEST(Views, Fp8CopyOfFp4WeightsIsLossless) {
  TestCheckpointOptions fp4{.config = TestModelConfig(), .fp4_scale_spread = 14};
  TestCheckpointOptions fp8 = fp4;
  fp8.config.expert_dtype = "fp8";
  fp8.has_bf16_wo_a = true;
  fp8.has_f32_scales = true;
  const std::filesystem::path root = std::filesystem::path(::testing::TempDir()) / "baton_twins";
  std::filesystem::create_directories(root / "fp4");
  std::filesystem::create_directories(root / "fp8");
  ASSERT_TRUE(WriteTestCheckpoint(fp4, root / "fp4").ok());
  ASSERT_TRUE(WriteTestCheckpoint(fp8, root / "fp8").ok());
  const auto a = Checkpoint::Open(root / "fp4");
  const auto b = Checkpoint::Open(root / "fp8");
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  for (const char* name : {"layers.0.ffn.experts.0.w1.weight", "layers.3.ffn.experts.7.w2.weight",
                           "layers.1.attn.wo_a.weight", "layers.1.attn.wq_b.weight"}) {
    const auto x = MatrixOf(*a, name);
    const auto y = MatrixOf(*b, name);
    ASSERT_TRUE(x.ok() && y.ok()) << name;
    ASSERT_EQ(x->matrix.rows, y->matrix.rows);
    ASSERT_EQ(x->matrix.cols, y->matrix.cols);
    for (int row = 0; row < x->matrix.rows; ++row) {
      for (int col = 0; col < x->matrix.cols; ++col)
        ASSERT_EQ(ValueAt(x->matrix, row, col), ValueAt(y->matrix, row, col)) << name;
    }
  }
  std::filesystem::remove_all(root);
}

}  // namespace
}  // namespace baton::engine
