#include <algorithm>

#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"

// Accept, AdvanceDrafter, KeepDraft, Harvest: the host says beforehand what follows from any
// choice; choices, tokens, positions and what is kept stay on the device until Harvest. The host's
// runs stand at the main step meanwhile.
namespace baton::kernels::cuda {

// The MTP block has no entries.
DrafterPart CudaOps::PartOfDrafter(int64_t rows, size_t runs) const {
  return {.launch = {.rows = RowBucket(rows, options_.max_rows),
                     .sequences = RowBucket(static_cast<int64_t>(runs), options_.max_sequences),
                     .entries = 0,
                     .has_short_runs = true,
                     .has_rows = rows > 0},
          .most_rows = static_cast<int>(rows)};
}

absl::Status CudaOps::Accept(const AcceptArgs& args) {
  RETURN_IF_ERROR(CheckAccept(args, runs_,
                              {.num_kept = num_choices_,
                               .max_rows = options_.max_rows,
                               .max_head_rows = options_.max_head_rows}));
  RETURN_IF_ERROR(SaveStreams());
  std::vector<AcceptJob> jobs;
  std::vector<SampleRowArgs> drafts;
  int64_t known = 0, drafting = 0, longest = 0;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const AcceptRun& run = args.runs[i];
    const bool has_rows = run.first != AcceptRun::kNone;
    jobs.push_back({.choice = run.choice,
                    .next_token = run.next_token,
                    .has_rows = has_rows ? 1 : 0,
                    .first = has_rows ? run.first - static_cast<int32_t>(runs_[i].first) : 0,
                    .drafts = run.drafts ? 1 : 0});
    SampleRow draft;
    draft.spec = run.spec;
    draft.key = run.key;
    draft.is_draft = true;
    drafts.push_back(run.drafts ? ArgsOf(draft) : SampleRowArgs{});
    const int64_t rows = MostDrafterRows(run, runs_[i]) - (run.drafts ? 1 : 0);
    known += std::max<int64_t>(rows, 0);
    drafting += run.drafts ? 1 : 0;
    longest = std::max(longest, rows);
  }
  num_accepted_ = runs_.size();
  do_all_draft_ = std::ranges::all_of(args.runs, &AcceptRun::drafts);
  drafter_parts_[0] = PartOfDrafter(known, runs_.size());
  drafter_parts_[0].launch.has_short_runs = longest <= options_.max_draft_rows;
  drafter_parts_[1] = PartOfDrafter(drafting, static_cast<size_t>(drafting));
  RETURN_IF_ERROR(staging_.Begin());
  AcceptKernelArgs accept;
  accept.main = {.runs = main_view_.runs,
                 .token = main_view_.arrays.token,
                 .num_runs = static_cast<int>(num_accepted_)};
  accept.jobs = staging_.Put(std::span<const AcceptJob>(jobs));
  accept.drafts = staging_.Put(std::span<const SampleRowArgs>(drafts));
  accept.choices = outcome_.choices();
  accept.runs = outcome_.runs();
  accept.counts = drafter_counts_;
  accept.kept = kept_;
  RETURN_IF_ERROR(staging_.Flush());
  return ToStatus(RunAccept(accept, stream()), "Accept");
}

absl::Status CudaOps::AdvanceDrafter(DrafterRows rows) {
  const DrafterPart& part = drafter_parts_[rows == DrafterRows::kDrafting ? 1 : 0];
  Use(drafter_view_);
  launch_ = part.launch;
  num_rows_ = part.most_rows;
  DrafterViewArgs args;
  args.main_runs = main_view_.runs;
  args.main_token = main_view_.arrays.token;
  args.are_drafting = rows == DrafterRows::kDrafting;
  args.blocks = drafter_parts_[0].launch.sequences;  // as many as the step has
  args.runs = outcome_.runs();
  args.counts = drafter_counts_;
  args.slots = slots_.layout();
  args.streams = act_.streams;
  args.live_rows = const_cast<int32_t*>(view_.num_rows);
  args.token = const_cast<int32_t*>(view_.token);
  args.position = const_cast<int32_t*>(view_.position);
  args.sequence = const_cast<int32_t*>(view_.sequence);
  args.tail_slot = const_cast<int32_t*>(view_.tail_slot);
  args.view_runs = step_runs_;
  args.sources = sources_;
  return ToStatus(RunDrafterView(args, stream()), "AdvanceDrafter");
}

absl::Status CudaOps::KeepDraft() {
  SampleKernelArgs sample;
  sample.rows = kept_.rows;
  sample.num_rows = std::min(launch_.rows, kept_.max_rows);
  sample.keeps_scores = false;  // drafts are neither edited nor truncated
  sample.vocabulary = config_.vocab_size;
  sample.logits = act_.logits;
  sample.results = results_;
  RETURN_IF_ERROR(ToStatus(RunSample(sample, stream()), "KeepDraft: sample"));
  KeepDraftArgs keep;
  keep.num_rows = view_.num_rows;
  keep.results = results_;
  keep.kept = kept_;
  keep.token = const_cast<int32_t*>(view_.token);
  keep.position = const_cast<int32_t*>(view_.position);
  keep.runs = step_runs_;
  return ToStatus(RunKeepDraft(keep, stream()), "KeepDraft");
}

// The step's one wait. How many drafts were kept is the caller's to know: a record of KeepDraft
// keeps them unseen by the host.
absl::Status CudaOps::Harvest(const HarvestArgs& args) {
  const size_t choices = earlier_ ? earlier_->num_choices : num_choices_;
  const size_t runs = earlier_ ? earlier_->runs.size() : num_accepted_;
  const size_t drafts = runs == 0 ? 0 : std::min<size_t>(args.drafts.size() / runs, kMaxKeptDrafts);
  RETURN_IF_ERROR(CheckHarvest(args, choices, runs, drafts));
  if (!earlier_) RETURN_IF_ERROR(outcome_.Queue(choices));
  RETURN_IF_ERROR(outcome_.Await());
  for (size_t i = 0; i < choices; ++i) {
    const SampleResult& choice = outcome_.FetchedChoice(i);
    args.chosen[i] = RecordOf(choice);
    args.is_empty[i] = choice.is_empty != 0 ? 1 : 0;
  }
  for (size_t r = 0; r < runs; ++r) {
    args.accepted[r] = outcome_.FetchedRun(r).accepted;
    for (size_t d = 0; d < drafts; ++d) args.drafts[d * runs + r] = outcome_.FetchedDraft(d, r);
  }
  if (earlier_) {
    CatchUp(args.accepted);
  } else {
    num_choices_ = num_accepted_ = 0;
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
