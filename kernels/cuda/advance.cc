#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// AdvanceStep: the rows of a step become the view, and what the last step left unverified is
// settled. Where the host knows every position it says which bytes move, and kernels move them. A
// step that follows takes its positions from the last one's outcome on the device; the host stands
// at the latest there may be and catches up when it harvests that.
namespace baton::kernels::cuda {
namespace {

int PowerOfTwoBucket(int64_t count, int64_t smallest, int64_t limit) {
  int64_t bucket = smallest;
  while (bucket < count) bucket *= 2;
  return static_cast<int>(std::min(bucket, limit));
}

uint8_t* Bytes(std::byte* data) { return reinterpret_cast<uint8_t*>(data); }

}  // namespace

// What to launch for: few different numbers, so that a step can be captured once for each.
int CudaOps::RowBucket(int64_t count, int64_t limit) {
  int64_t bucket = 8;
  while (bucket < count && bucket < 128) bucket *= 2;
  if (bucket < count) bucket = (count + 127) / 128 * 128;
  return static_cast<int>(std::min(bucket, limit));
}

// The host's copy of the runs, and copies of the device's view, from the open batch.
void CudaOps::AddView(const AdvanceArgs& args) {
  Use(main_view_);
  runs_.clear();
  const auto copy = [this](const auto& values, const void* to) {
    using Value = typename std::remove_cvref_t<decltype(values)>::value_type;
    const Value* from = staging_.Put(std::span<const Value>(values));
    jobs_.push_back({.from = reinterpret_cast<const uint8_t*>(from),
                     .to = static_cast<uint8_t*>(const_cast<void*>(to)),
                     .bytes = static_cast<uint32_t>(values.size() * sizeof(Value))});
  };
  std::vector<int32_t> token, position, sequence, slots, before;
  std::vector<RunInfo> infos;
  num_table_pages_.clear();
  for (const SequenceRows& run : args.runs) {
    const auto index = static_cast<int32_t>(runs_.size());
    const auto row = static_cast<int32_t>(token.size());
    runs_.push_back({run.tail_slot, run.kind, row, run.num_rows, run.first_position});
    infos.push_back({run.tail_slot, run.kind == RowKind::kVerify ? 1 : 0, row, run.num_rows,
                     run.first_position});
    slots.push_back(run.tail_slot);
    before.push_back(
        run.first_position == 0 ? 0 : slots_.StreamsRow(run.tail_slot, run.first_position - 1));
    num_table_pages_.push_back(run.num_pages);
    copy(std::span(run.pages, static_cast<size_t>(run.num_pages)),
         view_.page_table + int64_t{index} * view_.max_pages);
    token.insert(token.end(), run.tokens, run.tokens + run.num_rows);
    sequence.insert(sequence.end(), static_cast<size_t>(run.num_rows), index);
    for (int i = 0; i < run.num_rows; ++i) position.push_back(run.first_position + i);
  }
  SetLaunch();
  infos.resize(static_cast<size_t>(options_.max_sequences));  // the rest has no rows
  copy(std::vector<int32_t>{num_rows_}, view_.num_rows);
  copy(token, view_.token);
  copy(position, view_.position);
  copy(sequence, view_.sequence);
  copy(slots, view_.tail_slot);
  copy(before, streams_before_);
  copy(infos, step_runs_);
}

// What the phases launch for, from the host's runs.
void CudaOps::SetLaunch() {
  int64_t entries = 0;
  int longest = 0;
  num_rows_ = 0;
  for (const StepRun& run : runs_) {
    entries = std::max(entries, run.end() / kCsaRatio);
    longest = std::max(longest, run.num_rows);
    num_rows_ += run.num_rows;
  }
  launch_ = {.rows = RowBucket(num_rows_, options_.max_rows),
             .sequences = RowBucket(static_cast<int64_t>(runs_.size()), options_.max_sequences),
             .entries = PowerOfTwoBucket(entries, 512, scratch_.max_entries),
             .has_short_runs = longest <= options_.max_draft_rows,
             .has_rows = num_rows_ > 0};
}

absl::Status CudaOps::RunCopyJobs(std::span<const CopyJob> jobs) {
  if (jobs.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(staging_.Begin());
  const CopyJob* device_jobs = staging_.Put(jobs);
  RETURN_IF_ERROR(staging_.Flush());
  return ToStatus(RunCopies(device_jobs, static_cast<int>(jobs.size()), stream()), "copies");
}

// Zeroes what rejected rows wrote into pages.
void CudaOps::ClearUnverifiedEntries(const SlotProgress& progress, int64_t position) {
  const PageLayout& layout = options_.layout;
  const auto clear = [this](std::byte* data, int bytes) {
    if (bytes > 0) jobs_.push_back({.to = Bytes(data), .bytes = static_cast<uint32_t>(bytes)});
  };
  const auto clear_entry = [&](PageId id, int layer, int64_t p, int ratio) {
    std::byte* page = options_.pages + static_cast<uint64_t>(id) * layout.stride_bytes();
    const auto row = static_cast<int>(p / ratio % (kPageTokens / ratio));
    if (ratio == kHcaRatio) {
      clear(page + layout.HcaRowData(layer, row), layout.row_data_bytes());
      clear(page + layout.HcaRowScales(layer, row), layout.row_scale_bytes());
      return;
    }
    clear(page + layout.CsaRowData(layer, row), layout.row_data_bytes());
    clear(page + layout.CsaRowScales(layer, row), layout.row_scale_bytes());
    clear(page + layout.IndexValues(layer, row), layout.index_value_bytes());
    clear(page + layout.IndexScales(layer, row), layout.index_scale_bytes());
  };
  ForUnverifiedEntries(progress, position, config_.compress_ratios, clear_entry);
}

// After the queued work the slot is as if rows at and after `position` had never run.
void CudaOps::Settle(int slot, int64_t position) {
  SlotProgress& progress = slots_.progress(slot);
  if (position > progress.folded) folds_.push_back({slot, progress.folded, position});
  progress.folded = std::max(progress.folded, position);
  ClearUnverifiedEntries(progress, position);
  progress.end = position;
  progress.pages.clear();
}

// Closes the batch and queues what AddView and Settle collected: copies and clears touch different
// memory.
absl::Status CudaOps::RunSettled() {
  const CopyJob* jobs = staging_.Put(std::span<const CopyJob>(jobs_));
  const FoldJob* folds = staging_.Put(std::span<const FoldJob>(folds_));
  RETURN_IF_ERROR(staging_.Flush());
  RETURN_IF_ERROR(
      ToStatus(RunCopies(jobs, static_cast<int>(jobs_.size()), stream()), "write the view"));
  const FoldArgs fold = {.slots = slots_.layout(),
                         .jobs = folds,
                         .num_jobs = static_cast<int>(folds_.size()),
                         .num_layers = static_cast<int>(options_.layout.shape().hca_layers.size())};
  jobs_.clear();
  folds_.clear();
  return ToStatus(RunFold(fold, stream()), "fold verified rows");
}

// The streams of the last main step are still the activations' when the next step, the drafter or a
// tail needs them.
absl::Status CudaOps::SaveStreams() {
  if (!has_unsaved_streams_) return absl::OkStatus();
  has_unsaved_streams_ = false;
  for (const StepRun& run : runs_) NoteStreams(run);
  return ToStatus(RunKeepStreams({.runs = main_view_.runs,
                                  .num_runs = static_cast<int>(runs_.size()),
                                  .before = streams_before_,
                                  .slots = slots_.layout(),
                                  .streams = act_.streams},
                                 stream()),
                  "keep the streams");
}

void CudaOps::NoteStreams(const StepRun& run) {
  SlotProgress& progress = slots_.progress(run.slot);
  progress.streams_before = run.first - 1;
  progress.streams_first = run.first + (run.kind == RowKind::kVerify ? 0 : run.num_rows - 1);
}

AdvanceLimits CudaOps::Limits() const {
  return {.max_sequences = options_.max_sequences,
          .num_tail_slots = options_.num_tail_slots,
          .max_draft_rows = options_.max_draft_rows,
          .max_pages = view_.max_pages,
          .max_rows = options_.max_rows};
}

absl::Status CudaOps::AdvanceStep(const AdvanceArgs& args) {
  RETURN_IF_ERROR(CheckHarvested());
  if (args.follows) return AdvanceFollowing(args);
  RETURN_IF_ERROR(SaveStreams());
  RETURN_IF_ERROR(CheckRuns(
      args, Limits(), [this](int slot) -> const SlotProgress& { return slots_.progress(slot); }));
  num_choices_ = num_accepted_ = 0;
  is_following_ = false;
  has_unsaved_streams_ = true;
  jobs_.clear();
  RETURN_IF_ERROR(staging_.Begin());
  AddView(args);
  for (const SequenceRows& run : args.runs) {
    Settle(run.tail_slot, run.first_position);
    slots_.progress(run.tail_slot).Begin(run);
  }
  return RunSettled();
}

absl::Status CudaOps::CheckHarvested() const {
  if (!earlier_) return absl::OkStatus();
  return absl::FailedPreconditionError("a step is queued behind one that is not harvested");
}

// Slots and most pages are in the view. Rejected entries need no clearing: the rows of this step,
// which are as many from a later one on, write all of them before anything reads them.
absl::Status CudaOps::AdvanceFollowing(const AdvanceArgs& args) {
  if (num_accepted_ != runs_.size()) {
    return absl::FailedPreconditionError("AdvanceStep: no accepted step to follow");
  }
  RETURN_IF_ERROR(CheckFollowing(args, Limits(), runs_, do_all_draft_));
  RETURN_IF_ERROR(outcome_.Queue(num_choices_));
  earlier_ = {.runs = std::exchange(runs_, {}), .num_choices = num_choices_};
  num_choices_ = num_accepted_ = 0;
  is_following_ = has_unsaved_streams_ = true;
  Use(main_view_);
  RETURN_IF_ERROR(AddFollowingRuns(args));
  FollowArgs follow;
  follow.num_runs = static_cast<int>(runs_.size());
  follow.rows_of_run = args.runs[0].num_rows;
  follow.outcome = outcome_.runs();
  follow.kept = kept_;
  follow.runs = step_runs_;
  follow.live_rows = const_cast<int32_t*>(view_.num_rows);
  follow.token = const_cast<int32_t*>(view_.token);
  follow.position = const_cast<int32_t*>(view_.position);
  follow.sequence = const_cast<int32_t*>(view_.sequence);
  follow.folds = following_folds_;
  follow.before = streams_before_;
  RETURN_IF_ERROR(ToStatus(RunFollow(follow, stream()), "AdvanceStep: follow"));
  return ToStatus(
      RunFold({.slots = slots_.layout(),
               .jobs = following_folds_,
               .num_jobs = follow.num_runs,
               .num_layers = static_cast<int>(options_.layout.shape().hca_layers.size())},
              stream()),
      "fold verified rows");
}

// The host's runs, and pages the view does not have yet.
absl::Status CudaOps::AddFollowingRuns(const AdvanceArgs& args) {
  jobs_.clear();
  RETURN_IF_ERROR(staging_.Begin());
  for (size_t r = 0; r < args.runs.size(); ++r) {
    const SequenceRows& run = args.runs[r];
    runs_.push_back({.slot = run.tail_slot,
                     .kind = run.kind,
                     .first_row = static_cast<int>(r) * run.num_rows,
                     .num_rows = run.num_rows,
                     .first = run.first_position});
    SlotProgress& progress = slots_.progress(run.tail_slot);
    const int64_t first = earlier_->runs[r].first / kPageTokens;
    const int64_t last = (runs_.back().end() - 1) / kPageTokens;
    progress.first_page = static_cast<int>(first);
    progress.pages.assign(run.pages + first, run.pages + last + 1);
    const int known = std::exchange(num_table_pages_[r], run.num_pages);
    if (run.num_pages <= known) continue;
    const std::span<const PageId> more(run.pages + known, run.pages + run.num_pages);
    const PageId* table = view_.page_table + static_cast<int64_t>(r) * view_.max_pages + known;
    jobs_.push_back({.from = reinterpret_cast<const uint8_t*>(staging_.Put(more)),
                     .to = reinterpret_cast<uint8_t*>(const_cast<PageId*>(table)),
                     .bytes = static_cast<uint32_t>(more.size_bytes())});
  }
  SetLaunch();
  if (jobs_.empty()) return absl::OkStatus();
  const CopyJob* jobs = staging_.Put(std::span<const CopyJob>(jobs_));
  RETURN_IF_ERROR(staging_.Flush());
  return ToStatus(RunCopies(jobs, static_cast<int>(jobs_.size()), stream()), "write pages");
}

// The earlier step is harvested: the runs of the current one stand where they are.
void CudaOps::CatchUp(std::span<const int32_t> accepted) {
  for (size_t r = 0; r < runs_.size(); ++r) {
    StepRun& run = runs_[r];
    run.first = earlier_->runs[r].first + accepted[r];
    SlotProgress& progress = slots_.progress(run.slot);
    progress.folded = run.first;
    progress.end = run.end();
    NoteStreams(run);
  }
  earlier_.reset();
}

void CudaOps::ResetTail(int32_t tail_slot) {
  CHECK(CheckHarvested().ok());
  CHECK(SaveStreams().ok());
  CHECK(slots_.Reset(device_, tail_slot).ok());
}

}  // namespace baton::kernels::cuda
