#pragma once

#include <cstdint>

#include "absl/status/status.h"

#include "kernels/cpu/attention_state.h"
#include "kernels/cpu/cpu_ops_impl.h"

namespace baton::kernels::cpu {

// The phases of CpuOps that know about positions, tails and pages; a view of it, made for one call.
// Rows a query sees (model.md 3.3): positions t - window + 1 .. t, those of this step from the
// activations, older ones from the slot's ring; entries whose last token is at or before t, from
// the pages. Entries that close in this step are written by StoreRows, before SelectEntries and
// Attend read any, so a run's later rows see them and rows of any chunking see the same bytes.
class AttentionPhases {
 public:
  explicit AttentionPhases(CpuOps& ops);

  absl::Status Advance(const AdvanceArgs& args);  // advance.cc
  void StoreRows(const LayerWeights& layer);      // store_rows.cc
  void SelectEntries(const LayerWeights& layer);  // select.cc
  void Attend(const LayerWeights& layer);         // attend.cc
  absl::Status PackTail(const TailArgs& args);    // tail.cc
  absl::Status UnpackTail(const TailArgs& args);
  void SaveStreams();  // advance.cc
  // Makes the runs the view (advance.cc).
  void WriteView(std::span<const SequenceRows> runs);

 private:
  class RowAttention;  // attend.cc

  // A compressor's closing entry: number and run.
  struct Closing {
    int run;
    int64_t entry;
  };

  void Settle(int slot, int64_t position);
  void FoldVerified(int slot, int64_t position);
  void ClearUnverifiedEntries(int slot, int64_t position);

  void DecodeOldWindow(const LayerWeights& layer);
  void StoreQuery(const LayerWeights& layer, int row);
  void StoreWindowRow(const LayerWeights& layer, const StepRun& run, int row);
  void AddBias(const LayerWeights& layer, int row);
  void StoreRawRows(const LayerWeights& layer, const StepRun& run);

  void CloseCsaEntries(const LayerWeights& layer);  // compressor.cc
  void PoolCsa(const LayerWeights& layer, const Closing& closing);
  void CloseHcaEntries(const LayerWeights& layer);
  void FoldChannels(const LayerWeights& layer, int run_index, int first_channel, float* entries);
  void FinishEntry(const LayerWeights& layer, const Closing& closing, float* pooled);
  void FinishIndexEntry(const LayerWeights& layer, const Closing& closing, float* pooled);
  Closing ClosingAt(int ratio, int index) const;
  int NumClosings(int ratio) const;

  struct SelectGroup;
  void ScoreTile(const LayerWeights& layer, const SelectGroup& group, int tile);
  void PickBest(const SelectGroup& group, int row);

  absl::Status CheckTail(const TailArgs& args, const TailLayout& tail) const;
  void PackCompressors(const TailArgs& args, const TailLayout& tail);
  void UnpackCompressors(const TailArgs& args, const TailLayout& tail);
  void PackWindow(const TailArgs& args, const TailLayout& tail);
  void UnpackWindow(const TailArgs& args, const TailLayout& tail);
  void PackStreams(const TailArgs& args, const TailLayout& tail);
  void UnpackStreams(const TailArgs& args, const TailLayout& tail);

  // The stored place of an entry, by its run and number.
  RowPlace EntryPlace(const LayerWeights& layer, int run, int64_t entry) const;
  RowPlace EntryPlaceIn(int layer, PageId page, int64_t entry) const;
  RowPlace IndexPlaceIn(int layer, PageId page, int64_t entry) const;
  PageId PageOf(int run, int64_t position) const;
  int RankOf(int layer) const;  // among the layers of its kind

  CpuOps& ops_;
  AttentionState& state_;
  Activations& act_;
  const ModelConfig& config_;
  const PageLayout& layout_;
};

}  // namespace baton::kernels::cpu
