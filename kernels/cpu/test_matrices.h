#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "common/check.h"
#include "kernels/cpu/prepared_matrix.h"
#include "kernels/cpu/quantise.h"

// Checkpoint matrices made up for tests. The values are arbitrary but fixed by the seed.
namespace baton::kernels::cpu::testing {

struct StoredMatrix {
  HostMatrix host;
  std::vector<std::byte> values;
  std::vector<float> scales;

  std::unique_ptr<PreparedMatrix> Prepare(NumericsMode mode = NumericsMode::kOfficial) const {
    HostMatrix matrix = host;
    matrix.values = values.data();
    matrix.scales = scales.empty() ? nullptr : scales.data();
    auto prepared = PreparedMatrix::Prepare(matrix, mode);
    CHECK(prepared.ok());
    return *std::move(prepared);
  }
};

inline std::vector<float> RandomValues(size_t count, uint32_t seed, float size = 1.0f) {
  std::mt19937 random(seed);
  std::vector<float> values(count);
  for (float& value : values) {
    value = size * (static_cast<float>(random() >> 8) * 0x1p-23f - 1.0f);
  }
  return values;
}

inline size_t Count(int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

inline StoredMatrix F32Matrix(int rows, int cols, const std::vector<float>& values) {
  StoredMatrix m{{WeightFormat::kF32, rows, cols, nullptr, nullptr}, {}, {}};
  const auto* bytes = reinterpret_cast<const std::byte*>(values.data());
  m.values.assign(bytes, bytes + 4 * values.size());
  return m;
}

inline StoredMatrix Bf16Matrix(int rows, int cols, const std::vector<float>& values) {
  StoredMatrix m{{WeightFormat::kBf16, rows, cols, nullptr, nullptr}, {}, {}};
  for (const float value : values) {
    const uint16_t code = EncodeBf16(value);
    m.values.push_back(static_cast<std::byte>(code & 255));
    m.values.push_back(static_cast<std::byte>(code >> 8));
  }
  return m;
}

// Random e4m3 codes, one power of two a block.
inline StoredMatrix RandomFp8(int rows, int cols, uint32_t seed) {
  StoredMatrix m{{WeightFormat::kFp8Block128, rows, cols, nullptr, nullptr}, {}, {}};
  std::mt19937 random(seed);
  for (size_t i = 0; i < Count(rows, cols); ++i) {
    m.values.push_back(static_cast<std::byte>((random() & 0x80) | random() % 0x7f));
  }
  const size_t blocks = Count((rows + 127) / 128, cols / 128);
  for (size_t i = 0; i < blocks; ++i)
    m.scales.push_back(std::ldexp(1.0f, static_cast<int>(random() % 5) - 12));
  return m;
}

// Random e2m1 codes; group scales between 2^-14 and 2^(spread - 14), both ends used in the first
// block.
inline StoredMatrix RandomFp4(int rows, int cols, int spread, uint32_t seed) {
  StoredMatrix m{{WeightFormat::kFp4Group32, rows, cols, nullptr, nullptr}, {}, {}};
  std::mt19937 random(seed);
  for (size_t i = 0; i < Count(rows, cols / 2); ++i)
    m.values.push_back(static_cast<std::byte>(random()));
  for (size_t i = 0; i < Count(rows, cols / 32); ++i) {
    m.scales.push_back(
        std::ldexp(1.0f, static_cast<int>(random() % static_cast<uint32_t>(spread + 1)) - 14));
  }
  m.scales[0] = std::ldexp(1.0f, -14);
  m.scales[1] = std::ldexp(1.0f, spread - 14);
  return m;
}

inline void ZeroGroup(StoredMatrix& fp4, size_t group, float scale) {
  std::fill_n(fp4.values.begin() + static_cast<std::ptrdiff_t>(group * 16), 16, std::byte{0x80});
  fp4.scales[group] = scale;
}

// The lossless fp8 copy of an FP4 matrix (model.md 9.5); `shift` picks another common factor per
// block.
inline StoredMatrix Fp8Twin(const StoredMatrix& fp4, int shift = 0) {
  const int rows = fp4.host.rows, cols = fp4.host.cols;
  StoredMatrix m{{WeightFormat::kFp8Block128, rows, cols, nullptr, nullptr}, {}, {}};
  m.values.resize(Count(rows, cols));
  m.scales.resize(Count(rows / 128, cols / 128));
  const std::unique_ptr<PreparedMatrix> plain = fp4.Prepare(NumericsMode::kFloat32);
  std::vector<float> dense(Count(rows, cols));
  for (int row = 0; row < rows; ++row) plain->CopyRow(row, &dense[Count(row, cols)]);
  for (int block = 0; block < static_cast<int>(m.scales.size()); ++block) {
    const int first_row = block / (cols / 128) * 128, first_col = block % (cols / 128) * 128;
    float largest = 0.0f;
    for (int i = 0; i < 128 * 128; ++i) {
      const float v =
          dense[Count(first_row + i / 128, cols) + static_cast<size_t>(first_col + i % 128)];
      largest = std::max(largest, std::fabs(v));
    }
    const float scale = std::ldexp(PowerOfTwoCeil(largest / 384.0f), shift);
    m.scales[static_cast<size_t>(block)] = scale;
    for (int i = 0; i < 128 * 128; ++i) {
      const size_t at = Count(first_row + i / 128, cols) + static_cast<size_t>(first_col + i % 128);
      m.values[at] = static_cast<std::byte>(EncodeE4m3(dense[at] / scale));
      CHECK(DecodeE4m3(static_cast<uint8_t>(m.values[at])) * scale == dense[at]);
    }
  }
  return m;
}

}  // namespace baton::kernels::cpu::testing
