#include <algorithm>
#include <numeric>

#include "common/status.h"
#include "kernels/cuda/gpu_test_model.h"

// L0 of contracts.md 1.2 on the GPU: what a sequence leaves behind (logits, tail, pages) does not
// depend on what else is in its steps, on their order, on chunk borders, page numbers, buckets or
// drafts that were rejected, bit for bit.
namespace baton::kernels::cuda {
namespace {

using testing::Download;
using testing::TestShape;

constexpr int kMaxRows = 700;
constexpr int kPages = 16;
constexpr int kTarget = 0;  // slot of the observed sequence; the others are company
constexpr int kPrompt = 296;

struct RunSpec {
  int slot;
  RowKind kind;
  int first, rows;
  int wrong_from = -1;  // positions from here on get wrong tokens (rejected drafts)
};
using Steps = std::vector<std::vector<RunSpec>>;

struct Observation {
  std::vector<float> logits;
  std::vector<std::byte> tail, pages;
  bool operator==(const Observation&) const = default;
};

class Model {
 public:
  Model(const TestShape& shape, Device& device)
      : shape_(shape),
        device_(static_cast<CudaDevice&>(device)),
        weights_(testing::MakeWeights(shape, device)),
        layout_(testing::LayoutOf(shape)) {
    CudaOptions options{.config = testing::ConfigOf(shape), .layout = layout_};
    pages_ = *device.Allocate(layout_.stride_bytes() * kPages);
    options.pages = pages_;
    options.num_pages = kPages;
    options.num_tail_slots = 3;
    options.max_rows = kMaxRows;
    options.max_sequences = 3;
    options.max_head_rows = 8;
    options.max_context = 1024;
    auto ops = MakeCudaOps(std::move(options), device);
    CHECK(ops.ok());
    ops_ = *std::move(ops);
  }

  Observation Run(const Steps& steps, std::span<const PageId> target_pages) {
    Start();
    return Continue(steps, target_pages);
  }

  void Start() {
    device_.Zero(pages_, layout_.stride_bytes() * kPages);
    for (int slot = 0; slot < 3; ++slot) ops_->ResetTail(slot);
  }

  // Runs the steps from where the slots stand; the target's last row of the last step is the one
  // whose logits count, and its tail is taken behind that row.
  Observation Continue(const Steps& steps, std::span<const PageId> target_pages) {
    Observation seen;
    int end = 0;
    for (const std::vector<RunSpec>& step : steps) {
      int row = 0;
      int32_t last_row = 0;
      for (const RunSpec& run : step) {
        row += run.rows;
        if (run.slot != kTarget) continue;
        last_row = row - 1;
        end = run.first + run.rows;
      }
      const absl::Status status = Step(step, target_pages, last_row);
      EXPECT_TRUE(status.ok()) << status.ToString();
    }
    const auto vocabulary = static_cast<size_t>(shape_.vocabulary);
    seen.logits =
        Download<float>(device_, static_cast<CudaOps&>(*ops_).activations().logits, vocabulary);
    const auto num_tokens = static_cast<uint64_t>(end);
    seen.tail.resize(MakeTailLayout(layout_, num_tokens, 0).total_bytes);
    EXPECT_TRUE(
        ops_->PackTail({.tail_slot = kTarget, .num_tokens = num_tokens, .wire = seen.tail}).ok());
    for (int i = 0; i < (end + kPageTokens - 1) / kPageTokens; ++i) {
      const auto page =
          Download<std::byte>(device_,
                              pages_ + static_cast<uint64_t>(target_pages[static_cast<size_t>(i)]) *
                                           layout_.stride_bytes(),
                              layout_.stride_bytes());
      seen.pages.insert(seen.pages.end(), page.begin(), page.end());
    }
    return seen;
  }

  // Whether steps run through Ops::Repeat.
  void UseRecords(bool has_records) { has_records_ = has_records; }
  size_t num_records() const { return static_cast<CudaOps&>(*ops_).num_graphs(); }

