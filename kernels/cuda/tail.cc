#include <cmath>
#include <limits>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// PackTail, UnpackTail: a slot to and from the wire form (contracts.md 3.4). Both are the same list
// of moves between the slot and a wire buffer on the GPU, in one direction or the other.
namespace baton::kernels::cuda {
namespace {

constexpr uint32_t kMinusInfinityBits = 0xff800000u;

uint32_t Narrow(size_t bytes) { return static_cast<uint32_t>(bytes); }

}  // namespace

void CudaOps::AddJob(bool packs, uint8_t* slot, uint64_t wire_offset, size_t bytes) {
  if (bytes == 0) return;
  uint8_t* wire = reinterpret_cast<uint8_t*>(wire_) + wire_offset;
  jobs_.push_back({.from = packs ? slot : wire, .to = packs ? wire : slot, .bytes = Narrow(bytes)});
}

void CudaOps::AddWindowJobs(const TailArgs& args, const TailLayout& tail, bool packs) {
  const auto n = static_cast<int64_t>(args.num_tokens);
  const auto data_bytes = static_cast<size_t>(options_.layout.row_data_bytes());
  const auto scale_bytes = static_cast<size_t>(options_.layout.row_scale_bytes());
  const auto add = [&](uint64_t piece, int layer, int64_t first, int rows) {
    const uint64_t scales = piece + static_cast<uint64_t>(rows) * data_bytes;
    for (int i = 0; i < rows; ++i) {
      const auto row = static_cast<uint64_t>(i);
      AddJob(packs, slots_.WindowData(args.tail_slot, layer, first + i), piece + row * data_bytes,
             data_bytes);
      AddJob(packs, slots_.WindowScales(args.tail_slot, layer, first + i),
             scales + row * scale_bytes, scale_bytes);
    }
  };
  for (size_t layer = 0; layer < tail.window.size(); ++layer) {
    add(tail.window[layer], static_cast<int>(layer), n - tail.window_rows, tail.window_rows);
  }
  if (!args.has_drafter_state) return;
  for (size_t i = 0; i < tail.mtp_window.size(); ++i) {
    add(tail.mtp_window[i], config_.num_hidden_layers + static_cast<int>(i), n - 1 - tail.mtp_rows,
        tail.mtp_rows);
  }
}

// Sections 3 to 5. A section's order: 4 rows of kv, 4 of score, the same for the index; open rows
// of the main compressor token by token, then those of the index.
void CudaOps::AddCompressorJobs(const TailArgs& args, const TailLayout& tail, bool packs) {
  const auto dim = static_cast<size_t>(config_.head_dim) * sizeof(float);
  const auto index_dim = static_cast<size_t>(config_.index_head_dim) * sizeof(float);
  const auto n = static_cast<int64_t>(args.num_tokens);
  const int64_t open = n / kCsaRatio * kCsaRatio, closed = open - kCsaRatio;
  for (size_t r = 0; r < tail.csa_state.size(); ++r) {
    const auto raw = [&](int64_t p) {
      return slots_.CsaRaw(args.tail_slot, static_cast<int>(r), p);
    };
    uint64_t wire = tail.csa_state[r];
    // Offsets in a raw row: kv, score, index kv, index score; A halves come first.
    const size_t offsets[4] = {0, 2 * dim, 4 * dim, 4 * dim + 2 * index_dim};
    for (int part = 0; part < 4; ++part) {
      const size_t bytes = part < 2 ? dim : index_dim;
      if (closed < 0 && packs) {
        jobs_.push_back({.to = reinterpret_cast<uint8_t*>(wire_) + wire,
                         .bytes = Narrow(kCsaRatio * bytes),
                         .fill = part % 2 == 0 ? 0 : kMinusInfinityBits});
      }
      for (int64_t i = 0; closed >= 0 && i < kCsaRatio; ++i) {
        AddJob(packs, raw(closed + i) + offsets[part], wire + static_cast<uint64_t>(i) * bytes,
               bytes);
      }
      wire += kCsaRatio * bytes;
    }
    wire = tail.csa_open[r];
    for (int64_t p = open; p < n; ++p, wire += 4 * dim) AddJob(packs, raw(p), wire, 4 * dim);
    for (int64_t p = open; p < n; ++p, wire += 4 * index_dim) {
      AddJob(packs, raw(p) + 4 * dim, wire, 4 * index_dim);
    }
  }
  for (size_t r = 0; r < tail.hca_state.size(); ++r) {
    AddJob(packs, slots_.HcaState(args.tail_slot, static_cast<int>(r)), tail.hca_state[r], 3 * dim);
  }
}

absl::Status CudaOps::CheckTail(const TailArgs& args, const TailLayout& tail) const {
  RETURN_IF_ERROR(CheckHarvested());
  if (args.tail_slot < 0 || args.tail_slot >= slots_.num_slots()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tail: slot %d, have %d", args.tail_slot, slots_.num_slots()));
  }
  if (args.wire.size() < tail.first_tokens) {
    return absl::InvalidArgumentError(absl::StrFormat("tail: %d bytes for position %d, need %d",
                                                      args.wire.size(), args.num_tokens,
                                                      tail.first_tokens));
  }
  return absl::OkStatus();
}

absl::Status CudaOps::PackTail(const TailArgs& args) {
  if (args.num_tokens == 0) return absl::InvalidArgumentError("tail: position 0 has none");
  const TailLayout tail = MakeTailLayout(options_.layout, args.num_tokens, 0);
  RETURN_IF_ERROR(CheckTail(args, tail));
  RETURN_IF_ERROR(SaveStreams());
  const SlotProgress& progress = slots_.progress(args.tail_slot);
  const auto n = static_cast<int64_t>(args.num_tokens);
  if (n < progress.folded || n > progress.end) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tail: slot %d stands at positions %d..%d, asked for %d", args.tail_slot,
                        progress.folded, progress.end, n));
  }
  jobs_.clear();
  RETURN_IF_ERROR(staging_.Begin());
  Settle(args.tail_slot, n);
  RETURN_IF_ERROR(RunSettled());
  const size_t bytes = tail.first_tokens - TailHeader::kBytes;
  RETURN_IF_ERROR(
      ToStatus(cudaMemsetAsync(wire_ + TailHeader::kBytes, 0, bytes, stream()), "PackTail: clear"));
  jobs_.clear();
  AddWindowJobs(args, tail, /*packs=*/true);
  AddCompressorJobs(args, tail, /*packs=*/true);
  AddJob(/*packs=*/true, slots_.Streams(args.tail_slot, n - 1), tail.streams,
         slots_.layout().stream_bytes);
  RETURN_IF_ERROR(RunCopyJobs(jobs_));
  RETURN_IF_ERROR(
      ToStatus(cudaMemcpyAsync(args.wire.data() + TailHeader::kBytes, wire_ + TailHeader::kBytes,
                               bytes, cudaMemcpyDefault, stream()),
               "PackTail: copy"));
  return ToStatus(cudaStreamSynchronize(stream()), "PackTail");
}

absl::Status CudaOps::UnpackTail(const TailArgs& args) {
  if (args.num_tokens == 0) return absl::InvalidArgumentError("tail: position 0 has none");
  const TailLayout tail = MakeTailLayout(options_.layout, args.num_tokens, 0);
  RETURN_IF_ERROR(CheckTail(args, tail));
  RETURN_IF_ERROR(SaveStreams());
  RETURN_IF_ERROR(slots_.Reset(device_, args.tail_slot));
  RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(wire_, args.wire.data(), tail.first_tokens, cudaMemcpyDefault, stream()),
      "UnpackTail: copy"));
  SlotProgress& progress = slots_.progress(args.tail_slot);
  const auto n = static_cast<int64_t>(args.num_tokens);
  progress.streams_before = -1;
  progress.streams_first = n - 1;
  jobs_.clear();
  AddWindowJobs(args, tail, /*packs=*/false);
  AddCompressorJobs(args, tail, /*packs=*/false);
  AddJob(/*packs=*/false, slots_.Streams(args.tail_slot, n - 1), tail.streams,
         slots_.layout().stream_bytes);
  RETURN_IF_ERROR(RunCopyJobs(jobs_));
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream()), "UnpackTail"));
  progress.folded = progress.end = n;
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
