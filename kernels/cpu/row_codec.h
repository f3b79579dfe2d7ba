#pragma once

#include <cstddef>

#include "kernels/page_layout.h"

namespace baton::kernels::cpu {

// Cached rows between fp32 values and their stored form (contracts.md 3.1, model.md 10.2, 10.3):
// the same bytes in the window ring, in pages and on the wire. Immutable, any thread.
class RowCodec {
 public:
  explicit RowCodec(const LayoutShape& shape);

  int row_data_bytes() const { return row_data_bytes_; }
  int row_scale_bytes() const { return row_scale_bytes_; }

  // row [head_dim], after rope and rounding. Quantises the part without rope in place, so that the
  // row is what a later DecodeRow gives back, and writes data and scales.
  void EncodeRow(float* row, std::byte* data, std::byte* scales) const;
  void DecodeRow(const std::byte* data, const std::byte* scales, float* row) const;

  // key [index_head_dim], after rope and rounding. Applies Hadamard and fp4 in place (float32 mode:
  // neither) and writes values and scales.
  void EncodeIndexRow(float* key, std::byte* values, std::byte* scales) const;
  void DecodeIndexRow(const std::byte* values, const std::byte* scales, float* key) const;

 private:
  int head_dim_, nope_dim_, index_dim_;
  RowFormat rows_;
  IndexFormat index_;
  int row_data_bytes_, row_scale_bytes_;
};

}  // namespace baton::kernels::cpu