  // From now on steps run as replays of the last step's work, `replays` times each.
  void Capture(int replays) {
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamBeginCapture(device_.stream(), cudaStreamCaptureModeThreadLocal) ==
          cudaSuccess);
    CHECK(Forward().ok());
    CHECK(cudaStreamEndCapture(device_.stream(), &graph) == cudaSuccess);
    CHECK(cudaGraphInstantiate(&graph_, graph, 0) == cudaSuccess);
    CHECK(cudaGraphDestroy(graph) == cudaSuccess);
    replays_ = replays;
    captured_shape_ = static_cast<CudaOps&>(*ops_).launch_shape();
  }
  bool FitsCapture() const {
    return static_cast<CudaOps&>(*ops_).launch_shape() == captured_shape_;
  }
  void DropCapture() {
    CHECK(graph_ != nullptr && cudaGraphExecDestroy(graph_) == cudaSuccess);
    graph_ = nullptr;
  }

 private:
  int32_t TokenAt(const RunSpec& run, int position) const {
    const int wrong = run.wrong_from >= 0 && position >= run.wrong_from ? 31 : 0;
    return (position * 7 + run.slot * 13 + position / 11 + wrong) % shape_.vocabulary;
  }

  absl::Status Step(const std::vector<RunSpec>& specs, std::span<const PageId> target_pages,
                    int32_t head_row) {
    static constexpr PageId kCompany[2][4] = {{8, 9, 10, 11}, {12, 13, 14, 15}};
    std::vector<std::vector<int32_t>> tokens;
    std::vector<SequenceRows> runs;
    for (const RunSpec& spec : specs) {
      tokens.emplace_back();
      for (int i = 0; i < spec.rows; ++i) tokens.back().push_back(TokenAt(spec, spec.first + i));
      runs.push_back({.tail_slot = spec.slot,
                      .kind = spec.kind,
                      .first_position = spec.first,
                      .num_rows = spec.rows,
                      .tokens = tokens.back().data(),
                      .pages = spec.slot == kTarget ? target_pages.data() : kCompany[spec.slot - 1],
                      .num_pages = 4});
    }
    RETURN_IF_ERROR(ops_->AdvanceStep({.runs = runs}));
    if (graph_ == nullptr && has_records_) {
      RETURN_IF_ERROR(ops_->Repeat(StepPart::kModel, 0, [this] { return Forward(); }));
    } else if (graph_ == nullptr) {
      RETURN_IF_ERROR(Forward());
    } else {
      for (int i = 0; i < replays_; ++i) {
        CHECK(cudaGraphLaunch(graph_, device_.stream()) == cudaSuccess);
      }
    }
    return ops_->Head({.step = ops_->view(),
                       .rows = {&head_row, 1},
                       .mix = weights_.head_mix,
                       .norm = weights_.norm,
                       .head = weights_.head});
  }

  absl::Status Forward() {
    RETURN_IF_ERROR(ops_->Embed({.step = ops_->view(), .embed = weights_.embed}));
    for (size_t i = 0; i < weights_.layers.size(); ++i) {
      RETURN_IF_ERROR(Layer(weights_.layers[i], i > 0));
    }
    return ops_->MixBoundary({.step = ops_->view(), .finish_previous = true, .norm = {}});
  }

  absl::Status Layer(const LayerWeights& layer, bool finishes_previous) {
    const LayerArgs args{.step = ops_->view(), .layer = layer};
    RETURN_IF_ERROR(ops_->MixBoundary({.step = ops_->view(),
                                       .finish_previous = finishes_previous,
                                       .next = &layer.attn_mix,
                                       .norm = layer.attn_norm}));
    for (const auto phase : {&Ops::ProjectIn, &Ops::StoreRows, &Ops::ProjectQuery,
                             &Ops::SelectEntries, &Ops::Attend, &Ops::ProjectOut}) {
      RETURN_IF_ERROR((ops_.get()->*phase)(args));
    }
    RETURN_IF_ERROR(ops_->MixBoundary({.step = ops_->view(),
                                       .finish_previous = true,
                                       .next = &layer.ffn_mix,
                                       .norm = layer.ffn_norm}));
    RETURN_IF_ERROR(ops_->Route(args));
    return ops_->Experts(args);
  }

