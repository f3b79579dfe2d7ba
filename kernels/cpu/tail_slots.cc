#include "kernels/cpu/tail_slots.h"

#include <cstring>

#include "common/check.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kCsaHistory = 8;  // tokens 4c-4 .. 4c+3 of the entry being closed

size_t Count(int64_t n) { return static_cast<size_t>(n); }

}  // namespace

TailSlots::TailSlots(const LayoutShape& shape, int num_slots, int max_draft_rows)
    : num_slots_(num_slots),
      num_layers_(shape.num_layers),
      num_mtp_layers_(shape.num_mtp_layers),
      window_ring_(shape.window + max_draft_rows),
      csa_ring_(kCsaHistory + max_draft_rows),
      unverified_ring_(max_draft_rows),
      head_dim_(Count(shape.head_dim)),
      index_dim_(Count(shape.index_head_dim)),
      streams_size_(Count(shape.hc_mult) * Count(shape.hidden_size)) {
  const PageLayout layout(shape);
  row_data_bytes_ = Count(layout.row_data_bytes());
  row_scale_bytes_ = Count(layout.row_scale_bytes());
  const size_t layers = Count(num_layers_ + num_mtp_layers_);
  const size_t csa_row = 4 * (head_dim_ + index_dim_) * sizeof(float);
  csa_offset_ = layers * Count(window_ring_) * (row_data_bytes_ + row_scale_bytes_);
  csa_offset_ = (csa_offset_ + 63) / 64 * 64;
  hca_offset_ = csa_offset_ + shape.csa_layers.size() * Count(csa_ring_) * csa_row;
  unverified_offset_ = hca_offset_ + shape.hca_layers.size() * 3 * head_dim_ * sizeof(float);
  streams_offset_ = unverified_offset_ + shape.hca_layers.size() * Count(unverified_ring_) * 2 *
                                             head_dim_ * sizeof(float);
  slot_bytes_ = streams_offset_ + Count(1 + unverified_ring_) * streams_size_ * sizeof(float);
  slot_bytes_ = (slot_bytes_ + 63) / 64 * 64;
  progress_.resize(Count(num_slots));
  const int max_pages = (max_draft_rows + kPageTokens - 1) / kPageTokens + 1;
  for (SlotProgress& progress : progress_) progress.pages.reserve(Count(max_pages));
  memory_.reset(static_cast<std::byte*>(std::calloc(Count(num_slots) + 1, slot_bytes_)));
  CHECK(memory_ != nullptr);
}

void TailSlots::Reset(int slot) {
  SlotProgress& state = progress(slot);
  state.folded = state.end = 0;
  state.pages.clear();
  state.streams_before = -1;
  state.streams_first = 0;
  ClearDrafterWindow(slot);
}

void TailSlots::ClearDrafterWindow(int slot) {
  if (num_mtp_layers_ == 0) return;
  const size_t ring_bytes = Count(window_ring_) * (row_data_bytes_ + row_scale_bytes_);
  std::memset(At(slot, Count(num_layers_) * ring_bytes), 0, Count(num_mtp_layers_) * ring_bytes);
}

RowPlace TailSlots::WindowRow(int slot, int layer, int64_t position) const {
  const size_t ring = Count(window_ring_);
  const size_t row = Count(position % window_ring_);
  std::byte* data = At(slot, Count(layer) * ring * (row_data_bytes_ + row_scale_bytes_));
  return {.data = data + row * row_data_bytes_,
          .scales = data + ring * row_data_bytes_ + row * row_scale_bytes_};
}

CsaRaw TailSlots::Csa(int slot, int rank, int64_t position) const {
  const size_t index = Count(rank) * Count(csa_ring_) + Count(position % csa_ring_);
  const size_t floats = 4 * (head_dim_ + index_dim_);
  float* row = reinterpret_cast<float*>(At(slot, csa_offset_ + index * floats * sizeof(float)));
  return {.kv = row,
          .score = row + 2 * head_dim_,
          .index_kv = row + 4 * head_dim_,
          .index_score = row + 4 * head_dim_ + 2 * index_dim_};
}

PoolState TailSlots::Hca(int slot, int rank) const {
  const size_t offset = hca_offset_ + Count(rank) * 3 * head_dim_ * sizeof(float);
  float* state = reinterpret_cast<float*>(At(slot, offset));
  return {.max = state,
          .sum = state + head_dim_,
          .weighted = state + 2 * head_dim_,
          .channels = static_cast<int>(head_dim_)};
}

HcaRaw TailSlots::HcaUnverified(int slot, int rank, int64_t position) const {
  const size_t index = Count(rank) * Count(unverified_ring_) + Count(position % unverified_ring_);
  const size_t offset = unverified_offset_ + index * 2 * head_dim_ * sizeof(float);
  float* row = reinterpret_cast<float*>(At(slot, offset));
  return {.kv = row, .score = row + head_dim_};
}

float* TailSlots::Streams(int slot, int64_t position) const {
  const SlotProgress& state = progress_[static_cast<size_t>(slot)];
  const int64_t kept = position - state.streams_first;
  CHECK(position == state.streams_before || (kept >= 0 && kept < unverified_ring_));
  const size_t row = position == state.streams_before ? 0 : Count(1 + kept);
  return reinterpret_cast<float*>(At(slot, streams_offset_ + row * streams_size_ * sizeof(float)));
}

void TailSlots::KeepStreams(int slot, int64_t before, int64_t first_kept) {
  SlotProgress& state = progress(slot);
  float* first_row = reinterpret_cast<float*>(At(slot, streams_offset_));
  if (before >= 0) {
    const float* kept = Streams(slot, before);
    if (kept != first_row) std::memcpy(first_row, kept, streams_size_ * sizeof(float));
  }
  state.streams_before = before;
  state.streams_first = first_kept;
}

}  // namespace baton::kernels::cpu
