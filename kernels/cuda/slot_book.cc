#include "kernels/cuda/slot_book.h"

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::kernels::cuda {
namespace {

constexpr int kCsaHistory = 8;  // tokens 4c-4 .. 4c+3 of the entry being closed

uint64_t RoundUp(uint64_t x) { return (x + 127) / 128 * 128; }
uint64_t Unsigned(int64_t n) { return static_cast<uint64_t>(n); }

}  // namespace

SlotLayout SlotBook::LayoutOf(const LayoutShape& shape, int max_draft_rows) {
  const PageLayout pages(shape);
  SlotLayout s;
  s.window_ring = shape.window + max_draft_rows;
  s.csa_ring = kCsaHistory + max_draft_rows;
  s.unverified_ring = max_draft_rows;
  s.head_dim = shape.head_dim;
  s.index_dim = shape.index_head_dim;
  s.row_data_bytes = pages.row_data_bytes();
  s.row_scale_bytes = pages.row_scale_bytes();
  s.stream_bytes = 2 * Unsigned(shape.hc_mult) * Unsigned(shape.hidden_size);
  const uint64_t dim = Unsigned(s.head_dim), index_dim = Unsigned(s.index_dim);
  const uint64_t ring_bytes =
      Unsigned(s.window_ring) * Unsigned(s.row_data_bytes + s.row_scale_bytes);
  s.csa_offset = RoundUp(Unsigned(shape.num_layers + shape.num_mtp_layers) * ring_bytes);
  s.hca_offset = RoundUp(s.csa_offset + shape.csa_layers.size() * Unsigned(s.csa_ring) * 4 *
                                            (dim + index_dim) * sizeof(float));
  s.unverified_offset = RoundUp(s.hca_offset + shape.hca_layers.size() * 3 * dim * sizeof(float));
  s.streams_offset =
      RoundUp(s.unverified_offset +
              shape.hca_layers.size() * Unsigned(s.unverified_ring) * 2 * dim * sizeof(float));
  s.slot_bytes = RoundUp(s.streams_offset + Unsigned(1 + s.unverified_ring) * s.stream_bytes);
  return s;
}

absl::Status SlotBook::Create(CudaDevice& device, const LayoutShape& shape, int num_slots,
                              int max_draft_rows) {
  num_layers_ = shape.num_layers;
  num_mtp_layers_ = shape.num_mtp_layers;
  layout_ = LayoutOf(shape, max_draft_rows);
  ASSIGN_OR_RETURN(std::byte * memory, device.Allocate(Unsigned(num_slots) * layout_.slot_bytes));
  layout_.base = reinterpret_cast<uint8_t*>(memory);
  progress_.resize(static_cast<size_t>(num_slots));
  return absl::OkStatus();
}

absl::Status SlotBook::Reset(CudaDevice& device, int slot) {
  progress(slot) = SlotProgress{};
  if (num_mtp_layers_ == 0) return absl::OkStatus();
  const uint64_t ring_bytes =
      Unsigned(layout_.window_ring) * Unsigned(layout_.row_data_bytes + layout_.row_scale_bytes);
  return ToStatus(cudaMemsetAsync(At(slot, Unsigned(num_layers_) * ring_bytes), 0,
                                  Unsigned(num_mtp_layers_) * ring_bytes, device.stream()),
                  "clear the drafter's window");
}

uint8_t* SlotBook::At(int slot, uint64_t offset) const {
  return layout_.base + layout_.slot_bytes * Unsigned(slot) + offset;
}

uint8_t* SlotBook::WindowData(int slot, int layer, int64_t position) const {
  const uint64_t ring_bytes =
      Unsigned(layout_.window_ring) * Unsigned(layout_.row_data_bytes + layout_.row_scale_bytes);
  return At(slot, Unsigned(layer) * ring_bytes) +
         position % layout_.window_ring * layout_.row_data_bytes;
}

uint8_t* SlotBook::WindowScales(int slot, int layer, int64_t position) const {
  return WindowData(slot, layer, 0) + layout_.window_ring * layout_.row_data_bytes +
         position % layout_.window_ring * layout_.row_scale_bytes;
}

uint8_t* SlotBook::CsaRaw(int slot, int rank, int64_t position) const {
  const uint64_t index =
      Unsigned(rank) * Unsigned(layout_.csa_ring) + Unsigned(position % layout_.csa_ring);
  const uint64_t floats = 4 * Unsigned(layout_.head_dim + layout_.index_dim);
  return At(slot, layout_.csa_offset + index * floats * sizeof(float));
}

uint8_t* SlotBook::HcaState(int slot, int rank) const {
  return At(slot,
            layout_.hca_offset + Unsigned(rank) * 3 * Unsigned(layout_.head_dim) * sizeof(float));
}

uint8_t* SlotBook::Streams(int slot, int64_t position) const {
  return At(slot,
            layout_.streams_offset + Unsigned(StreamsRow(slot, position)) * layout_.stream_bytes);
}

int32_t SlotBook::StreamsRow(int slot, int64_t position) const {
  const SlotProgress& state = progress_[static_cast<size_t>(slot)];
  const int64_t kept = position - state.streams_first;
  CHECK(position == state.streams_before || (kept >= 0 && kept < layout_.unverified_ring));
  return position == state.streams_before ? 0 : static_cast<int32_t>(1 + kept);
}

}  // namespace baton::kernels::cuda