  const TestShape shape_;
  CudaDevice& device_;
  ModelWeights weights_;
  PageLayout layout_;
  std::byte* pages_ = nullptr;
  std::unique_ptr<Ops> ops_;
  cudaGraphExec_t graph_ = nullptr;
  int replays_ = 1;
  bool has_records_ = false;
  LaunchShape captured_shape_;
};

constexpr PageId kPlainPages[] = {0, 1, 2, 3};

RunSpec Prefill(int slot, int first, int rows) { return {slot, RowKind::kPrefill, first, rows}; }
RunSpec Verify(int first, int rows, int wrong_from = -1) {
  return {kTarget, RowKind::kVerify, first, rows, wrong_from};
}

// The prompt, then four tokens one at a time.
Steps Plain() {
  return {{Prefill(kTarget, 0, kPrompt)},
          {Verify(kPrompt, 1)},
          {Verify(kPrompt + 1, 1)},
          {Verify(kPrompt + 2, 1)},
          {Verify(kPrompt + 3, 1)}};
}

void ExpectInvariant(const TestShape& shape) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Model model(shape, *device);
  const Observation plain = model.Run(Plain(), kPlainPages);
  ASSERT_TRUE(std::any_of(plain.logits.begin(), plain.logits.end(),
                          [](float x) { return x != 0 && x == x; }));
  EXPECT_EQ(model.Run(Plain(), kPlainPages), plain) << "the same again";

  for (const int batch : {7, 8, 64, 300}) {  // rows of the last step
    for (const bool is_first : {true, false}) {
      Steps steps = Plain();
      steps[0].push_back(Prefill(1, 0, 100));
      const RunSpec company = Prefill(1, 100, batch - 1);
      steps.back().insert(is_first ? steps.back().begin() : steps.back().end(), company);
      EXPECT_EQ(model.Run(steps, kPlainPages), plain) << "batch " << batch << " " << is_first;
    }
  }
  for (const std::vector<int>& chunks :
       std::vector<std::vector<int>>{{256, 40}, {1, 3, 124, 168}, {130, 2, 127, 37}}) {
    Steps steps = Plain();
    steps.erase(steps.begin());
    int done = std::accumulate(chunks.begin(), chunks.end(), 0);
    for (auto chunk = chunks.rbegin(); chunk != chunks.rend(); ++chunk) {
      done -= *chunk;
      steps.insert(steps.begin(), {Prefill(kTarget, done, *chunk), Prefill(2, 3 * done, *chunk)});
      steps.front()[1].first = done;
    }
    EXPECT_EQ(model.Run(steps, kPlainPages), plain) << "chunks from " << chunks[0];
  }
  const PageId other_pages[] = {6, 3, 5, 0};
  EXPECT_EQ(model.Run(Plain(), other_pages), plain) << "other pages";
}

void ExpectDraftsLeaveNoTrace(const TestShape& shape) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Model model(shape, *device);
  const Observation plain = model.Run(Plain(), kPlainPages);
  const RunSpec prompt = Prefill(kTarget, 0, kPrompt);
  // All drafts right; the first wrong; long wrong tails over entry and window borders.
  EXPECT_EQ(model.Run({{prompt}, {Verify(kPrompt, 4)}}, kPlainPages), plain) << "k = 3";
  EXPECT_EQ(model.Run({{prompt},
                       {Verify(kPrompt, 5, kPrompt + 1)},
                       {Verify(kPrompt + 1, 64, kPrompt + 3)},
                       {Verify(kPrompt + 3, 1)}},
                      kPlainPages),
            plain)
      << "rejected drafts";
  // A fresh slot's first rows as replay, then on.
  EXPECT_EQ(
      model.Run(
          {{Prefill(kTarget, 0, 250)}, {{kTarget, RowKind::kReplay, 250, 48}}, {Verify(298, 2)}},
          kPlainPages),
      plain)
      << "replay";
}

