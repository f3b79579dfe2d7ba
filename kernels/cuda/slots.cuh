#pragma once

#include "kernels/cuda/step_view.h"

// Addresses inside slots and pages.
namespace baton::kernels::cuda {

// Row of a ring, or of a page: positions and entries fit 32 bits, whose remainders cost a fifth.
__device__ __forceinline__ uint64_t RowIn(int rows, int64_t index) {
  return static_cast<uint32_t>(index) % static_cast<uint32_t>(rows);
}

struct RowPlace {
  uint8_t* data;
  uint8_t* scales;
};

__device__ __forceinline__ uint8_t* SlotAt(const SlotLayout& s, int slot, uint64_t offset) {
  return s.base + s.slot_bytes * static_cast<uint64_t>(slot) + offset;
}

__device__ __forceinline__ RowPlace WindowRow(const SlotLayout& s, int slot, int layer,
                                              int64_t position) {
  const uint64_t ring = static_cast<uint64_t>(s.window_ring);
  const uint64_t row = RowIn(s.window_ring, position);
  const uint64_t bytes = static_cast<uint64_t>(s.row_data_bytes + s.row_scale_bytes);
  uint8_t* data = SlotAt(s, slot, static_cast<uint64_t>(layer) * ring * bytes);
  return {data + row * s.row_data_bytes, data + ring * s.row_data_bytes + row * s.row_scale_bytes};
}

// Raw CSA rows of a token: kv [2D], score [2D], index kv [2I], index score [2I].
__device__ __forceinline__ float* CsaRaw(const SlotLayout& s, int slot, int rank,
                                         int64_t position) {
  const uint64_t index = static_cast<uint64_t>(rank) * s.csa_ring + RowIn(s.csa_ring, position);
  const uint64_t floats = 4u * static_cast<uint64_t>(s.head_dim + s.index_dim);
  return reinterpret_cast<float*>(SlotAt(s, slot, s.csa_offset + index * floats * sizeof(float)));
}

// HCA state: max, sum, weighted, [D] each.
__device__ __forceinline__ float* HcaState(const SlotLayout& s, int slot, int rank) {
  const uint64_t offset = s.hca_offset + static_cast<uint64_t>(rank) * 3 * s.head_dim * 4;
  return reinterpret_cast<float*>(SlotAt(s, slot, offset));
}

// Raw HCA row of an unverified token: kv [D], score [D].
__device__ __forceinline__ float* HcaUnverified(const SlotLayout& s, int slot, int rank,
                                                int64_t position) {
  const uint64_t index =
      static_cast<uint64_t>(rank) * s.unverified_ring + RowIn(s.unverified_ring, position);
  return reinterpret_cast<float*>(
      SlotAt(s, slot, s.unverified_offset + index * 2 * s.head_dim * sizeof(float)));
}

__device__ __forceinline__ uint8_t* PageOf(const DeviceStep& step, const LayerPages& pages, int run,
                                           int64_t position) {
  const int32_t page = step.page_table[static_cast<int64_t>(run) * step.max_pages + position / 256];
  return pages.base + static_cast<uint64_t>(page) * pages.stride;
}

// Stored place of an entry of the run's sequence.
__device__ __forceinline__ RowPlace EntryPlace(const DeviceStep& step, const LayerPages& pages,
                                               int run, int64_t entry) {
  const int ratio = 256 / pages.rows_per_page;
  uint8_t* page = PageOf(step, pages, run, entry * ratio);
  const uint64_t row = RowIn(pages.rows_per_page, entry);
  return {page + pages.data + row * pages.data_bytes,
          page + pages.scales + row * pages.scale_bytes};
}

__device__ __forceinline__ RowPlace IndexPlace(const DeviceStep& step, const LayerPages& pages,
                                               int run, int64_t entry) {
  const int ratio = 256 / pages.rows_per_page;
  uint8_t* page = PageOf(step, pages, run, entry * ratio);
  const uint64_t row = RowIn(pages.rows_per_page, entry);
  return {page + pages.index_values + row * pages.index_value_bytes,
          page + pages.index_scales + row * pages.index_scale_bytes};
}

}  // namespace baton::kernels::cuda
