#include <array>

#include "absl/strings/str_format.h"

#include "kernels/cpu/attention_phases.h"
#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cpu/mix.h"

namespace baton::kernels::cpu {

absl::Status CpuOps::Embed(const EmbedArgs& args) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const auto num_streams = static_cast<size_t>(config_.hc_mult);
  const PreparedMatrix& embed = Prepared(*args.embed);
  ForRows(*args.step.num_rows, kRowPiece, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      float* first = &act_.streams[static_cast<size_t>(row) * num_streams * hidden];
      embed.CopyRow(args.step.token[row], first);
      for (size_t s = 1; s < num_streams; ++s) std::copy_n(first, hidden, first + s * hidden);
    }
  });
  return absl::OkStatus();
}

// Collapse by hc_head, norm, logits (model.md 2.6, 7, 10.6 item 13).
absl::Status CpuOps::Head(const HeadArgs& args) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const auto num_streams = static_cast<size_t>(config_.hc_mult);
  const auto epsilon = static_cast<float>(config_.rms_norm_eps);
  const int count = args.has_all_rows ? *args.step.num_rows : static_cast<int>(args.rows.size());
  if (count > options_.max_head_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Head: %d rows, at most %d", count, options_.max_head_rows));
  }
  const std::span<const int32_t> rows = args.has_all_rows ? all_rows_ : args.rows;
  const MixShape shape = {.num_streams = config_.hc_mult,
                          .epsilon = static_cast<float>(config_.hc_eps)};
  ForRows(count, kRowPiece, [&](int begin, int end) {
    GemmArgs products = PlainLinear(args.mix.fn, act_.streams, end - begin, head_products_.data());
    products.x_rows = &rows[static_cast<size_t>(begin)];
    products.y += begin * products.y_stride;
    gemm_.RunHere(products);
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      const auto row = static_cast<size_t>(rows[i]);
      const float* streams = &act_.streams[row * num_streams * hidden];
      float* product = &head_products_[i * num_streams];
      const float inverse =
          InverseRms(dot_, streams, config_.hc_mult * config_.hidden_size, epsilon);
      for (size_t s = 0; s < num_streams; ++s) product[s] *= inverse;
      std::array<float, kMaxStreams> weights;
      StreamWeights(shape, args.mix, product, weights.data());
      float* z = &collapsed_[i * hidden];
      CollapseStreams(config_.hc_mult, config_.hidden_size, streams, weights.data(), z);
      Round(z, config_.hidden_size);
      NormRow(z, args.norm.data, config_.hidden_size, z);
    }
  });
  const GemmArgs logits = PlainLinear(args.head, collapsed_, count, act_.logits.data());
  return RunLinears({&logits, 1});
}

// The drafter's streams (model.md 8.1, 10.6 item 14). All sources are read before the first stream
// is written: rows may permute.
absl::Status CpuOps::DraftInput(const DraftInputArgs& args) {
  AttentionPhases(*this).SaveStreams();  // the main model's, before they are replaced
  const int rows = *args.step.num_rows, hidden = config_.hidden_size, num_streams = config_.hc_mult;
  const size_t width = static_cast<size_t>(hidden) * static_cast<size_t>(num_streams);
  const PreparedMatrix& embed = Prepared(*args.embed);
  ForRows(rows, kRowPiece, [&](int begin, int end) {
    for (int row = begin; row < end; ++row) {
      const int32_t source = args.goes_on ? row : source_rows_[static_cast<size_t>(row)];
      const float* h = source == kFromSlot
                           ? attention_->slots.Streams(args.step.tail_slot[args.step.sequence[row]],
                                                       args.step.position[row])
                           : &act_.streams[static_cast<size_t>(source) * width];
      for (int s = 0; s < num_streams; ++s) {
        float* normed = &draft_streams_[static_cast<size_t>(row) * width] + s * hidden;
        NormRow(h + s * hidden, args.mtp.hnorm.data, hidden, normed);
        QuantiseInto(normed, hidden, row * num_streams + s, draft_streams8_);
      }
      float* e = &act_.normed[static_cast<size_t>(row) * static_cast<size_t>(hidden)];
      embed.CopyRow(args.step.token[row], e);
      NormRow(e, args.mtp.enorm.data, hidden, e);
      QuantiseInto(e, hidden, row, act_.normed8);
    }
  });
  const std::array<GemmArgs, 2> linears = {
      Fp8Linear(args.mtp.e_proj, act_.normed8, rows, act_.branch.data()),
      Fp8Linear(args.mtp.h_proj, draft_streams8_, rows * num_streams, act_.streams.data())};
  RETURN_IF_ERROR(RunLinears(linears));
  ForRows(rows, kRowPiece, [&](int begin, int end) {
    for (int line = begin * num_streams; line < end * num_streams; ++line) {
      float* stream = &act_.streams[static_cast<size_t>(line) * static_cast<size_t>(hidden)];
      const float* e =
          &act_.branch[static_cast<size_t>(line / num_streams) * static_cast<size_t>(hidden)];
      for (int i = 0; i < hidden; ++i) stream[i] += e[i];
      Round(stream, hidden);
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
