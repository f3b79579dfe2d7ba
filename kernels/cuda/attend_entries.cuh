#pragma once

#include "kernels/cuda/attend_items.cuh"

// Where a row's keys lie: its window's, and those stored in pages.
namespace baton::kernels::cuda {

// Of a run's position in a row's window: among the step's rows, or among those before.
__device__ inline const Bf16* WindowRow(const AttendArgs& args, int run, int position) {
  const RunInfo& info = args.step.runs[run];
  const int first = static_cast<int>(info.first), reach = args.shape.window - 1;
  const int64_t dim = args.shape.head_dim;
  if (position >= first) return args.kv + (info.first_row + position - first) * dim;
  const int64_t index = static_cast<int64_t>(run) * reach + position - (first - reach);
  return args.old_window + index * dim;
}

// Where an entry lies: its page times 64, plus its row there. -1: no such key.
using EntryPlace = int;
constexpr int kPlaceShift = 6;

// An item's entries, of which a thread has every kKeys-th.
struct Entries {
  const int32_t* pages;
  const int32_t* selected;  // null: all
  int first, end, blocks;

  __device__ Entries(const AttendArgs& args, const Item& item, int key)
      : pages(args.step.page_table + static_cast<int64_t>(item.run) * args.step.max_pages),
        selected(args.ratio == 4
                     ? args.selected + static_cast<int64_t>(item.row) * args.shape.index_topk
                     : nullptr),
        first(item.BaseOf(item.window_blocks) + key),
        end(item.entries),
        blocks(item.blocks - item.window_blocks) {}

  // Which entry this thread's key of a block is; -1: none.
  __device__ int Of(int block) const {
    const int rank = first + block * kKeys;
    if (block >= blocks || rank >= end) return -1;
    return selected != nullptr ? selected[rank] : rank;
  }

  // `page_shift`: log2 of a page's entries.
  __device__ EntryPlace Find(int entry, int page_shift) const {
    if (entry < 0) return -1;
    const int page = entry >> page_shift;
    return pages[page] << kPlaceShift | (entry - (page << page_shift));
  }
};

}  // namespace baton::kernels::cuda
