#include "kernels/cpu/gemm.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/test_matrices.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {
namespace {

using testing::Count;
using testing::RandomValues;
using testing::StoredMatrix;

const ParallelFor kNoThreads;

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (IsSupported(isa)) isas.push_back(isa);
  }
  return isas;
}

// Rows of a linear's input; scales stay empty for unquantised rows.
struct Input {
  int rows, cols;
  std::vector<float> values, scales;
};

Input RandomInput(int rows, int cols, bool is_fp8, uint32_t seed) {
  Input input{rows, cols, RandomValues(Count(rows, cols), seed, 2.0f), {}};
  if (!is_fp8) return input;
  input.scales.resize(Count(rows, cols / 128));
  for (int row = 0; row < rows; ++row) {
    float* values = &input.values[Count(row, cols)];
    QuantiseRow(values, cols, NumericsMode::kOfficial, values,
                &input.scales[Count(row, cols / 128)]);
  }
  return input;
}

GemmArgs ArgsFor(const PreparedMatrix& weight, const Input& input, std::vector<float>& y) {
  y.assign(Count(input.rows, weight.rows()), -1.0f);
  GemmArgs args;
  args.weight = &weight;
  args.x = input.values.data();
  args.x_stride = input.cols;
  args.x_scales = input.scales.empty() ? nullptr : input.scales.data();
  args.y = y.data();
  args.y_stride = weight.rows();
  args.num_rows = input.rows;
  return args;
}

std::vector<float> Multiply(const PreparedMatrix& weight, const Input& input, Isa isa,
                            bool promotes_per_32 = false) {
  std::vector<float> y;
  GemmArgs args = ArgsFor(weight, input, y);
  args.promotes_per_32 = promotes_per_32;
  GemmRunner(kNoThreads, isa).Run({&args, 1});
  return y;
}

