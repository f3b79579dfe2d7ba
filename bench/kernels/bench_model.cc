#include "bench/kernels/bench_model.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>

#include "bench/kernels/fill.h"
#include "bench/kernels/real_shape.h"
#include "common/check.h"

namespace baton::bench {
namespace {

using kernels::cuda::ValueFormat;

constexpr int kPages = 16384;     // shared by all sequences; an index layer of them is 138 MB
constexpr int kExpertCopies = 4;  // CSA layers that have experts
constexpr int kHcaCopies = 2, kWindowCopies = 2;
constexpr size_t kMatrixBytes = size_t{kHidden} * kIntermediate / 2;  // of an expert
constexpr size_t kVector = size_t{1} << 20;
constexpr int kSmallestExponent = 115, kExponents = 7;  // e8m0 codes of FP4 group scales
constexpr float kFp4Common = 0x1p-12f;                  // 2^-6 of the largest

kernels::ModelConfig MakeConfig(int ranks) {
  kernels::ModelConfig c;
  c.vocab_size = kVocabulary;
  c.hidden_size = kHidden;
  c.num_attention_heads = kHeads / ranks;
  c.head_dim = kHeadDim;
  c.qk_rope_head_dim = kRopeDim;
  c.q_lora_rank = kQueryLow;
  c.o_groups = kOutputGroups / ranks;
  c.o_lora_rank = kOutputLow;
  c.n_routed_experts = kExperts;
  c.num_experts_per_tok = kExpertsPerToken;
  c.moe_intermediate_size = kIntermediate / ranks;
  c.index_n_heads = kIndexHeads;
  c.index_head_dim = kIndexDim;
  c.index_topk = kIndexTopk;
  c.sliding_window = kWindow;
  c.hc_mult = kStreams;
  c.hc_sinkhorn_iters = 20;
  c.max_position_embeddings = BenchModel::kMaxContext;
  c.rms_norm_eps = 1e-6;
  c.hc_eps = 1e-6;
  c.rope_theta = 10000;
  c.compress_rope_theta = 160000;
  c.yarn_factor = 16;
  c.yarn_beta_fast = 32;
  c.yarn_beta_slow = 1;
  c.yarn_original_positions = 65536;
  c.routed_scaling_factor = 1.5;
  c.swiglu_limit = 10.0;
  c.compress_ratios.insert(c.compress_ratios.end(), kExpertCopies, kernels::kCsaRatio);
  c.compress_ratios.insert(c.compress_ratios.end(), kHcaCopies, kernels::kHcaRatio);
  c.compress_ratios.insert(c.compress_ratios.end(), kWindowCopies, 0);
  c.num_hidden_layers = static_cast<int>(c.compress_ratios.size());
  return c;
}

kernels::LayoutShape MakeLayoutShape() {
  kernels::LayoutShape shape;
  shape.head_dim = kHeadDim;
  shape.rope_dim = kRopeDim;
  shape.index_head_dim = kIndexDim;
  shape.window = kWindow;
  shape.hc_mult = kStreams;
  shape.hidden_size = kHidden;
  shape.num_layers = kExpertCopies + kHcaCopies + kWindowCopies;
  for (int i = 0; i < kExpertCopies; ++i) shape.csa_layers.push_back(i);
  for (int i = 0; i < kHcaCopies; ++i) shape.hca_layers.push_back(kExpertCopies + i);
  return shape;
}

int NumberOf(Kind kind, int copy) {
  if (kind == Kind::kCsa) return copy % kExpertCopies;
  if (kind == Kind::kHca) return kExpertCopies + copy % kHcaCopies;
  return kExpertCopies + kHcaCopies + copy % kWindowCopies;
}

int RatioOf(Kind kind) {
  if (kind == Kind::kWindow) return 0;
  return kind == Kind::kCsa ? kernels::kCsaRatio : kernels::kHcaRatio;
}

}  // namespace

void Must(const absl::Status& status, const char* what) {
  if (status.ok()) return;
  std::fprintf(stderr, "kernel_bench: %s: %s\n", what, std::string(status.message()).c_str());
  std::exit(1);
}

const uint8_t* WeightPool::Take(size_t count) {
  CHECK(count <= bytes);
  if (used + count > bytes) used = 0;
  const uint8_t* taken = base + used;
  used += (count + 1023) / 1024 * 1024;
  return taken;
}

BenchModel::BenchModel(kernels::cuda::CudaDevice& device, int ranks)
    : device_(device), ranks_(ranks) {
  AllocatePools();
  kernels::cuda::CudaOptions options{.config = MakeConfig(ranks),
                                     .layout = kernels::PageLayout(MakeLayoutShape())};
  pages_ = reinterpret_cast<uint8_t*>(
      Must(device_.Allocate(kPages * options.layout.stride_bytes()), "pages"));
  FillPages(options.layout);
  options.pages = reinterpret_cast<std::byte*>(pages_);
  options.num_pages = kPages;
  options.num_tail_slots = kMaxSequences;
  options.max_rows = kMaxRows;
  options.max_sequences = kMaxSequences;
  options.max_head_rows = kMaxSequences;
  options.max_context = kMaxContext;
  options.max_draft_rows = 8;
  ops_ = Must(kernels::cuda::CudaOps::Create(std::move(options), device_), "operators");
  for (int i = 0; i < kLayers; ++i) {
    window_layers_.push_back(MakeLayer(i, Kind::kWindow));
    csa_layers_.push_back(MakeLayer(i, Kind::kCsa));
    hca_layers_.push_back(MakeLayer(i, Kind::kHca));
  }
  for (int i = 0; i < kExpertCopies; ++i) AddExperts(csa_layers_[static_cast<size_t>(i)]);
  for (int i = 0; i < kHcaCopies; ++i) AddExperts(hca_layers_[static_cast<size_t>(i)]);
  for (int i = 0; i < kWindowCopies; ++i) AddExperts(window_layers_[static_cast<size_t>(i)]);
  embed_ = MakeMatrix(ValueFormat::kBf16, kVocabulary, kHidden);
  FinishFills();
}

int BenchModel::NumWholeLayers(Kind kind) const {
  if (kind == Kind::kWindow) return kWindowCopies;
  return kind == Kind::kCsa ? kExpertCopies : kHcaCopies;
}

const std::vector<kernels::LayerWeights>& BenchModel::layers(Kind kind) const {
  if (kind == Kind::kWindow) return window_layers_;
  return kind == Kind::kCsa ? csa_layers_ : hca_layers_;
}

void BenchModel::AllocatePools() {
  const auto make = [this](size_t bytes) {
    return reinterpret_cast<uint8_t*>(Must(device_.Allocate(bytes), "weights"));
  };
  const auto pool = [&make](size_t bytes) { return WeightPool{make(bytes), bytes}; };
  fp4_ = pool(kMatrixBytes * 3 * kExperts);
  fp8_ = pool(size_t{4} << 30);
  bf16_ = pool(size_t{2} << 30);
  f32_ = pool(size_t{256} << 20);
  fp4_exponents_ = make(kMatrixBytes / 16 + 4096);
  ones_ = reinterpret_cast<float*>(make(4 * kVector));
  zeros_ = reinterpret_cast<float*>(make(4 * kVector));
  fp8_scales_ = reinterpret_cast<float*>(make(4 * kVector));
  fp4_scales_ = reinterpret_cast<float*>(make(4 * kVector));
  FinishFills();  // the device zeroes new memory on a stream of its own
  Must(cudaStreamSynchronize(device_.stream()) == cudaSuccess
           ? absl::OkStatus()
           : absl::InternalError("cannot zero memory"),
       "weights");
  FillBytes(fp4_.base, fp4_.bytes, 1);
  FillFp8(fp8_.base, fp8_.bytes, 2);
  FillBf16(bf16_.base, bf16_.bytes / 2, 0.03f, 3);
  FillF32(f32_.base, f32_.bytes / 4, 0.01f, 4);
  FillRange(fp4_exponents_, kMatrixBytes / 16, {kSmallestExponent, kExponents}, 5);
  SetF32(ones_, kVector, 1.0f);
  SetF32(fp8_scales_, kVector, 0x1p-5f);
  SetF32(fp4_scales_, kVector, kFp4Common);
}

void BenchModel::FillPages(const kernels::PageLayout& layout) {
  Must(cudaStreamSynchronize(device_.stream()) == cudaSuccess
           ? absl::OkStatus()
           : absl::InternalError("cannot zero memory"),
       "pages");
  const size_t stride = layout.stride_bytes();
  const auto pieces = [stride](int rows, int bytes) {
    return Pieces{kPages, static_cast<size_t>(rows) * static_cast<size_t>(bytes), stride};
  };
  constexpr ByteRange kScales = {125, 3};
  constexpr int kCsaRows = 64, kHcaRows = 2;
  uint32_t seed = 10;
  for (const int layer : layout.shape().csa_layers) {
    FillPiecesFp8(pages_ + layout.CsaRowData(layer, 0), pieces(kCsaRows, layout.row_data_bytes()),
                  ++seed);
    FillPiecesRange(pages_ + layout.CsaRowScales(layer, 0),
                    pieces(kCsaRows, layout.row_scale_bytes()), kScales, ++seed);
    FillPiecesFp8(pages_ + layout.IndexValues(layer, 0),
                  pieces(kCsaRows, layout.index_value_bytes()), ++seed);
    SetPiecesF32(pages_ + layout.IndexScales(layer, 0),
                 pieces(kCsaRows, layout.index_scale_bytes()), 0.5f);
  }
  for (const int layer : layout.shape().hca_layers) {
    FillPiecesFp8(pages_ + layout.HcaRowData(layer, 0), pieces(kHcaRows, layout.row_data_bytes()),
                  ++seed);
    FillPiecesRange(pages_ + layout.HcaRowScales(layer, 0),
                    pieces(kHcaRows, layout.row_scale_bytes()), kScales, ++seed);
  }
}

const kernels::Matrix* BenchModel::MakeMatrix(ValueFormat format, int rows, int columns) {
  matrices_.push_back(std::make_unique<kernels::cuda::DeviceMatrix>(rows, columns));
  kernels::cuda::MatrixView& view = matrices_.back()->view;
  const size_t count = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  view.rows = rows;
  view.cols = columns;
  view.format = format;
  switch (format) {
    case ValueFormat::kFp4:
      view.values = fp4_.Take(count / 2);
      view.scales = fp4_scales_;
      view.exponents = fp4_exponents_;
      break;
    case ValueFormat::kFp8:
      view.values = fp8_.Take(count);
      view.scales = fp8_scales_;
      break;
    case ValueFormat::kBf16:
      view.values = bf16_.Take(2 * count);
      break;
    case ValueFormat::kF32:
      view.values = f32_.Take(4 * count);
      break;
  }
  return matrices_.back().get();
}

kernels::MixWeights BenchModel::MakeMix() {
  constexpr int kMixes = (2 + kStreams) * kStreams;
  return {MakeMatrix(ValueFormat::kF32, kMixes, kStreams * kHidden), Zeros(kMixes), Ones(3)};
}

kernels::CompressorWeights BenchModel::MakeCompressor(Kind kind, int dim) {
  const int width = (kind == Kind::kCsa ? 2 : 1) * dim;
  const auto ape = static_cast<size_t>(RatioOf(kind)) * static_cast<size_t>(width);
  return {MakeMatrix(ValueFormat::kBf16, width, kHidden),
          MakeMatrix(ValueFormat::kBf16, width, kHidden), Zeros(ape),
          Ones(static_cast<size_t>(dim))};
}

kernels::LayerWeights BenchModel::MakeLayer(int number, Kind kind) {
  kernels::LayerWeights layer;
  layer.layer = NumberOf(kind, number);
  layer.ratio = RatioOf(kind);
  layer.attn_mix = MakeMix();
  layer.ffn_mix = MakeMix();
  layer.attn_norm = layer.ffn_norm = Ones(kHidden);
  layer.wq_a = MakeMatrix(ValueFormat::kFp8, kQueryLow, kHidden);
  layer.wkv = MakeMatrix(ValueFormat::kFp8, kHeadDim, kHidden);
  const int low = kOutputGroups / ranks_ * kOutputLow, width = kIntermediate / ranks_;
  layer.wq_b = MakeMatrix(ValueFormat::kFp8, kHeads / ranks_ * kHeadDim, kQueryLow);
  layer.wo_a = MakeMatrix(ValueFormat::kFp8, low, kHeads * kHeadDim / kOutputGroups);
  layer.wo_b = MakeMatrix(ValueFormat::kFp8, kHidden, low);
  layer.q_norm = Ones(kQueryLow);
  layer.kv_norm = Ones(kHeadDim);
  layer.attn_sink = Zeros(kHeads);
  layer.gate = MakeMatrix(ValueFormat::kBf16, kExperts, kHidden);
  layer.gate_bias = Zeros(kExperts);
  layer.shared.w1 = MakeMatrix(ValueFormat::kFp8, width, kHidden);
  layer.shared.w3 = MakeMatrix(ValueFormat::kFp8, width, kHidden);
  layer.shared.w2 = MakeMatrix(ValueFormat::kFp8, kHidden, width);
  if (kind == Kind::kWindow) return layer;
  layer.compressor = MakeCompressor(kind, kHeadDim);
  if (kind == Kind::kHca) return layer;
  layer.index_compressor = MakeCompressor(kind, kIndexDim);
  layer.index_wq_b = MakeMatrix(ValueFormat::kFp8, kIndexHeads * kIndexDim, kQueryLow);
  layer.index_weights = MakeMatrix(ValueFormat::kBf16, kIndexHeads, kHidden);
  return layer;
}

// Every copy has all of the pool, in another order: the same expert number reads other memory.
void BenchModel::AddExperts(kernels::LayerWeights& layer) {
  constexpr size_t kShift = 111 * kMatrixBytes;
  fp4_.used = static_cast<size_t>(layer.layer) * kShift;
  const int width = kIntermediate / ranks_;
  for (int e = 0; e < kExperts; ++e) {
    kernels::ExpertWeights expert;
    expert.w1 = MakeMatrix(ValueFormat::kFp4, width, kHidden);
    expert.w3 = MakeMatrix(ValueFormat::kFp4, width, kHidden);
    expert.w2 = MakeMatrix(ValueFormat::kFp4, kHidden, width);
    layer.experts.push_back(expert);
  }
}

void BenchModel::Start(const StepSize& step) {
  const int before = step.context - step.rows_per_sequence;
  const int num_pages = (step.context + 255) / 256;
  std::mt19937 random(step.context);
  std::vector<PageId> all(kPages);
  std::iota(all.begin(), all.end(), 0);
  std::vector<std::vector<PageId>> pages;
  std::vector<std::vector<int32_t>> tokens;
  std::vector<kernels::SequenceRows> runs;
  const kernels::PageLayout layout(MakeLayoutShape());
  std::vector<std::byte> wire(kernels::MaxTailBytes(layout, 0));
  for (int slot = 0; slot < step.sequences; ++slot) {
    if (before == 0) {
      ops_->ResetTail(slot);
    } else {
      Must(ops_->UnpackTail({.tail_slot = slot,
                             .num_tokens = static_cast<uint64_t>(before),
                             .has_drafter_state = false,
                             .wire = wire}),
           "UnpackTail");
    }
    std::shuffle(all.begin(), all.end(), random);
    pages.emplace_back(all.begin(), all.begin() + num_pages);
    tokens.emplace_back();
    for (int i = 0; i < step.rows_per_sequence; ++i) {
      tokens.back().push_back(static_cast<int32_t>(random() % kVocabulary));
    }
  }
  for (int slot = 0; slot < step.sequences; ++slot) {
    const auto index = static_cast<size_t>(slot);
    runs.push_back({.tail_slot = slot,
                    .kind = step.rows_per_sequence == 1 ? kernels::RowKind::kVerify
                                                        : kernels::RowKind::kPrefill,
                    .first_position = before,
                    .num_rows = step.rows_per_sequence,
                    .tokens = tokens[index].data(),
                    .pages = pages[index].data(),
                    .num_pages = num_pages});
  }
  Must(ops_->AdvanceStep({.runs = runs}), "AdvanceStep");
}

void BenchModel::RunLayer(const kernels::LayerWeights& layer) {
  const kernels::LayerArgs args{.step = ops_->view(), .layer = layer};
  Must(ops_->MixBoundary({.step = ops_->view(),
                          .finish_previous = false,
                          .next = &layer.attn_mix,
                          .norm = layer.attn_norm}),
       "MixBoundary");
  Must(ops_->ProjectIn(args), "ProjectIn");
  Must(ops_->StoreRows(args), "StoreRows");
  Must(ops_->ProjectQuery(args), "ProjectQuery");
  Must(ops_->Route(args), "Route");
}

void BenchModel::RunAllPhases() {
  Must(ops_->Embed({.step = ops_->view(), .embed = embed_}), "Embed");
  RunLayer(window_layers_[0]);
  RunLayer(hca_layers_[0]);
  for (const kernels::LayerWeights& layer : csa_layers_) {
    if (layer.experts.empty()) break;
    const kernels::LayerArgs args{.step = ops_->view(), .layer = layer};
    RunLayer(layer);
    if (layer.layer != 0) continue;
    Must(ops_->SelectEntries(args), "SelectEntries");
    Must(ops_->Attend(args), "Attend");
    Must(ops_->ProjectOut(args), "ProjectOut");
  }
}

int BenchModel::CountDistinctExperts(const StepSize& step) {
  const auto count = static_cast<size_t>(step.rows()) * kExpertsPerToken;
  std::vector<int32_t> ids(count);
  CHECK(cudaStreamSynchronize(device_.stream()) == cudaSuccess);
  CHECK(cudaMemcpy(ids.data(), ops_->activations().expert_ids, count * sizeof(int32_t),
                   cudaMemcpyDeviceToHost) == cudaSuccess);
  return static_cast<int>(std::set<int32_t>(ids.begin(), ids.end()).size());
}

}  // namespace baton::bench
