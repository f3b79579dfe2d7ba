#include "kernels/cuda/lockstep.h"

#include <algorithm>
#include <span>
#include <vector>

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
  // Rows of a verify run that its choices are made to let stay; 0: whatever comes.
  int stays = 0;
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

void FinishStreams(Lockstep& both) {
  both.Run("MixBoundary", {.exact = {"streams"}}, [](Ops& ops, const ModelWeights&) {
    return ops.MixBoundary(
        {.step = ops.view(), .finish_previous = true, .next = nullptr, .norm = {}});
  });
}

// No rows: all.
void Head(Lockstep& both, std::span<const int32_t> rows, bool is_drafter) {
  both.Run("Head", {.close = {"logits"}, .limit = kProductLimit},
           [&](Ops& ops, const ModelWeights& weights) {
             return ops.Head({.step = ops.view(),
                              .rows = rows,
                              .has_all_rows = rows.empty(),
                              .mix = is_drafter ? weights.mtp.head_mix : weights.head_mix,
                              .norm = is_drafter ? weights.mtp.norm : weights.norm,
                              .head = weights.head});
           });
}

// One step of the main model, its choices, and the drafter's rows and drafts.
class StepDriver {
 public:
  StepDriver(const TestShape& shape, Lockstep& both) : shape_(shape), both_(both) {}

  void Step(const std::vector<RunSpec>& specs) {
    Compute(specs, /*follows=*/false);
    if (!HasFailed()) Harvest(specs);
  }

  // Another step follows before the first is harvested; of each run so many rows stay then.
  void TwoSteps(const std::vector<RunSpec>& specs, const std::vector<int>& stay) {
    Compute(specs, /*follows=*/false);
    const size_t num_choices = choices_.size();
    std::vector<RunSpec> next = specs;
    for (size_t r = 0; r < next.size(); ++r) {
      next[r].first += specs[r].rows;
      next[r].rows = 1 + static_cast<int>(kDrafts);
      next[r].stays = stay[r];
    }
    if (!HasFailed()) Compute(next, /*follows=*/true);
    if (HasFailed()) return;
    const auto accepted = both_.Harvest(num_choices, specs.size(), kDrafts);
    for (size_t r = 0; r < specs.size(); ++r) EXPECT_EQ(accepted[r], specs[r].stays) << "run " << r;
    Harvest(next);
  }

 private:
  void Compute(const std::vector<RunSpec>& specs, bool follows) {
    SCOPED_TRACE("step " + std::to_string(++number_));
    Advance(specs, follows);
    both_.Run("Embed", {.exact = {"streams"}}, [](Ops& ops, const ModelWeights& weights) {
      return ops.Embed({.step = ops.view(), .embed = weights.embed});
    });
    for (size_t i = 0; i < shape_.ratios.size(); ++i) {
      SCOPED_TRACE("layer " + std::to_string(i));
      const auto layer_of = [i](const ModelWeights& w) -> const LayerWeights& {
        return w.layers[i];
      };
      RunLayer(both_, layer_of, shape_.ratios[i], i > 0);
      if (HasFailed()) return;
      // A step that follows clears no rejected entries on the GPU, but writes them again.
      if (!follows || i + 1 == shape_.ratios.size()) both_.ExpectEqualPages("StoreRows");
      if (HasFailed()) return;
    }
    FinishStreams(both_);
    Choose(specs, follows);
    if (HasFailed()) return;
    Accept(specs, follows);
    if (HasFailed()) return;
    StoreDrafterRows();
    if (!HasFailed()) Draft();
  }

  static constexpr size_t kHeadRows = 8;
  static constexpr size_t kDrafts = 2;
  // A token to be chosen, from its row.
  struct Choice {
    int32_t row = 0;
    int64_t position = 0;
    SamplingSpec spec;
  };

  static bool HasFailed() { return ::testing::Test::HasFatalFailure(); }

  // Of every row of a verify run, of the last of others.
  void Choose(const std::vector<RunSpec>& specs, bool has_all_rows) {
    choices_.clear();
    accepts_.clear();
    int first_row = 0;
    for (size_t r = 0; r < specs.size(); ++r) {
      const RunSpec& spec = specs[r];
      accepts_.push_back({.choice = static_cast<int32_t>(choices_.size())});
      const bool is_verify = spec.kind == RowKind::kVerify;
      for (int i = is_verify ? 0 : spec.rows - 1; i < spec.rows; ++i) {
        Choice& choice = choices_.emplace_back();
        choice.row = first_row + i;
        choice.position = spec.first + i + 1;
        choice.spec.top_logprobs = i % 3 - 1;
        if (is_verify && spec.stays > 0) Force(spec, i, tokens_[r], choice.spec);
      }
      first_row += spec.rows;
    }
    for (size_t begin = 0; begin < choices_.size(); begin += kHeadRows) {
      Sample(std::span(choices_).subspan(begin, std::min(kHeadRows, choices_.size() - begin)),
             has_all_rows);
      if (HasFailed()) return;
    }
  }

