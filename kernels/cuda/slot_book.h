#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/step_view.h"
#include "kernels/page_layout.h"

namespace baton::kernels::cuda {

// How far a slot's sequence has come. Rows [folded, end) of a verify run are accepted only if a
// later AdvanceStep or PackTail passes them.
struct SlotProgress {
  int64_t folded = 0;           // tokens in the HCA states
  int64_t end = 0;              // rows computed, unverified ones included
  int first_page = 0;           // index in the sequence of pages[0]
  std::vector<PageId> pages;    // of the unverified rows; empty when there are none
  int64_t streams_before = -1;  // position whose streams are kept from before the last run
  int64_t streams_first = 0;    // position of the first row kept from the last run
};

// The slots' memory on the GPU and where each stands. Engine thread.
class SlotBook {
 public:
  absl::Status Create(CudaDevice& device, const LayoutShape& shape, int num_slots,
                      int max_draft_rows);

  // Without the base; `slot_bytes` of device memory a slot.
  static SlotLayout LayoutOf(const LayoutShape& shape, int max_draft_rows);

  int num_slots() const { return static_cast<int>(progress_.size()); }
  const SlotLayout& layout() const { return layout_; }
  SlotProgress& progress(int slot) { return progress_[static_cast<size_t>(slot)]; }

  // Forgets the sequence; the drafter's window becomes zero.
  absl::Status Reset(CudaDevice& device, int slot);

  uint8_t* At(int slot, uint64_t offset) const;
  // Ring rows of a layer's window: data and scales of `position`.
  uint8_t* WindowData(int slot, int layer, int64_t position) const;
  uint8_t* WindowScales(int slot, int layer, int64_t position) const;
  // Raw CSA row: kv [2D], score [2D], index kv [2I], index score [2I].
  uint8_t* CsaRaw(int slot, int rank, int64_t position) const;
  uint8_t* HcaState(int slot, int rank) const;
  // [S, H] bf16 of a position that is kept (CHECK).
  uint8_t* Streams(int slot, int64_t position) const;

 private:
  SlotLayout layout_;
  int num_layers_ = 0, num_mtp_layers_ = 0;
  std::vector<SlotProgress> progress_;
};

}  // namespace baton::kernels::cuda
