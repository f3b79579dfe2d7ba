#include "kernels/page_layout.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

#include "common/check.h"
#include "common/hash.h"
#include "kernels/model_config.h"

namespace baton::kernels {
namespace {

constexpr int kCsaRowsPerPage = kPageTokens / kCsaRatio;
constexpr int kHcaRowsPerPage = kPageTokens / kHcaRatio;
constexpr uint64_t kStrideUnit = 36'864;  // lcm of 576 (FlashMLA strides) and 4,096 (O_DIRECT)
constexpr uint64_t kPieceAlignment = 16;
static_assert(kCsaRowsPerPage == 64 && kHcaRowsPerPage == 2);

constexpr uint64_t RoundUp(uint64_t x, uint64_t unit) { return (x + unit - 1) / unit * unit; }

int RowDataBytes(const LayoutShape& s) {
  return s.rows == RowFormat::kF32 ? 4 * s.head_dim : s.head_dim - s.rope_dim + 2 * s.rope_dim;
}

int RowScaleBytes(const LayoutShape& s) {
  if (s.rows == RowFormat::kF32) return 0;
  return static_cast<int>(RoundUp(static_cast<uint64_t>(s.head_dim - s.rope_dim) / 64, 8));
}

int IndexValueBytes(const LayoutShape& s) {
  switch (s.index) {
    case IndexFormat::kFp8:
      return s.index_head_dim;
    case IndexFormat::kFp4:
      return s.index_head_dim / 2;
    case IndexFormat::kF32:
      return 4 * s.index_head_dim;
  }
  CHECK(false);
}

int IndexScaleBytes(const LayoutShape& s) {
  switch (s.index) {
    case IndexFormat::kFp8:
      return 4;
    case IndexFormat::kFp4:
      return s.index_head_dim / 32;
    case IndexFormat::kF32:
      return 0;
  }
  CHECK(false);
}

const char* Name(RowFormat format) { return format == RowFormat::kFp8 ? "fp8" : "f32"; }

const char* Name(IndexFormat format) {
  switch (format) {
    case IndexFormat::kFp8:
      return "fp8";
    case IndexFormat::kFp4:
      return "fp4";
    case IndexFormat::kF32:
      return "f32";
  }
  CHECK(false);
}

// Hands out the pieces of a tail in order.
class PieceCursor {
 public:
  explicit PieceCursor(uint64_t offset) : offset_(offset) {}
  // The start of a piece of that size.
  uint64_t Take(uint64_t bytes) {
    const uint64_t start = offset_;
    offset_ = RoundUp(offset_ + bytes, kPieceAlignment);
    return start;
  }
  std::vector<uint64_t> TakeEach(size_t count, uint64_t bytes) {
    std::vector<uint64_t> starts(count);
    for (uint64_t& start : starts) start = Take(bytes);
    return starts;
  }