  // In odd steps a wrong draft ends the rows that stay, in even ones a row without a token.
  void Force(const RunSpec& run, int row, const std::vector<int32_t>& tokens, SamplingSpec& spec) {
    const bool ends_empty = number_ % 2 == 0;
    const int last_right = run.stays - (ends_empty ? 1 : 2);
    const auto next = static_cast<size_t>(row) + 1;
    if (row == run.stays && ends_empty) {
      spec.allowed_tokens = {shape_.vocabulary};  // none
    } else if (next < tokens.size() && row <= last_right) {
      spec.allowed_tokens = {tokens[next]};
    } else if (next < tokens.size() && row == last_right + 1) {
      spec.allowed_tokens = {(tokens[next] + 1) % shape_.vocabulary};
    }
  }

  void Sample(std::span<const Choice> choices, bool has_all_rows) {
    std::vector<int32_t> head_rows;
    std::vector<SampleRow> rows(choices.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!has_all_rows) head_rows.push_back(choices[i].row);
      rows[i].spec = &choices[i].spec;
      rows[i].key = 7 + static_cast<uint64_t>(number_);
      rows[i].position = choices[i].position;
      rows[i].logits_row = static_cast<int32_t>(i);
    }
    Head(both_, head_rows, false);
    both_.Run("Sample", {}, [&](Ops& ops, const ModelWeights&) {
      return ops.Sample({.rows = rows, .chosen = {}, .is_empty = {}});
    });
  }

  // The drafter starts at the run or one row before it; a replay's next token is known.
  void Accept(const std::vector<RunSpec>& specs, bool follows) {
    for (size_t r = 0; r < specs.size(); ++r) {
      AcceptRun& run = accepts_[r];
      if (specs[r].kind == RowKind::kReplay) run = {.next_token = 3};
      run.first = std::max(specs[r].first - (number_ + static_cast<int>(r)) % 2, 0);
      run.drafts = number_ % 4 != 1 || r > 0 || follows;
      run.spec = &draft_spec_;
      run.key = 40 + r;
    }
    draft_spec_.greedy = number_ % 3 == 0;
    both_.Run("Accept", {},
              [&](Ops& ops, const ModelWeights&) { return ops.Accept({.runs = accepts_}); });
  }

  void StoreDrafterRows() {
    SCOPED_TRACE("drafter's rows");
    both_.AdvanceDrafter(DrafterRows::kKnown);
    if (HasFailed()) return;
    EnterDrafter(/*goes_on=*/false);
    both_.Run("MixBoundary", kMixed, [](Ops& ops, const ModelWeights& weights) {
      const LayerWeights& layer = weights.mtp.block;
      return ops.MixBoundary(
          {.step = ops.view(), .next = &layer.attn_mix, .norm = layer.attn_norm});
    });
    both_.Run("ProjectIn", {.close = {"query_low", "kv"}, .limit = kProductLimit},
              [](Ops& ops, const ModelWeights& weights) {
                return ops.ProjectIn({.step = ops.view(), .layer = weights.mtp.block});
              });
    both_.Run("StoreRows", kStored, [](Ops& ops, const ModelWeights& weights) {
      return ops.StoreRows({.step = ops.view(), .layer = weights.mtp.block});
    });
  }

  void Draft() {
    SCOPED_TRACE("drafts");
    both_.AdvanceDrafter(DrafterRows::kDrafting);
    for (size_t i = 0; i < kDrafts && !HasFailed(); ++i) DraftOnce(/*goes_on=*/i > 0);
  }

  void EnterDrafter(bool goes_on) {
    both_.Run(
        "DraftInput", {.close = {"streams"}, .limit = kProductLimit},
        [&](Ops& ops, const ModelWeights& weights) {
          return ops.DraftInput(
              {.step = ops.view(), .embed = weights.embed, .mtp = weights.mtp, .goes_on = goes_on});
        });
  }

  void DraftOnce(bool goes_on) {
    EnterDrafter(goes_on);
    if (HasFailed()) return;
    const auto block = [](const ModelWeights& w) -> const LayerWeights& { return w.mtp.block; };
    RunLayer(both_, block, 0, false);
    if (HasFailed()) return;
    FinishStreams(both_);
    Head(both_, {}, true);
    both_.Run("KeepDraft", {}, [](Ops& ops, const ModelWeights&) { return ops.KeepDraft(); });
  }

  void Harvest(const std::vector<RunSpec>& specs) {
    const auto accepted = both_.Harvest(choices_.size(), specs.size(), kDrafts);
    for (size_t r = 0; r < specs.size(); ++r) {
      if (specs[r].stays == 0) continue;
      EXPECT_EQ(accepted[r], specs[r].stays) << "run " << r;
    }
  }

  void Advance(const std::vector<RunSpec>& specs, bool follows) {
    static constexpr PageId kPages[4][4] = {
        {3, 0, 5, 2}, {1, 4, 7, 11}, {3, 0, 5, 2}, {6, 8, 9, 10}};
    tokens_.clear();
    std::vector<SequenceRows> runs;
    for (const RunSpec& spec : specs) {
      tokens_.emplace_back();
      for (int i = 0; i < spec.rows; ++i) {
        tokens_.back().push_back(
            static_cast<int32_t>(random_() % static_cast<uint32_t>(shape_.vocabulary)));
      }
      runs.push_back({.tail_slot = spec.slot,
                      .kind = spec.kind,
                      .first_position = spec.first,
                      .num_rows = spec.rows,
                      .tokens = tokens_.back().data(),
                      .pages = kPages[spec.slot],
                      .num_pages = 4});
    }
    if (!follows) return both_.Advance(runs);
    for (SequenceRows& run : runs) run.tokens = nullptr;
    const std::vector<int32_t> all = both_.AdvanceFollowing(runs);
    auto next = all.begin();
    for (std::vector<int32_t>& tokens : tokens_) {
      tokens.assign(next, next + static_cast<std::ptrdiff_t>(tokens.size()));
      next += static_cast<std::ptrdiff_t>(tokens.size());
    }
  }

  const TestShape shape_;
  Lockstep& both_;
  std::mt19937 random_{17};
  int number_ = 0;
  std::vector<std::vector<int32_t>> tokens_;  // of the step, by run
  std::vector<Choice> choices_;
  std::vector<AcceptRun> accepts_;
  SamplingSpec draft_spec_;
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
  driver.Step({{0, RowKind::kVerify, 511, 5, 1}, {1, RowKind::kVerify, 9, 4, 2}});
  if (check()) return;
  // One and two rows accepted; the rest is undone.
  driver.Step({{0, RowKind::kVerify, 512, 4, 4}, {1, RowKind::kVerify, 11, 1, 1}});
  if (check()) return;
  driver.Step({{1, RowKind::kReplay, 12, 40}, {0, RowKind::kVerify, 516, 64, 29}});
  if (check()) return;
  both.MoveTail(0, 545, 2);
  both.MoveTail(1, 52, 3);
  if (check()) return;
  driver.Step({{2, RowKind::kVerify, 545, 3, 2}, {3, RowKind::kPrefill, 52, 77}});
  if (check()) return;
  both.MoveTail(3, 129, 0);
  both.MoveTail(2, 547, 1);
  driver.Step({{2, RowKind::kVerify, 547, 2, 1}, {3, RowKind::kVerify, 129, 1, 1}});
  if (check()) return;
  driver.Step({{2, RowKind::kVerify, 548, 2, 1}});  // no drafter rows but the one drafted from
  if (check()) return;
  driver.Step({{3, RowKind::kVerify, 130, 2, 1}, {2, RowKind::kVerify, 549, 3, 2}});
  if (check()) return;
  // Over the ends of an entry and of a page; a run's rows all stay, or none does.
  driver.TwoSteps({{3, RowKind::kVerify, 131, 3, 2}, {2, RowKind::kVerify, 551, 1, 1}}, {1, 3});
  if (check()) return;
  driver.TwoSteps({{2, RowKind::kVerify, 555, 3, 3}, {3, RowKind::kVerify, 134, 2, 1}}, {2, 2});
  if (check()) return;
  both.MoveTail(2, 560, 0);
  both.MoveTail(3, 137, 1);
  both.ExpectEqualPages("at the end");
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
