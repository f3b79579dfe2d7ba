#include "kernels/cpu/row_codec.h"

#include <bit>
#include <cstdint>
#include <cstring>

#include "common/check.h"
#include "kernels/cpu/quantise.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kPiece =
    32;  // divides every group; a constant trip count, so that the loop is vectorised

// values[i] = e4m3(codes[i]) * scale without a table: the exponent is rebiased in the bits, and a
// subnormal is the difference of two normal numbers.
void DecodePiece(const uint8_t* __restrict codes, float scale, float* __restrict values) {
  constexpr uint32_t kRebias = 120u << 23;    // fp32 bias - e4m3 bias
  constexpr uint32_t kSmallest = 121u << 23;  // 2^-6, the smallest normal e4m3
  for (int i = 0; i < kPiece; ++i) {
    const uint32_t magnitude = codes[i] & 0x7fu;
    const uint32_t sign = (codes[i] & 0x80u) << 24;
    const float normal = std::bit_cast<float>((magnitude << 20) + kRebias);
    const float small =
        std::bit_cast<float>((magnitude << 20) + kSmallest) - std::bit_cast<float>(kSmallest);
    const float value = (magnitude < 8 ? small : normal) * scale;
    values[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
}

void DecodeCodes(const std::byte* codes, float scale, int n, float* values) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(codes);
  for (int i = 0; i < n; i += kPiece) DecodePiece(bytes + i, scale, values + i);
}

void DecodeBf16Row(const std::byte* data, int n, float* values) {
  for (int i = 0; i < n; ++i) {
    uint16_t code;
    std::memcpy(&code, data + 2 * i, 2);
    values[i] = DecodeBf16(code);
  }
}

void EncodeBf16Row(const float* values, int n, std::byte* data) {
  for (int i = 0; i < n; ++i) {
    const uint16_t code = EncodeBf16(values[i]);
    std::memcpy(data + 2 * i, &code, 2);
  }
}

// e4m3 codes of values that are multiples of scale; values become code * scale.
void EncodeE4m3Group(float* values, float scale, int n, std::byte* data) {
  for (int i = 0; i < n; ++i) {
    const uint8_t code = EncodeE4m3(values[i] / scale);
    data[i] = std::byte{code};
    values[i] = DecodeE4m3(code) * scale;
  }
}

void EncodeIndexFp4(float* key, int n, std::byte* values, std::byte* scales) {
  for (int g = 0; g < n / kFp4Group; ++g) {
    float* group = key + g * kFp4Group;
    const float scale = Fp4Scale(group, kFp4Group);
    scales[g] = std::byte{EncodeE8m0(scale)};
    for (int i = 0; i < kFp4Group; i += 2) {
      const uint8_t low = EncodeE2m1(group[i] / scale);
      const uint8_t high = EncodeE2m1(group[i + 1] / scale);
      values[(g * kFp4Group + i) / 2] = std::byte{static_cast<uint8_t>(low | (high << 4))};
      group[i] = DecodeE2m1(low) * scale;
      group[i + 1] = DecodeE2m1(high) * scale;
    }
  }
}

void DecodeIndexFp4(const std::byte* values, const std::byte* scales, int n, float* key) {
  for (int i = 0; i < n; i += 2) {
    const float scale = DecodeE8m0(static_cast<uint8_t>(scales[i / kFp4Group]));
    const auto code = static_cast<uint8_t>(values[i / 2]);
    key[i] = DecodeE2m1(code & 15) * scale;
    key[i + 1] = DecodeE2m1(code >> 4) * scale;
  }
}

}  // namespace

RowCodec::RowCodec(const LayoutShape& shape)
    : head_dim_(shape.head_dim),
      nope_dim_(shape.head_dim - shape.rope_dim),
      index_dim_(shape.index_head_dim),
      rows_(shape.rows),
      index_(shape.index) {
  const PageLayout layout(shape);
  row_data_bytes_ = layout.row_data_bytes();
  row_scale_bytes_ = layout.row_scale_bytes();
  CHECK(nope_dim_ % kKvGroup == 0 && index_dim_ % kFp4Group == 0);
}

void RowCodec::EncodeRow(float* row, std::byte* data, std::byte* scales) const {
  if (rows_ == RowFormat::kF32) {
    std::memcpy(data, row, static_cast<size_t>(row_data_bytes_));
    return;
  }
  std::memset(scales, 0, static_cast<size_t>(row_scale_bytes_));
  for (int g = 0; g < nope_dim_ / kKvGroup; ++g) {
    float* group = row + g * kKvGroup;
    const float scale = Fp8Scale(group, kKvGroup);
    scales[g] = std::byte{EncodeE8m0(scale)};
    EncodeE4m3Group(group, scale, kKvGroup, data + g * kKvGroup);
  }
  EncodeBf16Row(row + nope_dim_, head_dim_ - nope_dim_, data + nope_dim_);
}

void RowCodec::DecodeRow(const std::byte* data, const std::byte* scales, float* row) const {
  if (rows_ == RowFormat::kF32) {
    std::memcpy(row, data, static_cast<size_t>(row_data_bytes_));
    return;
  }
  for (int g = 0; g < nope_dim_ / kKvGroup; ++g) {
    const float scale = DecodeE8m0(static_cast<uint8_t>(scales[g]));
    DecodeCodes(data + g * kKvGroup, scale, kKvGroup, row + g * kKvGroup);
  }
  DecodeBf16Row(data + nope_dim_, head_dim_ - nope_dim_, row + nope_dim_);
}

void RowCodec::EncodeIndexRow(float* key, std::byte* values, std::byte* scales) const {
  if (index_ == IndexFormat::kF32) {
    std::memcpy(values, key, sizeof(float) * static_cast<size_t>(index_dim_));
    return;
  }
  Hadamard(key, index_dim_);
  RoundBf16(key, index_dim_);
  if (index_ == IndexFormat::kFp4) return EncodeIndexFp4(key, index_dim_, values, scales);
  SimulateFp4(key, index_dim_);
  const float scale = Fp8Scale(key, index_dim_);
  std::memcpy(scales, &scale, sizeof(scale));
  EncodeE4m3Group(key, scale, index_dim_, values);
}

void RowCodec::DecodeIndexRow(const std::byte* values, const std::byte* scales, float* key) const {
  if (index_ == IndexFormat::kF32) {
    std::memcpy(key, values, sizeof(float) * static_cast<size_t>(index_dim_));
    return;
  }
  if (index_ == IndexFormat::kFp4) return DecodeIndexFp4(values, scales, index_dim_, key);
  float scale;
  std::memcpy(&scale, scales, sizeof(scale));
  DecodeCodes(values, scale, index_dim_, key);
}

}  // namespace baton::kernels::cpu
