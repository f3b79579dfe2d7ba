#include <cstring>
#include <limits>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cpu/attention_phases.h"
#include "kernels/cpu/quantise.h"

// PackTail, UnpackTail: a slot to and from the wire form (contracts.md 3.4).
namespace baton::kernels::cpu {
namespace {

// A run of floats as they lie.
std::byte* PutFloats(std::byte* to, const float* from, size_t n) {
  std::memcpy(to, from, n * sizeof(float));
  return to + n * sizeof(float);
}

const std::byte* TakeFloats(const std::byte* from, float* to, size_t n) {
  std::memcpy(to, from, n * sizeof(float));
  return from + n * sizeof(float);
}

std::byte* PutConstant(std::byte* to, float value, size_t n) {
  for (size_t i = 0; i < n; ++i) to = PutFloats(to, &value, 1);
  return to;
}

// The rows of one window piece: where row `position` lies, all data before all scales.
struct WindowPiece {
  std::byte* data;
  int64_t first_position;
  int rows;
  int data_bytes, scale_bytes;

  RowPlace At(int64_t position) const {
    const int64_t i = position - first_position;
    return {data + i * data_bytes, data + int64_t{rows} * data_bytes + i * scale_bytes};
  }
};

void CopyRow(const RowPlace& from, const RowPlace& to, const WindowPiece& piece) {
  std::memcpy(to.data, from.data, static_cast<size_t>(piece.data_bytes));
  std::memcpy(to.scales, from.scales, static_cast<size_t>(piece.scale_bytes));
}

}  // namespace

void AttentionPhases::PackWindow(const TailArgs& args, const TailLayout& tail) {
  const auto n = static_cast<int64_t>(args.num_tokens);
  const int data_bytes = layout_.row_data_bytes(), scale_bytes = layout_.row_scale_bytes();
  for (size_t layer = 0; layer < tail.window.size(); ++layer) {
    const WindowPiece piece{args.wire.data() + tail.window[layer], n - tail.window_rows,
                            tail.window_rows, data_bytes, scale_bytes};
    for (int64_t p = piece.first_position; p < n; ++p) {
      CopyRow(state_.slots.WindowRow(args.tail_slot, static_cast<int>(layer), p), piece.At(p),
              piece);
    }
  }
  if (!args.has_drafter_state) return;
  for (size_t i = 0; i < tail.mtp_window.size(); ++i) {
    const int layer = config_.num_hidden_layers + static_cast<int>(i);
    const WindowPiece piece{args.wire.data() + tail.mtp_window[i], n - 1 - tail.mtp_rows,
                            tail.mtp_rows, data_bytes, scale_bytes};
    for (int64_t p = piece.first_position; p < n - 1; ++p) {
      CopyRow(state_.slots.WindowRow(args.tail_slot, layer, p), piece.At(p), piece);
    }
  }
}

void AttentionPhases::UnpackWindow(const TailArgs& args, const TailLayout& tail) {
  const auto n = static_cast<int64_t>(args.num_tokens);
  const int data_bytes = layout_.row_data_bytes(), scale_bytes = layout_.row_scale_bytes();
  for (size_t layer = 0; layer < tail.window.size(); ++layer) {
    const WindowPiece piece{args.wire.data() + tail.window[layer], n - tail.window_rows,
                            tail.window_rows, data_bytes, scale_bytes};
    for (int64_t p = piece.first_position; p < n; ++p) {
      CopyRow(piece.At(p), state_.slots.WindowRow(args.tail_slot, static_cast<int>(layer), p),
              piece);
    }
  }
  if (!args.has_drafter_state) return;
  for (size_t i = 0; i < tail.mtp_window.size(); ++i) {
    const int layer = config_.num_hidden_layers + static_cast<int>(i);
    const WindowPiece piece{args.wire.data() + tail.mtp_window[i], n - 1 - tail.mtp_rows,
                            tail.mtp_rows, data_bytes, scale_bytes};
    for (int64_t p = piece.first_position; p < n - 1; ++p) {
      CopyRow(piece.At(p), state_.slots.WindowRow(args.tail_slot, layer, p), piece);
    }
  }
}

// Sections 3 to 5. A section's order: 4 rows of kv, 4 of score, the same for the index; open rows
// of the main compressor token by token, then those of the index.
void AttentionPhases::PackCompressors(const TailArgs& args, const TailLayout& tail) {
  const auto dim = static_cast<size_t>(config_.head_dim);
  const auto index_dim = static_cast<size_t>(config_.index_head_dim);
  const auto n = static_cast<int64_t>(args.num_tokens);
  const int64_t open = n / kCsaRatio * kCsaRatio, closed = open - kCsaRatio;
  constexpr float kAbsent = -std::numeric_limits<float>::infinity();
  const auto raw = [&](size_t rank, int64_t p) {
    return state_.slots.Csa(args.tail_slot, static_cast<int>(rank), p);
  };
  for (size_t rank = 0; rank < tail.csa_state.size(); ++rank) {
    std::byte* to = args.wire.data() + tail.csa_state[rank];
    if (closed < 0) {
      to = PutConstant(to, 0, kCsaRatio * dim);
      to = PutConstant(to, kAbsent, kCsaRatio * dim);
      to = PutConstant(to, 0, kCsaRatio * index_dim);
      PutConstant(to, kAbsent, kCsaRatio * index_dim);
    } else {
      for (int64_t p = closed; p < open; ++p) to = PutFloats(to, raw(rank, p).kv, dim);
      for (int64_t p = closed; p < open; ++p) to = PutFloats(to, raw(rank, p).score, dim);
      for (int64_t p = closed; p < open; ++p) to = PutFloats(to, raw(rank, p).index_kv, index_dim);
      for (int64_t p = closed; p < open; ++p)
        to = PutFloats(to, raw(rank, p).index_score, index_dim);
    }
    to = args.wire.data() + tail.csa_open[rank];
    for (int64_t p = open; p < n; ++p) to = PutFloats(to, raw(rank, p).kv, 4 * dim);
    for (int64_t p = open; p < n; ++p) to = PutFloats(to, raw(rank, p).index_kv, 4 * index_dim);
  }
  for (size_t rank = 0; rank < tail.hca_state.size(); ++rank) {
    const PoolState state = state_.slots.Hca(args.tail_slot, static_cast<int>(rank));
    PutFloats(args.wire.data() + tail.hca_state[rank], state.max, 3 * dim);
  }
}

void AttentionPhases::UnpackCompressors(const TailArgs& args, const TailLayout& tail) {
  const auto dim = static_cast<size_t>(config_.head_dim);
  const auto index_dim = static_cast<size_t>(config_.index_head_dim);
  const auto n = static_cast<int64_t>(args.num_tokens);
  const int64_t open = n / kCsaRatio * kCsaRatio, closed = open - kCsaRatio;
  const auto raw = [&](size_t rank, int64_t p) {
    return state_.slots.Csa(args.tail_slot, static_cast<int>(rank), p);
  };
  for (size_t rank = 0; rank < tail.csa_state.size(); ++rank) {
    const std::byte* from = args.wire.data() + tail.csa_state[rank];
    if (closed >= 0) {
      for (int64_t p = closed; p < open; ++p) from = TakeFloats(from, raw(rank, p).kv, dim);
      for (int64_t p = closed; p < open; ++p) from = TakeFloats(from, raw(rank, p).score, dim);
      for (int64_t p = closed; p < open; ++p)
        from = TakeFloats(from, raw(rank, p).index_kv, index_dim);
      for (int64_t p = closed; p < open; ++p)
        from = TakeFloats(from, raw(rank, p).index_score, index_dim);
    }
    from = args.wire.data() + tail.csa_open[rank];
    for (int64_t p = open; p < n; ++p) from = TakeFloats(from, raw(rank, p).kv, 4 * dim);
    for (int64_t p = open; p < n; ++p)
      from = TakeFloats(from, raw(rank, p).index_kv, 4 * index_dim);
  }
  for (size_t rank = 0; rank < tail.hca_state.size(); ++rank) {
    const PoolState state = state_.slots.Hca(args.tail_slot, static_cast<int>(rank));
    TakeFloats(args.wire.data() + tail.hca_state[rank], state.max, 3 * dim);
  }
}

void AttentionPhases::PackStreams(const TailArgs& args, const TailLayout& tail) {
  const size_t size =
      static_cast<size_t>(config_.hc_mult) * static_cast<size_t>(config_.hidden_size);
  const float* streams =
      state_.slots.Streams(args.tail_slot, static_cast<int64_t>(args.num_tokens) - 1);
  std::byte* to = args.wire.data() + tail.streams;
  if (layout_.shape().rows == RowFormat::kF32) {
    PutFloats(to, streams, size);
    return;
  }
  for (size_t i = 0; i < size; ++i) {
    const uint16_t code = EncodeBf16(streams[i]);
    std::memcpy(to + 2 * i, &code, 2);
  }
}

void AttentionPhases::UnpackStreams(const TailArgs& args, const TailLayout& tail) {
  const size_t size =
      static_cast<size_t>(config_.hc_mult) * static_cast<size_t>(config_.hidden_size);
  const int64_t last = static_cast<int64_t>(args.num_tokens) - 1;
  state_.slots.KeepStreams(args.tail_slot, -1, last);
  float* streams = state_.slots.Streams(args.tail_slot, last);
  const std::byte* from = args.wire.data() + tail.streams;
  if (layout_.shape().rows == RowFormat::kF32) {
    TakeFloats(from, streams, size);
    return;
  }
  for (size_t i = 0; i < size; ++i) {
    uint16_t code;
    std::memcpy(&code, from + 2 * i, 2);
    streams[i] = DecodeBf16(code);
  }
}

absl::Status AttentionPhases::CheckTail(const TailArgs& args, const TailLayout& tail) const {
  if (args.tail_slot < 0 || args.tail_slot >= state_.slots.num_slots()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tail: slot %d, have %d", args.tail_slot, state_.slots.num_slots()));
  }
  if (args.wire.size() < tail.first_tokens) {
    return absl::InvalidArgumentError(absl::StrFormat("tail: %d bytes for position %d, need %d",
                                                      args.wire.size(), args.num_tokens,
                                                      tail.first_tokens));
  }
  return absl::OkStatus();
}

absl::Status AttentionPhases::PackTail(const TailArgs& args) {
  SaveStreams();
  if (args.num_tokens == 0) return absl::InvalidArgumentError("tail: position 0 has none");
  const TailLayout tail = MakeTailLayout(layout_, args.num_tokens, 0);
  RETURN_IF_ERROR(CheckTail(args, tail));
  const SlotProgress& progress = state_.slots.progress(args.tail_slot);
  const auto n = static_cast<int64_t>(args.num_tokens);
  if (n < progress.folded || n > progress.end) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tail: slot %d stands at positions %d..%d, asked for %d", args.tail_slot,
                        progress.folded, progress.end, n));
  }
  Settle(args.tail_slot, n);
  std::memset(args.wire.data() + TailHeader::kBytes, 0, tail.first_tokens - TailHeader::kBytes);
  PackWindow(args, tail);
  PackCompressors(args, tail);
  PackStreams(args, tail);
  return absl::OkStatus();
}

absl::Status AttentionPhases::UnpackTail(const TailArgs& args) {
  SaveStreams();
  if (args.num_tokens == 0) return absl::InvalidArgumentError("tail: position 0 has none");
  const TailLayout tail = MakeTailLayout(layout_, args.num_tokens, 0);
  RETURN_IF_ERROR(CheckTail(args, tail));
  state_.slots.Reset(args.tail_slot);
  UnpackWindow(args, tail);
  UnpackCompressors(args, tail);
  UnpackStreams(args, tail);
  SlotProgress& progress = state_.slots.progress(args.tail_slot);
  progress.folded = progress.end = static_cast<int64_t>(args.num_tokens);
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