// R11 written down once more: lane = index mod 16, tree 8, 4, 2, 1.
float LaneDot(const float* a, const float* b, int n) {
  std::vector<float> lanes(16, 0.0f);
  for (int i = 0; i < n; ++i)
    lanes[static_cast<size_t>(i % 16)] = Fma(a[i], b[i], lanes[static_cast<size_t>(i % 16)]);
  for (size_t half = 8; half > 0; half /= 2) {
    for (size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// One output of an fp8 or FP4 linear by R1, from the checkpoint's own codes and scales.
float PromotedDot(const StoredMatrix& weight, const Input& input, int row, int output, int group) {
  const int cols = input.cols;
  float acc = 0.0f;
  std::vector<float> w(static_cast<size_t>(group));
  for (int k = 0; k < cols; k += group) {
    float scale = 0.0f;
    for (int i = 0; i < group; ++i) {
      const size_t at = Count(output, cols) + static_cast<size_t>(k + i);
      if (weight.host.format == WeightFormat::kFp8Block128) {
        w[static_cast<size_t>(i)] = DecodeE4m3(static_cast<uint8_t>(weight.values[at]));
        scale = weight.scales[Count(output / 128, cols / 128) + static_cast<size_t>(k / 128)];
      } else {
        const auto pair = static_cast<uint8_t>(weight.values[at / 2]);
        w[static_cast<size_t>(i)] = DecodeE2m1(at % 2 == 0 ? pair & 15 : pair >> 4);
        scale = weight.scales[at / 32];
      }
    }
    const float part =
        LaneDot(&input.values[Count(row, cols) + static_cast<size_t>(k)], w.data(), group);
    const float x_scale = input.scales[Count(row, cols / 128) + static_cast<size_t>(k / 128)];
    acc = Fma(part, x_scale * scale, acc);
  }
  return acc;
}

struct Case {
  std::string name;
  StoredMatrix weight;
  bool is_fp8_input;
};

std::vector<Case> Cases(int outputs, int cols) {
  const std::vector<float> values = RandomValues(Count(outputs, cols), 3);
  std::vector<Case> cases;
  cases.push_back({"f32", testing::F32Matrix(outputs, cols, values), false});
  cases.push_back({"bf16", testing::Bf16Matrix(outputs, cols, values), false});
  cases.push_back({"fp8 widened", testing::RandomFp8(outputs, cols, 4), false});
  cases.push_back({"fp8", testing::RandomFp8(outputs, cols, 5), true});
  cases.push_back({"fp4", testing::RandomFp4(outputs, cols, 11, 6), true});
  cases.push_back({"fp4 per 32", testing::RandomFp4(outputs, cols, 15, 7), true});
  return cases;
}

TEST(Gemm, SumsByTheDocumentedOrder) {
  for (const Isa isa : SupportedIsas()) {
    for (const Case& c : Cases(40, 384)) {
      const auto weight = c.weight.Prepare();
      const Input input = RandomInput(3, 384, c.is_fp8_input, 9);
      const std::vector<float> y = Multiply(*weight, input, isa);
      std::vector<float> row(384);
      for (int r = 0; r < 3; ++r) {
        for (int o = 0; o < 40; ++o) {
          weight->CopyRow(o, row.data());
          const float expected =
              c.name == "fp8" || c.name == "fp4 per 32"
                  ? PromotedDot(c.weight, input, r, o, c.name == "fp8" ? 128 : 32)
                  : LaneDot(&input.values[Count(r, 384)], row.data(), 384);
          if (c.name == "fp4") continue;  // FoldedFp4 below
          ASSERT_EQ(y[Count(r, 40) + static_cast<size_t>(o)], expected) << c.name << r << "," << o;
        }
      }
    }
  }
}

TEST(Gemm, EveryInstructionSetGivesTheSameBits) {
  for (const int outputs : {1, 15, 16, 24, 130}) {
    for (const int rows : {1, 2, 3, 7, 8, 13}) {
      for (const Case& c : Cases(outputs, 256)) {
        const auto weight = c.weight.Prepare();
        const Input input = RandomInput(rows, 256, c.is_fp8_input, 11);
        const std::vector<float> expected = Multiply(*weight, input, Isa::kScalar);
        for (const Isa isa : SupportedIsas()) {
          ASSERT_EQ(Multiply(*weight, input, isa), expected)
              << c.name << " " << outputs << "x" << rows;
        }
      }
    }
  }
}

TEST(Gemm, RowsDoNotDependOnTheirBatch) {
  const Isa isa = ChooseIsa(false);
  for (const Case& c : Cases(144, 256)) {
    const auto weight = c.weight.Prepare();
    const Input all = RandomInput(300, 256, c.is_fp8_input, 12);
    std::vector<std::vector<float>> alone;
    for (int r = 0; r < 300; ++r) {
      Input one{1, 256, {}, {}};
      one.values.assign(all.values.begin() + r * 256, all.values.begin() + (r + 1) * 256);
      if (c.is_fp8_input)
        one.scales.assign(all.scales.begin() + r * 2, all.scales.begin() + (r + 1) * 2);
      alone.push_back(Multiply(*weight, one, isa));
    }
    for (const int rows : {1, 7, 8, 64, 300}) {
      std::vector<int32_t> order(static_cast<size_t>(rows));
      std::iota(order.begin(), order.end(), 0);
      std::shuffle(order.begin(), order.end(), std::mt19937(13));
      std::vector<float> y;
      GemmArgs args = ArgsFor(*weight, all, y);
      args.num_rows = rows;
      args.x_rows = order.data();
      GemmRunner(kNoThreads, isa).Run({&args, 1});
      for (size_t i = 0; i < order.size(); ++i) {
        const std::vector<float> row(&y[i * 144], &y[i * 144] + 144);
        ASSERT_EQ(row, alone[static_cast<size_t>(order[i])]) << c.name << " row " << order[i];
      }
    }
  }
}

TEST(Gemm, IsCloseToDoubleArithmetic) {
  for (const Case& c : Cases(64, 512)) {
    const auto weight = c.weight.Prepare();
    const Input input = RandomInput(5, 512, c.is_fp8_input, 14);
    const std::vector<float> y = Multiply(*weight, input, ChooseIsa(false));
    std::vector<float> w(512);
    for (int r = 0; r < 5; ++r) {
      for (int o = 0; o < 64; ++o) {
        weight->CopyRow(o, w.data());
        double sum = 0.0, size = 0.0;
        for (int k = 0; k < 512; ++k) {
          const size_t at = Count(r, 512) + static_cast<size_t>(k);
          const double x = static_cast<double>(input.values[at]) *
                           (c.is_fp8_input ? input.scales[at / 128] : 1.0f);
          sum += x * w[static_cast<size_t>(k)];
          size += std::fabs(x * w[static_cast<size_t>(k)]);
        }
        ASSERT_NEAR(y[Count(r, 64) + static_cast<size_t>(o)], sum, 1e-5 * size) << c.name;
      }
    }
  }
}

TEST(Gemm, WidenedFp8EqualsItsBf16Copy) {
  const StoredMatrix fp8 = testing::RandomFp8(128, 256, 15);
  const auto weight = fp8.Prepare();
  std::vector<float> dense(Count(128, 256));
  for (int row = 0; row < 128; ++row) weight->CopyRow(row, &dense[Count(row, 256)]);
  const auto copy = testing::Bf16Matrix(128, 256, dense).Prepare();
  const Input input = RandomInput(9, 256, false, 16);
  EXPECT_EQ(Multiply(*weight, input, ChooseIsa(false)), Multiply(*copy, input, ChooseIsa(false)));
}

TEST(Gemm, ComputesARangeOfOutputsAndRoundsThem) {
  const auto weight = testing::Bf16Matrix(70, 128, RandomValues(Count(70, 128), 17)).Prepare();
  const Input input = RandomInput(3, 128, false, 18);
  const std::vector<float> whole = Multiply(*weight, input, ChooseIsa(false));
  std::vector<float> y(Count(3, 80), -5.0f), ignored;
  GemmArgs args = ArgsFor(*weight, input, ignored);
  args.first_output = 19;
  args.num_outputs = 37;
  args.y = y.data();
  args.y_stride = 80;
  args.round_bf16 = true;
  GemmRunner(kNoThreads, ChooseIsa(false)).Run({&args, 1});
  for (int r = 0; r < 3; ++r) {
    for (int o = 0; o < 80; ++o) {
      const float expected =
          o < 37 ? RoundBf16(whole[Count(r, 70) + static_cast<size_t>(19 + o)]) : -5.0f;
      ASSERT_EQ(y[Count(r, 80) + static_cast<size_t>(o)], expected) << o;
    }
  }
}

TEST(Gemm, PartsRunInAnyOrderGiveTheSameBits) {
  const ParallelFor backwards = [](int parts, const std::function<void(int)>& fn) {
    for (int part = parts - 1; part >= 0; --part) fn(part);
  };
  const auto first = testing::RandomFp8(256, 256, 19).Prepare();
  const auto second = testing::Bf16Matrix(300, 256, RandomValues(Count(300, 256), 20)).Prepare();
  const Input fp8 = RandomInput(130, 256, true, 21), plain = RandomInput(130, 256, false, 22);
  std::vector<float> y1, y2;
  const std::vector<GemmArgs> linears = {ArgsFor(*first, fp8, y1), ArgsFor(*second, plain, y2)};
  GemmRunner(backwards, ChooseIsa(false)).Run(linears);
  EXPECT_EQ(y1, Multiply(*first, fp8, ChooseIsa(false)));
  EXPECT_EQ(y2, Multiply(*second, plain, ChooseIsa(false)));
}

// contracts.md 7, row "1 FP4".
TEST(FoldedFp4, EqualsItsFp8TwinForAnyCommonFactor) {
  for (const int spread : {0, 8, 11}) {
    StoredMatrix fp4 = testing::RandomFp4(256, 256, spread, 23);
    testing::ZeroGroup(fp4, 5, 0x1p30f);  // groups of zeros count for neither end of the spread
    testing::ZeroGroup(fp4, 9, 0x1p-40f);
    const auto weight = fp4.Prepare();
    EXPECT_FALSE(weight->has_wide_spread());
    const Input input = RandomInput(9, 256, true, 24);
    for (const Isa isa : SupportedIsas()) {
      const std::vector<float> y = Multiply(*weight, input, isa);
      EXPECT_EQ(y, Multiply(*testing::Fp8Twin(fp4).Prepare(), input, isa)) << spread;
      if (spread == 0) {
        EXPECT_EQ(y, Multiply(*testing::Fp8Twin(fp4, 3).Prepare(), input, isa));
      }
    }
  }
}

TEST(FoldedFp4, IsExactUpToASpreadOf14) {
  const StoredMatrix fp4 = testing::RandomFp4(128, 256, 14, 25);
  const auto weight = fp4.Prepare();
  const auto plain = fp4.Prepare(NumericsMode::kFloat32);
  EXPECT_FALSE(weight->has_wide_spread());
  EXPECT_EQ(weight->scale_group(), 128);
  std::vector<float> folded(256), direct(256);
  for (int row = 0; row < 128; ++row) {
    weight->CopyRow(row, folded.data());
    plain->CopyRow(row, direct.data());
    ASSERT_EQ(folded, direct) << row;
  }
  const float common = *weight->PanelScales(0);
  for (size_t i = 0; i < 128; ++i) EXPECT_EQ(RoundE4m3(folded[i] / common), folded[i] / common);
}

TEST(FoldedFp4, IsPromotedPer32BeyondASpreadOf14) {
  const StoredMatrix fp4 = testing::RandomFp4(128, 256, 15, 26);
  const auto weight = fp4.Prepare();
  EXPECT_TRUE(weight->has_wide_spread());
  const Input input = RandomInput(4, 256, true, 27);
  for (const Isa isa : SupportedIsas()) {
    const std::vector<float> y = Multiply(*weight, input, isa);
    for (int r = 0; r < 4; ++r) {
      for (int o = 0; o < 128; ++o) {
        ASSERT_EQ(y[Count(r, 128) + static_cast<size_t>(o)], PromotedDot(fp4, input, r, o, 32));
      }
    }
  }
}

// A narrow matrix of an expert whose other matrix is wide: folded operands, promoted per 32, same
// bits as unfolded ones.
TEST(FoldedFp4, CanBePromotedPer32FromItsFoldedForm) {
  const StoredMatrix fp4 = testing::RandomFp4(128, 256, 14, 28);
  const auto weight = fp4.Prepare();
  const Input input = RandomInput(4, 256, true, 29);
  const std::vector<float> y = Multiply(*weight, input, ChooseIsa(false), true);
  for (int r = 0; r < 4; ++r) {
    for (int o = 0; o < 128; ++o) {
      ASSERT_EQ(y[Count(r, 128) + static_cast<size_t>(o)], PromotedDot(fp4, input, r, o, 32));
    }
  }
}

TEST(FoldedFp4, HandlesABlockOfZeros) {
  StoredMatrix fp4 = testing::RandomFp4(128, 256, 3, 30);
  for (size_t row = 0; row < 128; ++row) {
    for (size_t group = 0; group < 4; ++group) testing::ZeroGroup(fp4, row * 8 + group, 0x1p20f);
  }
  const auto weight = fp4.Prepare();
  EXPECT_EQ(*weight->PanelScales(0), 1.0f);
  EXPECT_FALSE(weight->has_wide_spread());
}

TEST(PreparedMatrix, RefusesWhatItCannotBlock) {
  StoredMatrix m = testing::F32Matrix(4, 130, RandomValues(520, 31));
  m.host.values = m.values.data();
  EXPECT_EQ(PreparedMatrix::Prepare(m.host, NumericsMode::kOfficial).status().code(),
            absl::StatusCode::kInvalidArgument);
  StoredMatrix fp8 = testing::RandomFp8(128, 128, 32);
  fp8.host.values = fp8.values.data();
  EXPECT_EQ(PreparedMatrix::Prepare(fp8.host, NumericsMode::kOfficial).status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton::kernels::cpu
