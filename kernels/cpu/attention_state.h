#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cpu/attention_kernels.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/row_codec.h"
#include "kernels/cpu/tail_slots.h"

namespace baton::kernels::cpu {

inline constexpr int kMaxHeadDim = 512;  // stack buffers; MakeCpuOps refuses more
inline constexpr int kMaxIndexDim = 128;
inline constexpr int kSelectRows = 32;  // queries scored at a time

// What the attention phases keep between calls: the tails' device form, the runs of the step,
// scratch.
struct AttentionState {
  explicit AttentionState(const CpuOptions& options);

  const RowCodec codec;
  const AttentionKernels& kernels;
  const float score_scale;  // head_dim^-0.5
  TailSlots slots;
  std::vector<StepRun> runs;         // of the step, by sequence index
  bool has_unsaved_streams = false;  // the last main step's streams are not yet in the slots

  // Window rows from before a run, decoded by StoreRows before the run's own rows take their
  // places.
  std::vector<float> old_window;  // [max_sequences, window - 1, D]
  std::vector<float> entries;     // [max closing entries of a step, D], pooled
  std::vector<uint64_t> ranks;    // [kSelectRows, max_entries], select.cc
  int64_t max_entries = 0;
};

}  // namespace baton::kernels::cpu
