#include "kernels/cuda/lockstep.h"

#include <numeric>

// Every phase on the GPU against the CPU, on equal inputs, over generated models and steps:
// prefill in chunks, verify runs with accepted and rejected rows, replay, drafter, moved tails.
// Rows, states, pages, selections and tails must be equal bit for bit; what goes through the tensor
// cores must be close.
namespace baton::kernels::cuda {
namespace {

using testing::Lockstep;
using testing::TestShape;
using Expectation = Lockstep::Expectation;

constexpr double kProductLimit = 1e-5;  // bf16 outputs of fp8 or bf16 products
constexpr double kExpertLimit = 1e-4;   // two fp8 products; a few values between round elsewhere
constexpr double kFp4Limit = 2e-3;      // values rounded to e2m1 afterwards: a few fall elsewhere

struct RunSpec {
  int slot;
  RowKind kind;
  int first, rows;
};

// Which activations StoreRows leaves behind. Raw compressor rows are part of tails.
const Expectation kStored = {.exact = {"query_low", "query_low8", "kv"}};
const Expectation kMixed = {.exact = {"streams", "post", "comb", "normed", "normed8"}};

void RunAttention(Lockstep& both, const auto& layer_of, int ratio) {
  const auto phase = [&](auto member) {
    return [member, &layer_of](Ops& ops, const ModelWeights& weights) {
      return (ops.*member)({.step = ops.view(), .layer = layer_of(weights)});
    };
  };
  std::vector<std::string> projected = {"query_low", "kv"};
  if (ratio != 0) projected.insert(projected.end(), {"compressor_kv", "compressor_score"});
  if (ratio == kCsaRatio) {
    projected.insert(projected.end(), {"index_kv", "index_score", "index_weights"});
  }
  both.Run("ProjectIn", {.close = projected, .limit = kProductLimit}, phase(&Ops::ProjectIn));
  both.Run("StoreRows", kStored, phase(&Ops::StoreRows));
  both.ExpectEqualPages("StoreRows");
  both.Run("ProjectQuery", {.close = {"query"}, .limit = kProductLimit}, phase(&Ops::ProjectQuery));
  if (ratio == kCsaRatio) {
    both.Run("ProjectQuery", {.close = {"index_query"}, .limit = kFp4Limit},
             [&](Ops& ops, const ModelWeights& weights) {
               return &ops == &both.gpu()
                          ? ops.ProjectQuery({.step = ops.view(), .layer = layer_of(weights)})
                          : absl::OkStatus();
             });
    both.Run("SelectEntries", {.exact = {"selected", "num_selected"}}, phase(&Ops::SelectEntries));
  }
  both.Run("Attend", {.close = {"attended"}, .limit = kProductLimit}, phase(&Ops::Attend));
  both.Run("ProjectOut", {.close = {"branch"}, .limit = kProductLimit}, phase(&Ops::ProjectOut));
}

void RunLayer(Lockstep& both, const auto& layer_of, int ratio, bool finishes_previous) {
  both.Run("MixBoundary", kMixed, [&](Ops& ops, const ModelWeights& weights) {
    const LayerWeights& layer = layer_of(weights);
    return ops.MixBoundary({.step = ops.view(),
                            .finish_previous = finishes_previous,
                            .next = &layer.attn_mix,
                            .norm = layer.attn_norm});
  });
  RunAttention(both, layer_of, ratio);
  both.Run("MixBoundary", kMixed, [&](Ops& ops, const ModelWeights& weights) {
    const LayerWeights& layer = layer_of(weights);
    return ops.MixBoundary({.step = ops.view(),
                            .finish_previous = true,
                            .next = &layer.ffn_mix,
                            .norm = layer.ffn_norm});
  });
  both.Run("Route", {.exact = {"expert_ids"}, .close = {"expert_weights"}, .limit = kProductLimit},
           [&](Ops& ops, const ModelWeights& weights) {
             return ops.Route({.step = ops.view(), .layer = layer_of(weights)});
           });
  both.Run("Experts", {.close = {"branch"}, .limit = kExpertLimit},
           [&](Ops& ops, const ModelWeights& weights) {
             return ops.Experts({.step = ops.view(), .layer = layer_of(weights)});
           });
}

void FinishAndHead(Lockstep& both, bool is_drafter) {
  both.Run("MixBoundary", {.exact = {"streams"}}, [](Ops& ops, const ModelWeights&) {
    return ops.MixBoundary(
        {.step = ops.view(), .finish_previous = true, .next = nullptr, .norm = {}});
  });
  const int rows = both.num_rows();
  std::vector<int32_t> chosen = {0, rows - 1, rows / 2};
  if (is_drafter) chosen.clear();
  both.Run("Head", {.close = {"logits"}, .limit = kProductLimit},
           [&](Ops& ops, const ModelWeights& weights) {
             return ops.Head({.step = ops.view(),
                              .rows = chosen,
                              .has_all_rows = is_drafter,
                              .mix = is_drafter ? weights.mtp.head_mix : weights.head_mix,
                              .norm = is_drafter ? weights.mtp.norm : weights.norm,
                              .head = weights.head});
           });
}

// One step of the main model and one of the drafter on each run's last row.
class StepDriver {
 public:
  StepDriver(const TestShape& shape, Lockstep& both) : shape_(shape), both_(both) {}

