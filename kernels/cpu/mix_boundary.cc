#include <array>

#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cpu/mix.h"

namespace baton::kernels::cpu {

void CpuOps::LeaveSite(size_t row) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const auto num_streams = static_cast<size_t>(config_.hc_mult);
  float* streams = &act_.streams[row * num_streams * hidden];
  MergeBranch({.num_streams = config_.hc_mult,
               .hidden = config_.hidden_size,
               .branch = &act_.branch[row * hidden],
               .post = &act_.post[row * num_streams],
               .comb = &act_.comb[row * num_streams * num_streams],
               .streams = streams});
  Round(streams, config_.hc_mult * config_.hidden_size);
}

void CpuOps::EnterSite(const MixWeights& mix, Vector norm, size_t row) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const auto num_streams = static_cast<size_t>(config_.hc_mult);
  const int width = config_.hc_mult * config_.hidden_size;
  const int num_products = mix.fn->rows();
  const float* streams = &act_.streams[row * num_streams * hidden];
  float* products = &mixes_[row * static_cast<size_t>(num_products)];
  const float inverse = InverseRms(dot_, streams, width, static_cast<float>(config_.rms_norm_eps));
  for (int i = 0; i < num_products; ++i) products[i] *= inverse;

  const MixShape shape = {.num_streams = config_.hc_mult,
                          .sinkhorn_iterations = config_.hc_sinkhorn_iters,
                          .epsilon = static_cast<float>(config_.hc_eps)};
  std::array<float, kMaxStreams> pre;
  SplitMix(shape, mix, products, pre.data(), &act_.post[row * num_streams],
           &act_.comb[row * num_streams * num_streams]);
  float* x = &act_.normed[row * hidden];
  CollapseStreams(config_.hc_mult, config_.hidden_size, streams, pre.data(), x);
  Round(x, config_.hidden_size);
  NormRow(x, norm.data, config_.hidden_size, x);
  QuantiseInto(x, config_.hidden_size, static_cast<int>(row), act_.normed8);
}

// Both halves of a border read and write one row only, so a part takes its rows through all of it.
absl::Status CpuOps::MixBoundary(const MixArgs& args) {
  ForRows(*args.step.num_rows, kRowPiece, [&](int begin, int end) {
    if (args.finish_previous) {
      for (int row = begin; row < end; ++row) LeaveSite(static_cast<size_t>(row));
    }
    if (args.next == nullptr) return;
    GemmArgs products = PlainLinear(args.next->fn, act_.streams, end - begin, mixes_.data());
    products.x += begin * products.x_stride;
    products.y += begin * products.y_stride;
    gemm_.RunHere(products);
    for (int row = begin; row < end; ++row)
      EnterSite(*args.next, args.norm, static_cast<size_t>(row));
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