// Verify steps as replays of one captured step: other tokens and positions, many times over.
void ExpectGraphsChangeNothing(const TestShape& shape) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Model model(shape, *device);
  const RunSpec company = {1, RowKind::kVerify, 100, 3};
  const Steps prompts = {{Prefill(kTarget, 0, kPrompt), Prefill(1, 0, 100)}};
  const Steps first = {{Verify(kPrompt, 3), company}};
  const Steps second = {{company, Verify(kPrompt + 3, 2)}};
  model.Run(prompts, kPlainPages);
  model.Continue(first, kPlainPages);
  const Observation eager = model.Continue(second, kPlainPages);

  model.Run(prompts, kPlainPages);
  model.Continue(first, kPlainPages);
  model.Capture(/*replays=*/1000);
  EXPECT_EQ(model.Continue(second, kPlainPages), eager);
  EXPECT_TRUE(model.FitsCapture());
  model.DropCapture();
}

// Steps of the same few shapes over and over: run once as they are, then recorded, then replayed.
void ExpectRecordsChangeNothing(const TestShape& shape) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Model model(shape, *device);
  Steps steps = {{Prefill(kTarget, 0, kPrompt), Prefill(1, 0, 100)}};
  for (int i = 0; i < 20; i += 2) {
    const RunSpec company = {1, RowKind::kVerify, 100 + i, 3, /*wrong_from=*/102 + i};
    steps.push_back({Verify(kPrompt + i, 4, kPrompt + i + 2), company});
  }
  steps.push_back({Verify(kPrompt + 20, 1)});
  const auto run = [&](bool has_records) {
    model.UseRecords(has_records);
    return model.Run(steps, kPlainPages);
  };
  const Observation eager = run(false);
  EXPECT_EQ(model.num_records(), 0);
  EXPECT_EQ(run(true), eager);
  EXPECT_GT(model.num_records(), 0);
  EXPECT_EQ(run(true), eager) << "from the first step on";
}

const TestShape kSmall = {};
const TestShape kRealHeads = {.ratios = {4, 128},
                              .hidden = 256,
                              .heads = 64,
                              .head_dim = 512,
                              .index_heads = 64,
                              .index_topk = 32,
                              .wide_expert = 1,
                              .has_bounded_scores = false};

TEST(CudaInvariance, BatchOrderChunksAndPagesChangeNoBit) { ExpectInvariant(kSmall); }
TEST(CudaInvariance, BatchOrderChunksAndPagesChangeNoBitAtRealHeads) {
  ExpectInvariant(kRealHeads);
}
TEST(CudaInvariance, RejectedDraftsAndReplayChangeNoBit) { ExpectDraftsLeaveNoTrace(kSmall); }
TEST(CudaInvariance, RejectedDraftsAndReplayChangeNoBitAtRealHeads) {
  ExpectDraftsLeaveNoTrace(kRealHeads);
}

TEST(CudaGraph, ThousandReplaysEqualTheEagerStep) { ExpectGraphsChangeNothing(kSmall); }
TEST(CudaGraph, RecordedStepsEqualEagerOnes) { ExpectRecordsChangeNothing(kSmall); }
TEST(CudaGraph, RecordedStepsEqualEagerOnesAtRealHeads) { ExpectRecordsChangeNothing(kRealHeads); }
TEST(CudaGraph, ThousandReplaysEqualTheEagerStepAtRealHeads) {
  ExpectGraphsChangeNothing(kRealHeads);
}

}  // namespace
}  // namespace baton::kernels::cuda