  void Step(const std::vector<RunSpec>& specs) {
    SCOPED_TRACE("step " + std::to_string(++number_));
    Advance(specs, false);
    both_.Run("Embed", {.exact = {"streams"}}, [](Ops& ops, const ModelWeights& weights) {
      return ops.Embed({.step = ops.view(), .embed = weights.embed});
    });
    for (size_t i = 0; i < shape_.ratios.size(); ++i) {
      SCOPED_TRACE("layer " + std::to_string(i));
      const auto layer_of = [i](const ModelWeights& w) -> const LayerWeights& {
        return w.layers[i];
      };
      RunLayer(both_, layer_of, shape_.ratios[i], i > 0);
      if (::testing::Test::HasFatalFailure()) return;
    }
    FinishAndHead(both_, false);
    Draft(specs);
  }

 private:
  void Draft(const std::vector<RunSpec>& specs) {
    SCOPED_TRACE("drafter");
    std::vector<RunSpec> last;
    std::vector<int32_t> sources;
    int row = 0;
    for (const RunSpec& spec : specs) {
      row += spec.rows;
      last.push_back({spec.slot, spec.kind, spec.first + spec.rows - 1, 1});
      sources.push_back(number_ % 2 == 0 ? DraftInputArgs::kFromTail : row - 1);
    }
    Advance(last, true);
    SamplingSpec spec;
    spec.greedy = number_ % 3 == 0;
    std::vector<SampleRow> rows(specs.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      rows[i].spec = &spec;
      rows[i].key = 40 + i;
      rows[i].position = last[i].first + 2;
      rows[i].logits_row = static_cast<int32_t>(i);
      rows[i].is_draft = true;
    }
    both_.Run("BeginDrafts", {},
              [&](Ops& ops, const ModelWeights&) { return ops.BeginDrafts(rows); });
    DraftOnce(sources);
    if (::testing::Test::HasFatalFailure()) return;
    DraftOnce({});
    if (!::testing::Test::HasFatalFailure()) both_.ExpectEqualDrafts(2);
  }

  void DraftOnce(const std::vector<int32_t>& sources) {
    both_.Run("DraftInput", {.close = {"streams"}, .limit = kProductLimit},
              [&](Ops& ops, const ModelWeights& weights) {
                return ops.DraftInput({.step = ops.view(),
                                       .embed = weights.embed,
                                       .mtp = weights.mtp,
                                       .source_row = sources});
              });
    if (::testing::Test::HasFatalFailure()) return;
    const auto block = [](const ModelWeights& w) -> const LayerWeights& { return w.mtp.block; };
    RunLayer(both_, block, 0, false);
    if (::testing::Test::HasFatalFailure()) return;
    FinishAndHead(both_, true);
    both_.Run("KeepDraft", {}, [](Ops& ops, const ModelWeights&) { return ops.KeepDraft(); });
  }

