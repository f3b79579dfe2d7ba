#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
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
#include "kernels/cuda/host_step.h"
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

  // streams.cc
  absl::Status HeadOf(const HeadArgs& args, const HeadRows& chosen);

  // graphs.cc
  absl::StatusOr<cudaGraphExec_t> Record(const std::function<absl::Status()>& phases);
  void DropGraphs();

  // drafts.cc
  DrafterPart PartOfDrafter(int64_t rows, size_t runs) const;

  // advance.cc
  static int RowBucket(int64_t count, int64_t limit);
  AdvanceLimits Limits() const;
  absl::Status CheckHarvested() const;
  void AddView(const AdvanceArgs& args);
  void SetLaunch();
  void Settle(int slot, int64_t position);
  void ClearUnverifiedEntries(const SlotProgress& progress, int64_t position);
  absl::Status RunSettled();
  absl::Status SaveStreams();
  void NoteStreams(const StepRun& run);
  absl::Status AdvanceFollowing(const AdvanceArgs& args);
  absl::Status AddFollowingRuns(const AdvanceArgs& args);
  void CatchUp(std::span<const int32_t> accepted);
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

  // Views in one block of device memory: of the main step and of the drafter after it.
  View main_view_, drafter_view_;
  StepView view_;  // the current one
  RunInfo* step_runs_ = nullptr;
  int num_rows_ = 0;  // live ones; of the drafter at most
  void Use(const View& view) {
    view_ = view.arrays;
    step_runs_ = view.runs;
  }
  std::vector<StepRun> runs_;             // of the main step, by sequence index
  std::optional<EarlierStep> earlier_;    // while there is one, runs_ stand at the latest positions
  bool is_following_ = false;             // positions are the device's
  std::vector<int32_t> num_table_pages_;  // of each run, in the main view
  LaunchShape launch_;
  std::map<GraphKey, cudaGraphExec_t> graphs_;
  std::set<GraphKey> seen_;           // run once without a record
  bool has_unsaved_streams_ = false;  // the last main step's streams are not yet in the slots

  const float *plain_ = nullptr, *compressed_ = nullptr;       // rope frequencies, [rope_dim / 2]
  std::map<int, ExpertTable> tables_;                          // by layer number
  std::byte* wire_ = nullptr;                                  // a tail on its way
  SampleResult *results_ = nullptr, *host_results_ = nullptr;  // [max_head_rows], fetched or drafts

  StepOutcome outcome_;
  size_t num_choices_ = 0, num_accepted_ = 0;  // kept; runs of the step's Accept
  bool do_all_draft_ = false;                  // those runs
  FoldJob* following_folds_ = nullptr;         // [max_sequences]
  int32_t* streams_before_ = nullptr;          // [max_sequences], KeepStreamsArgs
  KeptDrafts kept_;
  const uint16_t** sources_ = nullptr;  // [max_rows] H of each drafter row
  int32_t* drafter_counts_ = nullptr;   // [3], drafts.h
  DrafterPart drafter_parts_[2];        // by DrafterRows
  std::vector<CopyJob> jobs_;
  std::vector<FoldJob> folds_;
  std::vector<int32_t> edit_of_;  // [V], -1 between rows
};

}  // namespace baton::kernels::cuda
