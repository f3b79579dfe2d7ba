#include <algorithm>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/mix.h"

// The phases on residual streams: Embed, MixBoundary, Head, DraftInput.
namespace baton::kernels::cuda {
namespace {

const uint16_t* Bf16Values(const Matrix* matrix) {
  return reinterpret_cast<const uint16_t*>(ViewOf(matrix).values);
}

absl::Status CheckFormat(const Matrix* matrix, ValueFormat format, const char* name) {
  if (matrix != nullptr && ViewOf(matrix).format == format) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("CUDA back end: %s is not stored as %s", name,
                                                    format == ValueFormat::kF32 ? "f32" : "bf16"));
}

}  // namespace

absl::Status CudaOps::Embed(const EmbedArgs& args) {
  RETURN_IF_ERROR(CheckFormat(args.embed, ValueFormat::kBf16, "embedding"));
  return ToStatus(RunEmbed({.step = Step(),
                            .shape = shape_,
                            .embed = Bf16Values(args.embed),
                            .streams = act_.streams},
                           stream()),
                  "Embed");
}

absl::Status CudaOps::MixBoundary(const MixArgs& args) {
  const LeaveSiteArgs leave = {.step = Step(),
                               .shape = shape_,
                               .branch = act_.branch,
                               .post = act_.post,
                               .comb = act_.comb,
                               .streams = act_.streams};
  if (args.next == nullptr) {
    return args.finish_previous ? ToStatus(RunLeaveSite(leave, stream()), "MixBoundary: post")
                                : absl::OkStatus();
  }
  RETURN_IF_ERROR(CheckFormat(args.next->fn, ValueFormat::kF32, "mHC fn"));
  EnterSiteArgs enter;
  enter.num_rows = view_.num_rows;
  enter.rows = launch_.rows;
  enter.shape = shape_;
  enter.streams = act_.streams;
  enter.products = scratch_.products;
  enter.base = args.next->base.data;
  enter.scale = args.next->scale.data;
  enter.norm = args.norm.data;
  enter.post = act_.post;
  enter.comb = act_.comb;
  enter.normed = act_.normed;
  enter.normed8 = act_.normed8;
  if (args.finish_previous && FitsOneLaunch(enter)) {
    return ToStatus(RunBoundary(leave, ViewOf(args.next->fn), enter, stream()), "MixBoundary");
  }
  if (args.finish_previous) {
    RETURN_IF_ERROR(ToStatus(RunLeaveSite(leave, stream()), "MixBoundary: post"));
  }
  MixProductsArgs products;
  products.num_rows = view_.num_rows;
  products.rows = launch_.rows;
  products.width = shape_.streams * shape_.hidden;
  products.streams = act_.streams;
  products.fn = ViewOf(args.next->fn);
  products.products = scratch_.products;
  RETURN_IF_ERROR(ToStatus(RunMixProducts(products, stream()), "MixBoundary: products"));
  return ToStatus(RunEnterSite(enter, stream()), "MixBoundary: pre");
}

absl::Status CudaOps::Head(const HeadArgs& args) {
  const int count = args.has_all_rows ? num_rows_ : static_cast<int>(args.rows.size());
  if (count > options_.max_head_rows) {
    return absl::InvalidArgumentError(
        absl::StrFormat("Head: %d rows, at most %d", count, options_.max_head_rows));
  }
  if (count == 0) return absl::OkStatus();
  RETURN_IF_ERROR(CheckFormat(args.mix.fn, ValueFormat::kF32, "head mix fn"));
  if (args.has_all_rows) {
    // Like a phase of a layer: for the bucket's rows, so that it can be recorded.
    return HeadOf(
        args, {.num_rows = view_.num_rows, .rows = std::min(launch_.rows, options_.max_head_rows)});
  }
  RETURN_IF_ERROR(staging_.Begin());
  const int32_t* rows = staging_.Put(args.rows);
  RETURN_IF_ERROR(staging_.Flush());
  return HeadOf(args, {.rows = count, .x_rows = rows});
}

absl::Status CudaOps::HeadOf(const HeadArgs& args, const HeadRows& chosen) {
  MixProductsArgs products;
  products.num_rows = chosen.num_rows;
  products.rows = chosen.rows;
  products.width = shape_.streams * shape_.hidden;
  products.streams = act_.streams;
  products.x_rows = chosen.x_rows;
  products.fn = ViewOf(args.mix.fn);
  products.products = scratch_.products;
  RETURN_IF_ERROR(ToStatus(RunMixProducts(products, stream()), "Head: products"));
  EnterSiteArgs enter;
  enter.num_rows = chosen.num_rows;
  enter.rows = chosen.rows;
  enter.is_head = true;
  enter.shape = shape_;
  enter.streams = act_.streams;
  enter.x_rows = chosen.x_rows;
  enter.products = scratch_.products;
  enter.base = args.mix.base.data;
  enter.scale = args.mix.scale.data;
  enter.norm = args.norm.data;
  enter.normed = scratch_.collapsed;
  RETURN_IF_ERROR(ToStatus(RunEnterSite(enter, stream()), "Head: collapse"));
  LinearArgs logits = PlainLinear(args.head, scratch_.collapsed, act_.logits);
  logits.num_rows = chosen.num_rows;
  logits.rows = chosen.rows;
  return Multiply(logits, "Head");
}

// All sources are read before the first stream is written: rows may permute.
absl::Status CudaOps::DraftInput(const DraftInputArgs& args) {
  RETURN_IF_ERROR(SaveStreams());  // the main model's, before they are replaced
  RETURN_IF_ERROR(CheckFormat(args.embed, ValueFormat::kBf16, "embedding"));
  if (num_rows_ == 0) return absl::OkStatus();
  DraftNormArgs norm;
  norm.sources = args.goes_on ? nullptr : sources_;
  norm.streams = act_.streams;
  norm.step = Step();
  norm.shape = shape_;
  norm.embed = Bf16Values(args.embed);
  norm.enorm = args.mtp.enorm.data;
  norm.hnorm = args.mtp.hnorm.data;
  norm.streams8 = scratch_.draft_streams8;
  norm.embed8 = act_.normed8;
  RETURN_IF_ERROR(ToStatus(RunDraftNorm(norm, stream()), "DraftInput: norms"));
  RETURN_IF_ERROR(Multiply(Fp8Linear(args.mtp.e_proj, act_.normed8, act_.branch), "e_proj"));
  LinearArgs h = Fp8Linear(args.mtp.h_proj, scratch_.draft_streams8, act_.streams);
  h.row_factor = shape_.streams;
  h.rows = launch_.rows * shape_.streams;
  RETURN_IF_ERROR(Multiply(h, "h_proj"));
  return ToStatus(
      RunDraftAdd({.step = Step(), .shape = shape_, .branch = act_.branch, .streams = act_.streams},
                  stream()),
      "DraftInput: sum");
}

}  // namespace baton::kernels::cuda
