#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/ids.h"

namespace baton::kernels {

enum class RowFormat { kFp8, kF32 };
enum class IndexFormat { kFp8, kFp4, kF32 };

// What the layout depends on; from the model's configuration and the numerics mode.
struct LayoutShape {
  int head_dim = 0;        // D
  int rope_dim = 0;        // R
  int index_head_dim = 0;  // I
  int window = 0;
  int hc_mult = 0;      // S
  int hidden_size = 0;  // H
  int num_layers = 0;   // L, MTP excluded
  int num_mtp_layers = 0;
  std::vector<int> csa_layers;  // ascending
  std::vector<int> hca_layers;
  RowFormat rows = RowFormat::kFp8;
  IndexFormat index = IndexFormat::kFp8;
};

// Where each layer's rows lie in a page of 256 tokens (contracts.md 3.1). Immutable.
class PageLayout {
 public:
  explicit PageLayout(LayoutShape shape);

  const LayoutShape& shape() const { return shape_; }
  int row_data_bytes() const { return row_data_bytes_; }
  int row_scale_bytes() const { return row_scale_bytes_; }
  int index_value_bytes() const { return index_value_bytes_; }
  int index_scale_bytes() const { return index_scale_bytes_; }
  uint64_t payload_bytes() const { return payload_bytes_; }
  uint64_t stride_bytes() const { return stride_bytes_; }

  // Byte offsets inside a page. `layer` must be of that kind; row 0..63 (CSA) or 0..1 (HCA).
  uint64_t CsaRowData(int layer, int row) const;
  uint64_t CsaRowScales(int layer, int row) const;
  uint64_t IndexValues(int layer, int row) const;
  uint64_t IndexScales(int layer, int row) const;
  uint64_t HcaRowData(int layer, int row) const;
  uint64_t HcaRowScales(int layer, int row) const;

  std::string CanonicalText() const;
  LayoutId Id() const;

 private:
  LayoutShape shape_;
  int row_data_bytes_, row_scale_bytes_, index_value_bytes_, index_scale_bytes_;
  uint64_t csa_section_bytes_, hca_section_bytes_, payload_bytes_, stride_bytes_;
  std::vector<int> rank_;  // by layer: rank among the layers of its kind, -1 for sliding-only ones
};

// The wire tail's header (contracts.md 3.4), 128 bytes on the wire.
struct TailHeader {
  static constexpr uint32_t kMagic = 0x4c544142;
  static constexpr uint64_t kBytes = 128;
  bool is_boundary = false;
  bool has_no_drafter_state = false;
  uint64_t num_tokens = 0;  // N
  LayoutId layout;
  WeightsId weights;
  ClassId prompt_class;
  uint32_t num_sequences = 0;
  uint32_t total_bytes = 0;
  PageName last_full_page;
};

// Offsets of one tail's sections; every per-layer piece starts at a multiple of 16.
struct TailLayout {
  int window_rows = 0;    // W = min(N, window)
  int mtp_rows = 0;       // M = min(N - 1, window - 1)
  int csa_open_rows = 0;  // N mod 4
  bool has_hca_state = false;
  std::vector<uint64_t> window;      // per layer
  std::vector<uint64_t> mtp_window;  // per MTP layer
  std::vector<uint64_t> csa_state;   // per CSA layer by rank
  std::vector<uint64_t> csa_open;    // per CSA layer by rank
  std::vector<uint64_t> hca_state;   // per HCA layer by rank; empty without state
  uint64_t streams = 0;              // H_{N-1}
  uint64_t first_tokens = 0;         // section 7; == total_bytes in a boundary tail
  uint64_t total_bytes = 0;
};
inline constexpr uint64_t kFirstTokenBytes = 176;

// The layout of the tail at position N >= 1 with `num_sequences` first tokens (0: boundary tail).
TailLayout MakeTailLayout(const PageLayout& pages, uint64_t num_tokens, uint32_t num_sequences);
// The largest tail any position up to the context needs.
uint64_t MaxTailBytes(const PageLayout& pages, uint32_t max_sequences);

}  // namespace baton::kernels