  void Advance(const std::vector<RunSpec>& specs, bool is_drafter) {
    static constexpr PageId kPages[4][4] = {
        {3, 0, 5, 2}, {1, 4, 7, 11}, {3, 0, 5, 2}, {6, 8, 9, 10}};
    std::vector<std::vector<int32_t>> tokens;
    std::vector<SequenceRows> runs;
    for (const RunSpec& spec : specs) {
      tokens.emplace_back();
      for (int i = 0; i < spec.rows; ++i) {
        tokens.back().push_back(
            static_cast<int32_t>(random_() % static_cast<uint32_t>(shape_.vocabulary)));
      }
      runs.push_back({.tail_slot = spec.slot,
                      .kind = spec.kind,
                      .first_position = spec.first,
                      .num_rows = spec.rows,
                      .tokens = tokens.back().data(),
                      .pages = kPages[spec.slot],
                      .num_pages = 4});
    }
    both_.Advance(runs, is_drafter);
  }

  const TestShape shape_;
  Lockstep& both_;
  std::mt19937 random_{17};
  int number_ = 0;
};

void RunScenario(const TestShape& shape, bool has_reference_linears = false) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Lockstep both(shape, *device, has_reference_linears);
  StepDriver driver(shape, both);
  const auto check = [] { return ::testing::Test::HasFatalFailure(); };
  driver.Step({{0, RowKind::kPrefill, 0, 300}, {1, RowKind::kPrefill, 0, 3}});
  if (check()) return;
  driver.Step({{1, RowKind::kPrefill, 3, 6}, {0, RowKind::kPrefill, 300, 211}});
  if (check()) return;
  driver.Step({{0, RowKind::kVerify, 511, 5}, {1, RowKind::kVerify, 9, 4}});
  if (check()) return;
  // One and two rows accepted; the rest is undone.
  driver.Step({{0, RowKind::kVerify, 512, 4}, {1, RowKind::kVerify, 11, 1}});
  if (check()) return;
  driver.Step({{1, RowKind::kReplay, 12, 40}, {0, RowKind::kVerify, 516, 64}});
  if (check()) return;
  both.MoveTail(0, 545, 2);
  both.MoveTail(1, 52, 3);
  if (check()) return;
  driver.Step({{2, RowKind::kVerify, 545, 3}, {3, RowKind::kPrefill, 52, 77}});
  if (check()) return;
  both.MoveTail(3, 129, 0);
  both.MoveTail(2, 547, 1);
  for (const auto& [name, error] : both.errors()) {
    std::printf("  %-28s %.2e\n", name.c_str(), error);
  }
}

TEST(CudaLockstep, SmallModel) { RunScenario({}); }

TEST(CudaLockstep, RealHeadsAndRunningMaximum) {
  RunScenario({.ratios = {4, 128},
               .hidden = 512,
               .heads = 40,
               .head_dim = 512,
               .q_lora = 384,
               .o_groups = 4,
               .o_lora = 96,
               .experts = 40,
               .experts_per_token = 6,
               .intermediate = 256,
               .hash_layers = 0,
               .index_heads = 40,
               .index_topk = 48,
               .vocabulary = 1000,
               .has_bounded_scores = false,
               .index = IndexFormat::kFp4});
}

TEST(CudaLockstep, RealHeadsBoundedScores) {
  RunScenario({.ratios = {128, 4}, .hidden = 384, .heads = 64, .head_dim = 512, .index_heads = 64});
}

const TestShape kOddSizes = {.ratios = {4, 0},
                             .hidden = 128,
                             .heads = 8,
                             .head_dim = 160,
                             .rope_dim = 32,
                             .o_groups = 1,
                             .o_lora = 128,
                             .index_dim = 64,
                             .index_topk = 20,
                             .window = 96,
                             .streams = 2,
                             .wide_expert = 2};
const TestShape kFp8Experts = {.ratios = {0, 128}, .hash_layers = 2, .has_fp8_experts = true};

TEST(CudaLockstep, OddSizes) { RunScenario(kOddSizes); }
TEST(CudaLockstep, Fp8Experts) { RunScenario(kFp8Experts); }

// Everything but attention bit for bit.
TEST(CudaLockstep, ReferenceLinearsEqualTheCpu) {
  RunScenario({}, /*has_reference_linears=*/true);
  RunScenario(kOddSizes, /*has_reference_linears=*/true);
  RunScenario(kFp8Experts, /*has_reference_linears=*/true);
}

}  // namespace
}  // namespace baton::kernels::cuda