 private:
  uint64_t offset_;
};

}  // namespace

PageLayout::PageLayout(LayoutShape shape)
    : shape_(std::move(shape)),
      row_data_bytes_(RowDataBytes(shape_)),
      row_scale_bytes_(RowScaleBytes(shape_)),
      index_value_bytes_(IndexValueBytes(shape_)),
      index_scale_bytes_(IndexScaleBytes(shape_)) {
  const uint64_t row_bytes = static_cast<uint64_t>(row_data_bytes_ + row_scale_bytes_);
  const uint64_t index_bytes = static_cast<uint64_t>(index_value_bytes_ + index_scale_bytes_);
  csa_section_bytes_ = kCsaRowsPerPage * (row_bytes + index_bytes);
  hca_section_bytes_ = kHcaRowsPerPage * row_bytes;
  payload_bytes_ =
      shape_.csa_layers.size() * csa_section_bytes_ + shape_.hca_layers.size() * hca_section_bytes_;
  stride_bytes_ = std::max(kStrideUnit, RoundUp(payload_bytes_, kStrideUnit));
  rank_.assign(static_cast<size_t>(shape_.num_layers), -1);
  for (const std::vector<int>* layers : {&shape_.csa_layers, &shape_.hca_layers}) {
    for (size_t rank = 0; rank < layers->size(); ++rank)
      rank_.at(static_cast<size_t>((*layers)[rank])) = static_cast<int>(rank);
  }
}

uint64_t PageLayout::CsaRowData(int layer, int row) const {
  const int rank = rank_[static_cast<size_t>(layer)];
  return static_cast<uint64_t>(rank) * csa_section_bytes_ +
         static_cast<uint64_t>(row * row_data_bytes_);
}

uint64_t PageLayout::CsaRowScales(int layer, int row) const {
  return CsaRowData(layer, 0) +
         static_cast<uint64_t>(kCsaRowsPerPage * row_data_bytes_ + row * row_scale_bytes_);
}

uint64_t PageLayout::IndexValues(int layer, int row) const {
  return CsaRowScales(layer, kCsaRowsPerPage) + static_cast<uint64_t>(row * index_value_bytes_);
}

uint64_t PageLayout::IndexScales(int layer, int row) const {
  return IndexValues(layer, kCsaRowsPerPage) + static_cast<uint64_t>(row * index_scale_bytes_);
}

uint64_t PageLayout::HcaRowData(int layer, int row) const {
  const int rank = rank_[static_cast<size_t>(layer)];
  return shape_.csa_layers.size() * csa_section_bytes_ +
         static_cast<uint64_t>(rank) * hca_section_bytes_ +
         static_cast<uint64_t>(row * row_data_bytes_);
}

uint64_t PageLayout::HcaRowScales(int layer, int row) const {
  return HcaRowData(layer, 0) +
         static_cast<uint64_t>(kHcaRowsPerPage * row_data_bytes_ + row * row_scale_bytes_);
}

std::string PageLayout::CanonicalText() const {
  return absl::StrCat("page=", kPageTokens, ";d=", shape_.head_dim, ";r=", shape_.rope_dim,
                      ";i=", shape_.index_head_dim, ";rows=", Name(shape_.rows),
                      ";index=", Name(shape_.index), ";csa=", absl::StrJoin(shape_.csa_layers, ","),
                      ";hca=", absl::StrJoin(shape_.hca_layers, ","), ";window=", shape_.window,
                      ";mtp=", shape_.num_mtp_layers, ";tail=1;stride=", stride_bytes_, ";");
}

LayoutId PageLayout::Id() const { return PrefixOf<LayoutId>(Sha256Of(CanonicalText())); }

TailLayout MakeTailLayout(const PageLayout& pages, uint64_t num_tokens, uint32_t num_sequences) {
  CHECK(num_tokens >= 1);
  const LayoutShape& shape = pages.shape();
  const uint64_t window = static_cast<uint64_t>(shape.window);
  const auto row_bytes = static_cast<uint64_t>(pages.row_data_bytes() + pages.row_scale_bytes());
  const uint64_t d = static_cast<uint64_t>(shape.head_dim);
  const uint64_t i = static_cast<uint64_t>(shape.index_head_dim);
  const size_t num_csa = shape.csa_layers.size();
  TailLayout tail;
  tail.window_rows = static_cast<int>(std::min(num_tokens, window));
  tail.mtp_rows = static_cast<int>(std::min(num_tokens - 1, window - 1));
  tail.csa_open_rows = static_cast<int>(num_tokens % kCsaRatio);
  tail.has_hca_state = num_tokens % kHcaRatio != 0;

  PieceCursor cursor(TailHeader::kBytes);
  tail.window = cursor.TakeEach(static_cast<size_t>(shape.num_layers),
                                static_cast<uint64_t>(tail.window_rows) * row_bytes);
  tail.mtp_window = cursor.TakeEach(static_cast<size_t>(shape.num_mtp_layers),
                                    static_cast<uint64_t>(tail.mtp_rows) * row_bytes);
  tail.csa_state = cursor.TakeEach(num_csa, kCsaRatio * (2 * d + 2 * i) * sizeof(float));
  tail.csa_open = cursor.TakeEach(
      num_csa, static_cast<uint64_t>(tail.csa_open_rows) * (4 * d + 4 * i) * sizeof(float));
  if (tail.has_hca_state)
    tail.hca_state = cursor.TakeEach(shape.hca_layers.size(), 3 * d * sizeof(float));
  const uint64_t value_bytes = shape.rows == RowFormat::kF32 ? 4 : 2;
  tail.streams = cursor.Take(value_bytes * static_cast<uint64_t>(shape.hc_mult) *
                             static_cast<uint64_t>(shape.hidden_size));
  tail.first_tokens = cursor.Take(num_sequences * kFirstTokenBytes);
  tail.total_bytes = tail.first_tokens + num_sequences * kFirstTokenBytes;
  return tail;
}

uint64_t MaxTailBytes(const PageLayout& pages, uint32_t max_sequences) {
  // Every section is largest where the window is full, three CSA rows are open and an HCA window
  // is: one token before a multiple of 128, from the second window on.
  const uint64_t largest =
      RoundUp(static_cast<uint64_t>(pages.shape().window), kHcaRatio) + kHcaRatio - 1;
  return MakeTailLayout(pages, largest, max_sequences).total_bytes;
}

}  // namespace baton::kernels
