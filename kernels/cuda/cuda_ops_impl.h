#pragma once

#include <compare>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "kernels/cuda/activations.h"
#include "kernels/cuda/copy.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/drafts.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/slot_book.h"
#include "kernels/cuda/staging.h"

namespace baton::kernels::cuda {

// The 17 phases on one GPU; the host queues kernels and keeps what it alone decides: where each
// slot stands (slot_book.h) and the runs of the step. Kernels launch for the live rows rounded up
// to a bucket and read the number of live rows on the device, so no result depends on the bucket.
// Engine thread.
class CudaOps final : public Ops {
 public:
  ~CudaOps() override;
  static absl::StatusOr<std::unique_ptr<CudaOps>> Create(CudaOptions options, CudaDevice& device);

  absl::Status AdvanceStep(const AdvanceArgs& args) override;          // advance.cc
  absl::Status Embed(const EmbedArgs& args) override;                  // streams.cc
  absl::Status MixBoundary(const MixArgs& args) override;              // streams.cc
  absl::Status ProjectIn(const LayerArgs& args) override;              // attention.cc
  absl::Status StoreRows(const LayerArgs& args) override;              // attention.cc
  absl::Status ProjectQuery(const LayerArgs& args) override;           // attention.cc
  absl::Status SelectEntries(const LayerArgs& args) override;          // attention.cc
  absl::Status Attend(const LayerArgs& args) override;                 // attention.cc
  absl::Status ProjectOut(const LayerArgs& args) override;             // attention.cc
  absl::Status Route(const LayerArgs& args) override;                  // moe.cc
  absl::Status Experts(const LayerArgs& args) override;                // moe.cc
  absl::Status Head(const HeadArgs& args) override;                    // streams.cc
  absl::Status Sample(const SampleArgs& args) override;                // sampler.cc
  absl::Status DraftInput(const DraftInputArgs& args) override;        // streams.cc
  absl::Status PackTail(const TailArgs& args) override;                // tail.cc
  absl::Status UnpackTail(const TailArgs& args) override;              // tail.cc
  absl::Status Digest(const DigestArgs& args) override;                // digests.cc
  absl::Status BeginDrafts(std::span<const SampleRow> rows) override;  // drafts.cc
  absl::Status KeepDraft() override;                                   // drafts.cc
  absl::Status TakeDrafts(std::span<int32_t> tokens) override;         // drafts.cc
  absl::Status Repeat(StepPart part,
                      const std::function<absl::Status()>& phases) override;  // graphs.cc
  const StepView& view() const override { return view_; }
  void ResetTail(int32_t tail_slot) override;

  // What the phases between AdvanceStep and Head launch for, buckets of the step's sizes. Two steps
  // of one shape queue the same work, so that a captured one serves the other.
  struct LaunchShape {
    int rows = 0;
    int sequences = 0;
    int entries = 0;              // CSA entries the longest sequence may have
    bool has_short_runs = false;  // none longer than a verify run may be
    auto operator<=>(const LaunchShape&) const = default;
  };
  const LaunchShape& launch_shape() const { return launch_; }

  // Graphs recorded so far.
  size_t num_graphs() const { return graphs_.size(); }

  const Activations& activations() const { return act_; }  // tests look at intermediates
  CudaDevice& device() { return device_; }

 private:
  // Runs of the step, as the host remembers them.
  struct StepRun {
    int slot = 0;
    RowKind kind = RowKind::kPrefill;
    int first_row = 0;
    int num_rows = 0;
    int64_t first = 0;  // position
    int64_t end() const { return first + num_rows; }
  };
  // A layer's experts as kernels take them; the shared one is the last.
  struct ExpertTable {
    const ExpertWeights* source = nullptr;
    const MatrixView* matrices = nullptr;  // [3, E + 1] w1, w3, w2
    const uint8_t* is_promoted = nullptr;  // [E + 1]
  };
  // Projections of all experts from one input: one row of the table, or two.
  struct ExpertStage {
    const ExpertTable* table = nullptr;
    int matrix = 0;                // w1 (and w3): 0, w2: 2
    uint16_t* second_y = nullptr;  // of w3
    int tile_rows = 0;
    const Matrix* routed = nullptr;  // any of the routed ones: shape and format
    LinearArgs linear;               // but the weight
  };

  CudaOps(CudaOptions options, CudaDevice& device);
  absl::Status Initialise();
  absl::Status AllocateDrafts();
  absl::Status MakeFrequencies();

