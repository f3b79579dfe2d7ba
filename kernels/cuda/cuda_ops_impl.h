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
#include "kernels/cuda/expert_table.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/sample.h"
#include "kernels/cuda/slot_book.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/step_outcome.h"

namespace baton::kernels::cuda {

// The 17 phases on one GPU; the host queues kernels and keeps what it alone decides: where each
// slot stands (slot_book.h) and the runs of the step. Kernels launch for the live rows rounded up
// to a bucket and read the number of live rows on the device, so no result depends on the bucket.
// Engine thread.
class CudaOps final : public Ops {
 public:
  ~CudaOps() override;
  static absl::StatusOr<std::unique_ptr<CudaOps>> Create(CudaOptions options, CudaDevice& device);

  absl::Status AdvanceStep(const AdvanceArgs& args) override;    // advance.cc
  absl::Status Embed(const EmbedArgs& args) override;            // streams.cc
  absl::Status MixBoundary(const MixArgs& args) override;        // streams.cc
  absl::Status ProjectIn(const LayerArgs& args) override;        // attention.cc
  absl::Status StoreRows(const LayerArgs& args) override;        // attention.cc
  absl::Status ProjectQuery(const LayerArgs& args) override;     // attention.cc
  absl::Status SelectEntries(const LayerArgs& args) override;    // attention.cc
  absl::Status Attend(const LayerArgs& args) override;           // attention.cc
  absl::Status ProjectOut(const LayerArgs& args) override;       // attention.cc
  absl::Status Route(const LayerArgs& args) override;            // moe.cc
  absl::Status Experts(const LayerArgs& args) override;          // moe.cc
  absl::Status Head(const HeadArgs& args) override;              // streams.cc
  absl::Status Sample(const SampleArgs& args) override;          // sampler.cc
  absl::Status DraftInput(const DraftInputArgs& args) override;  // streams.cc
  absl::Status PackTail(const TailArgs& args) override;          // tail.cc
  absl::Status UnpackTail(const TailArgs& args) override;        // tail.cc
  absl::Status Digest(const DigestArgs& args) override;          // digests.cc
  absl::Status Accept(const AcceptArgs& args) override;          // drafts.cc
  absl::Status AdvanceDrafter(DrafterRows rows) override;        // drafts.cc
  absl::Status KeepDraft() override;                             // drafts.cc
  absl::Status Harvest(const HarvestArgs& args) override;        // drafts.cc
  absl::Status Repeat(StepPart part, int drafts,
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
    bool has_rows = true;         // there may be some: phases queue less for none
    auto operator<=>(const LaunchShape&) const = default;
  };
  const LaunchShape& launch_shape() const { return launch_; }

  // Graphs recorded so far.
  size_t num_graphs() const { return graphs_.size(); }

  const Activations& activations() const { return act_; }  // tests look at intermediates
  CudaDevice& device() { return device_; }

 private:
  CudaOps(CudaOptions options, CudaDevice& device);
  absl::Status Initialise();
  absl::Status AllocateViews();
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
    int drafts = 0;
    LaunchShape shape, drafting;
    auto operator<=>(const GraphKey&) const = default;
  };
  absl::StatusOr<cudaGraphExec_t> Record(const std::function<absl::Status()>& phases);
  void DropGraphs();

  // drafts.cc
  struct DrafterPart {
    LaunchShape launch;
    int most_rows = 0;
  };
  DrafterPart PartOfDrafter(int64_t rows, size_t runs) const;

  // advance.cc
  static int RowBucket(int64_t count, int64_t limit);
  void AddView(const AdvanceArgs& args);
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
  static TokenRecord RecordOf(const SampleResult& result);
  absl::Status FetchSamples(const SampleArgs& args, size_t first, size_t count);

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

  // Views in one block of device memory: of the main step, whose rows the host knows, and of the
  // drafter after it. The current one:
  struct View {
    StepView arrays;
    RunInfo* runs = nullptr;
  };
  View main_view_, drafter_view_;
  StepView view_;
  RunInfo* step_runs_ = nullptr;
  int num_rows_ = 0;  // live ones; of the drafter at most
  void Use(const View& view) {
    view_ = view.arrays;
    step_runs_ = view.runs;
  }
  std::vector<StepRun> runs_;  // of the main step, by sequence index
  LaunchShape launch_;
  std::map<GraphKey, cudaGraphExec_t> graphs_;
  std::set<GraphKey> seen_;           // run once without a record
  bool has_unsaved_streams_ = false;  // the last main step's streams are not yet in the slots

  const float *plain_ = nullptr, *compressed_ = nullptr;       // rope frequencies, [rope_dim / 2]
  std::map<int, ExpertTable> tables_;                          // by layer number
  std::byte* wire_ = nullptr;                                  // a tail on its way
  SampleResult *results_ = nullptr, *host_results_ = nullptr;  // [max_head_rows], fetched or drafts

  StepOutcome outcome_;
  size_t num_choices_ = 0, num_accepted_ = 0;  // kept; runs of the last Accept
  KeptDrafts kept_;
  const uint16_t** sources_ = nullptr;  // [max_rows] H of each drafter row
  int32_t* drafter_counts_ = nullptr;   // [3], drafts.h
  DrafterPart drafter_parts_[2];        // by DrafterRows
  std::vector<CopyJob> jobs_;
  std::vector<FoldJob> folds_;
  std::vector<int32_t> edit_of_;  // [V], -1 between rows
};

}  // namespace baton::kernels::cuda
