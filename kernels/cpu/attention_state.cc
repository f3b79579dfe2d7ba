#include "kernels/cpu/attention_state.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/attention_phases.h"

namespace baton::kernels::cpu {
namespace {

size_t Product(int64_t a, int64_t b) { return static_cast<size_t>(a) * static_cast<size_t>(b); }

}  // namespace

AttentionState::AttentionState(const CpuOptions& options)
    : codec(options.layout.shape()),
      kernels(AttentionKernelsFor(ChooseIsa(options.force_scalar))),
      score_scale(
          static_cast<float>(1.0 / std::sqrt(static_cast<double>(options.config.head_dim)))),
      slots(options.layout.shape(), options.num_tail_slots, options.max_draft_rows) {
  const ModelConfig& config = options.config;
  runs.reserve(static_cast<size_t>(options.max_sequences));
  old_window.resize(Product(options.max_sequences, config.sliding_window - 1) *
                    static_cast<size_t>(config.head_dim));
  const int64_t closings = options.max_rows / kCsaRatio + options.max_sequences;
  entries.resize(Product(closings, config.head_dim));
  max_entries = options.max_context / kCsaRatio + 1;
  ranks.resize(Product(std::min(kSelectRows, options.max_rows), max_entries));
}

AttentionPhases::AttentionPhases(CpuOps& ops)
    : ops_(ops),
      state_(*ops.attention_),
      act_(ops.act_),
      config_(ops.config_),
      layout_(ops.options_.layout) {}

RowPlace AttentionPhases::EntryPlaceIn(int layer, PageId page, int64_t entry) const {
  std::byte* base = ops_.options_.pages + static_cast<uint64_t>(page) * layout_.stride_bytes();
  if (config_.IsCsa(layer)) {
    const int row = static_cast<int>(entry % (kPageTokens / kCsaRatio));
    return {base + layout_.CsaRowData(layer, row), base + layout_.CsaRowScales(layer, row)};
  }
  const int row = static_cast<int>(entry % (kPageTokens / kHcaRatio));
  return {base + layout_.HcaRowData(layer, row), base + layout_.HcaRowScales(layer, row)};
}

RowPlace AttentionPhases::IndexPlaceIn(int layer, PageId page, int64_t entry) const {
  std::byte* base = ops_.options_.pages + static_cast<uint64_t>(page) * layout_.stride_bytes();
  const int row = static_cast<int>(entry % (kPageTokens / kCsaRatio));
  return {base + layout_.IndexValues(layer, row), base + layout_.IndexScales(layer, row)};
}

PageId AttentionPhases::PageOf(int run, int64_t position) const {
  const auto row = Product(run, ops_.view_.max_pages);
  return ops_.page_table_[row + static_cast<size_t>(position / kPageTokens)];
}

RowPlace AttentionPhases::EntryPlace(const LayerWeights& layer, int run, int64_t entry) const {
  return EntryPlaceIn(layer.layer, PageOf(run, entry * layer.ratio), entry);
}

int AttentionPhases::RankOf(int layer) const {
  const LayoutShape& shape = layout_.shape();
  const auto& layers = config_.IsCsa(layer) ? shape.csa_layers : shape.hca_layers;
  return static_cast<int>(std::lower_bound(layers.begin(), layers.end(), layer) - layers.begin());
}

void AttentionStateDeleter::operator()(AttentionState* state) const { delete state; }

absl::Status CpuOps::AdvanceStep(const AdvanceArgs& args) {
  early_by_.clear();
  return args.follows ? AdvanceFollowing(args) : AttentionPhases(*this).Advance(args);
}

absl::Status CpuOps::StoreRows(const LayerArgs& args) {
  AttentionPhases(*this).StoreRows(args.layer);
  return absl::OkStatus();
}

absl::Status CpuOps::SelectEntries(const LayerArgs& args) {
  AttentionPhases(*this).SelectEntries(args.layer);
  return absl::OkStatus();
}

absl::Status CpuOps::Attend(const LayerArgs& args) {
  AttentionPhases(*this).Attend(args.layer);
  return absl::OkStatus();
}

absl::Status CpuOps::PackTail(const TailArgs& args) {
  return AttentionPhases(*this).PackTail(args);
}

absl::Status CpuOps::UnpackTail(const TailArgs& args) {
  return AttentionPhases(*this).UnpackTail(args);
}

void CpuOps::ResetTail(int32_t tail_slot) {
  AttentionPhases(*this).SaveStreams();
  attention_->slots.Reset(tail_slot);
}

}  // namespace baton::kernels::cpu