  cudaStream_t stream() const { return device_.stream(); }
  DeviceStep Step() const;
  LayerPages PagesOf(const LayerWeights& layer) const;
  int RankOf(int layer) const;  // among the layers of its kind
  const float* FrequenciesOf(int ratio) const { return ratio == 0 ? plain_ : compressed_; }

  // streams.cc: rows of a Head.
  struct HeadRows {
    const int32_t* num_rows = nullptr;  // device; null: all `rows`
    int rows = 0;
    const int32_t* x_rows = nullptr;  // device; null: 0, 1, ..
  };
  absl::Status HeadOf(const HeadArgs& args, const HeadRows& chosen);

  // graphs.cc
  struct GraphKey {
    StepPart part = StepPart::kModel;
    LaunchShape shape;
    auto operator<=>(const GraphKey&) const = default;
  };
  absl::StatusOr<cudaGraphExec_t> Record(const std::function<absl::Status()>& phases);
  void DropGraphs();

  // advance.cc
  absl::Status WriteView(const AdvanceArgs& args);
  void Settle(int slot, int64_t position);
  void ClearUnverifiedEntries(const SlotProgress& progress, int64_t position);
  absl::Status RunSettled();
  absl::Status SaveStreams();
  absl::Status RunCopyJobs(std::span<const CopyJob> jobs);

  // attention.cc
  LinearArgs Fp8Linear(const Matrix* weight, const uint16_t* x, uint16_t* y) const;
  LinearArgs PlainLinear(const Matrix* weight, const uint16_t* x, float* y) const;
  absl::Status Multiply(const LinearArgs& linear, const char* what);
  absl::Status MultiplyAll(std::span<const LinearArgs> linears, const char* what);
  RowsArgs RowsArgsOf(const LayerWeights& layer) const;

  // moe.cc
  absl::StatusOr<const ExpertTable*> TableOf(const LayerWeights& layer);
  absl::Status BuildTable(const LayerWeights& layer, ExpertTable& table);
  absl::Status PlanExperts(int tile_rows);
  absl::Status RunStage(const ExpertStage& stage);

  // sampler.cc
  struct RowEdits;
  static SampleRowArgs ArgsOf(const SampleRow& row);  // but its edits
  SampleRowArgs DescribeRow(const SampleRow& row, RowEdits& edits);
  absl::Status FinishSamples(const SampleArgs& args, size_t first, size_t count);

  // tail.cc
  absl::Status DigestOnDevice(const DigestArgs& args,
                              std::span<const size_t> chosen);  // digests.cc

  absl::Status CheckTail(const TailArgs& args, const TailLayout& tail) const;
  void AddWindowJobs(const TailArgs& args, const TailLayout& tail, bool packs);
  void AddCompressorJobs(const TailArgs& args, const TailLayout& tail, bool packs);
  void AddJob(bool packs, uint8_t* slot, uint64_t wire_offset, size_t bytes);

  const CudaOptions options_;
  const ModelConfig& config_;  // options_.config
  CudaDevice& device_;
  ModelShape shape_;
  Activations act_;
  Scratch scratch_;
  SlotBook slots_;
  Staging staging_;

  // The view: one block of device memory, written by AdvanceStep.
  std::byte* step_memory_ = nullptr;
  RunInfo* step_runs_ = nullptr;
  StepView view_;
  std::vector<StepRun> runs_;       // by sequence index
  std::vector<int32_t> positions_;  // by row
  LaunchShape launch_;
  std::map<GraphKey, cudaGraphExec_t> graphs_;
  std::set<GraphKey> seen_;           // run once without a record
  bool has_unsaved_streams_ = false;  // the last main step's streams are not yet in the slots

  const float *plain_ = nullptr, *compressed_ = nullptr;       // rope frequencies, [rope_dim / 2]
  std::map<int, ExpertTable> tables_;                          // by layer number
  std::byte* wire_ = nullptr;                                  // a tail on its way
  SampleResult *results_ = nullptr, *host_results_ = nullptr;  // [max_head_rows]
  KeptDrafts kept_;
  int32_t* host_drafts_ = nullptr;  // [kMaxKeptDrafts, max_head_rows]
  int num_draft_rows_ = 0;          // of the last BeginDrafts
  std::vector<CopyJob> jobs_;
  std::vector<FoldJob> folds_;
  std::vector<int32_t> edit_of_;  // [V], -1 between rows
};

}  // namespace baton::kernels::cuda
