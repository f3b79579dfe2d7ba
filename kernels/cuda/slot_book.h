#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/step_view.h"
#include "kernels/page_layout.h"
#include "kernels/slot_progress.h"

namespace baton::kernels::cuda {

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
  // [S, H] bf16 of a position that is kept (CHECK); where among those kept.
  uint8_t* Streams(int slot, int64_t position) const;
  int32_t StreamsRow(int slot, int64_t position) const;

 private:
  SlotLayout layout_;
  int num_layers_ = 0, num_mtp_layers_ = 0;
  std::vector<SlotProgress> progress_;
};

}  // namespace baton::kernels::cuda
