#include "kernels/cpu/row_codec.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/quantise.h"

namespace baton::kernels::cpu {
namespace {

LayoutShape Shape(RowFormat rows, IndexFormat index) {
  return {.head_dim = 512,
          .rope_dim = 64,
          .index_head_dim = 128,
          .window = 128,
          .hc_mult = 4,
          .hidden_size = 128,
          .num_layers = 1,
          .num_mtp_layers = 0,
          .csa_layers = {0},
          .hca_layers = {},
          .rows = rows,
          .index = index};
}

// bf16 values over a wide range, small groups and zeros included.
std::vector<float> Row(int n) {
  std::vector<float> row;
  for (int i = 0; i < n; ++i) {
    row.push_back(
        RoundBf16(static_cast<float>(std::sin(i * 1.7) * std::pow(2.0, (i * 7) % 13 - 8))));
  }
  std::fill_n(row.begin(), 64, 0.0f);
  return row;
}

struct Stored {
  std::vector<std::byte> data = std::vector<std::byte>(2048);
  std::vector<std::byte> scales = std::vector<std::byte>(64);
};

TEST(RowCodec, LeavesInTheRowWhatDecodeGivesBack) {
  for (const RowFormat format : {RowFormat::kFp8, RowFormat::kF32}) {
    const RowCodec codec(Shape(format, IndexFormat::kFp8));
    std::vector<float> row = Row(512), decoded(512);
    Stored stored;
    codec.EncodeRow(row.data(), stored.data.data(), stored.scales.data());
    codec.DecodeRow(stored.data.data(), stored.scales.data(), decoded.data());
    EXPECT_EQ(row, decoded);
  }
}

TEST(RowCodec, QuantisesAsTheRoundTripDoesAndKeepsRope) {
  const RowCodec codec(Shape(RowFormat::kFp8, IndexFormat::kFp8));
  std::vector<float> row = Row(512), want = row;
  SimulateFp8Kv(want.data(), 448);
  Stored stored;
  codec.EncodeRow(row.data(), stored.data.data(), stored.scales.data());
  EXPECT_EQ(row, want);
  // A group of zeros has the scale of the floor, 2^-22 (model.md, appendix C).
  EXPECT_EQ(static_cast<int>(stored.scales[0]), 127 - 22);
  EXPECT_EQ(static_cast<int>(stored.scales[7]), 0);
}

TEST(RowCodec, KeepsIndexRowsFp4RoundedInBothFormats) {
  std::vector<float> want = Row(128);
  IndexForm(want.data(), 128, NumericsMode::kOfficial);
  for (const IndexFormat format : {IndexFormat::kFp8, IndexFormat::kFp4}) {
    const RowCodec codec(Shape(RowFormat::kFp8, format));
    std::vector<float> key = Row(128), decoded(128);
    Stored stored;
    codec.EncodeIndexRow(key.data(), stored.data.data(), stored.scales.data());
    codec.DecodeIndexRow(stored.data.data(), stored.scales.data(), decoded.data());
    EXPECT_EQ(key, decoded);
    EXPECT_EQ(key, want);
  }
}

TEST(RowCodec, DecodesEveryE4m3Code) {
  const RowCodec codec(Shape(RowFormat::kFp8, IndexFormat::kFp8));
  for (int first = 0; first < 256; first += 64) {
    Stored stored;
    for (int i = 0; i < 64; ++i)
      stored.data[static_cast<size_t>(i)] = static_cast<std::byte>(first + i);
    stored.scales[0] = std::byte{127};
    std::vector<float> row(512);
    codec.DecodeRow(stored.data.data(), stored.scales.data(), row.data());
    for (int i = 0; i < 64; ++i) {
      const auto code = static_cast<uint8_t>(first + i);
      if ((code & 0x7f) == 0x7f) continue;  // NaN is never stored
      EXPECT_EQ(row[static_cast<size_t>(i)], DecodeE4m3(code)) << static_cast<int>(code);
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cpu
