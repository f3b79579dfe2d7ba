#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "common/ids.h"
#include "kernels/cpu/attention_kernels.h"
#include "kernels/page_layout.h"
#include "kernels/slot_progress.h"

namespace baton::kernels::cpu {

// One stored row: where its data and its scales lie.
struct RowPlace {
  std::byte* data = nullptr;
  std::byte* scales = nullptr;
};

// One token's raw compressor rows of a CSA layer, both halves, in the order of wire section 4.
struct CsaRaw {
  float* kv = nullptr;           // [2D]: A, B
  float* score = nullptr;        // [2D], bias added
  float* index_kv = nullptr;     // [2I]
  float* index_score = nullptr;  // [2I], bias added
};

struct HcaRaw {
  float* kv = nullptr;     // [D]
  float* score = nullptr;  // [D], bias added
};

// The device form of tails (contracts.md 3.3). Everything is addressed by position, so a row that
// was computed for a rejected draft is overwritten by the true one before anything can read it:
//   window rows          layer, MTP layers last: ring of window + max_draft_rows
//   CSA raw rows         ring of 8 + max_draft_rows: A halves of the last window, open rows,
//   unverified rows HCA state            after the last accepted token; its unverified raw rows:
//   ring of max_draft_rows streams              H of the last run's rows (a prefill or replay run:
//   of its last row) and of the row
//                        before it, from which the drafter goes on
// Sized by the constructor; memory is touched only where a slot is used. Engine thread; distinct
// positions may be written from several threads.
class TailSlots {
 public:
  TailSlots(const LayoutShape& shape, int num_slots, int max_draft_rows);

  int num_slots() const { return num_slots_; }
  // Forgets the sequence. Position-addressed rows need no clearing: nothing reads a position that
  // was not written. Only the drafter may look back over positions it skipped: its window becomes
  // zero.
  void Reset(int slot);
  void ClearDrafterWindow(int slot);

  SlotProgress& progress(int slot) { return progress_[static_cast<size_t>(slot)]; }
  RowPlace WindowRow(int slot, int layer, int64_t position) const;
  CsaRaw Csa(int slot, int rank, int64_t position) const;
  PoolState Hca(int slot, int rank) const;
  HcaRaw HcaUnverified(int slot, int rank, int64_t position) const;
  // [S, H] of a position kept; CHECKs that it is.
  float* Streams(int slot, int64_t position) const;
  // From now on keeps the streams of positions from first_kept on, and still those of `before`.
  void KeepStreams(int slot, int64_t before, int64_t first_kept);
  int window_ring() const { return window_ring_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::byte* At(int slot, size_t offset) const {
    return memory_.get() + slot_bytes_ * static_cast<size_t>(slot) + offset;
  }

  const int num_slots_, num_layers_, num_mtp_layers_;
  const int window_ring_, csa_ring_, unverified_ring_;
  const size_t head_dim_, index_dim_, streams_size_;
  size_t row_data_bytes_, row_scale_bytes_;
  size_t csa_offset_, hca_offset_, unverified_offset_, streams_offset_, slot_bytes_;
  std::vector<SlotProgress> progress_;
  std::unique_ptr<std::byte, Free> memory_;  // zeroed
};

}  // namespace baton::kernels::cpu
