#include "kernels/cuda/drafts.h"

// What is accepted, and drafts that follow one another: a few integers a row or run. Acceptance and
// KeepDraft are one block, which is enough for the most sequences a step may have.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kStreamParts = 8;  // blocks of a run: 32 KiB a position
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int32_t kNone = -1;

__device__ int Thread() { return static_cast<int>(threadIdx.x); }

// Rows of a run that stay; their last choice.
__device__ int32_t AcceptRows(const AcceptKernelArgs& args, const RunInfo& run, int32_t choice,
                              int32_t& chosen) {
  chosen = kNone;
  if (!run.is_verify) {
    if (choice != kNone && args.choices[choice].is_empty == 0) chosen = args.choices[choice].token;
    return run.num_rows;
  }
  for (int32_t i = 0; i < run.num_rows; ++i) {
    const SampleResult& result = args.choices[choice + i];
    if (result.is_empty != 0) return i;
    chosen = result.token;
    const bool is_draft_right =
        i + 1 < run.num_rows && args.main.token[run.first_row + i + 1] == chosen;
    if (!is_draft_right) return i + 1;
  }
  return run.num_rows;
}

// But places among other runs' rows; draft_row 0: it drafts.
__device__ DrafterRun Follow(const AcceptKernelArgs& args, int r) {
  const RunInfo run = args.main.runs[r];
  const AcceptJob job = args.jobs[r];
  DrafterRun follow;
  int32_t chosen;
  follow.accepted = AcceptRows(args, run, job.choice, chosen);
  follow.next_token = run.is_verify || job.next_token == kNone ? chosen : job.next_token;
  if (job.has_rows == 0) return follow;
  follow.first = static_cast<int32_t>(run.first) + job.first;
  const bool has_next = follow.next_token != kNone;
  const int32_t rows = max(follow.accepted - (has_next ? 0 : 1) - job.first, 0);
  if (job.drafts != 0 && has_next && rows > 0) follow.draft_row = 0;
  follow.num_known = rows - (follow.draft_row == 0 ? 1 : 0);
  return follow;
}

// The sum of `own` over the threads below this one and, in `total`, over all.
__device__ int SumBelow(int own, int& total) {
  __shared__ int warp_sums[kThreads / kWarp];
  const int lane = Thread() % kWarp, warp = Thread() / kWarp;
  int sum = own;
  for (int d = 1; d < kWarp; d *= 2) {
    const int below = __shfl_up_sync(kFullWarp, sum, d);
    if (lane >= d) sum += below;
  }
  __syncthreads();  // the last call's sums are read
  if (lane == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  return before + sum - own;
}

__global__ void __launch_bounds__(kThreads) AcceptKernel(AcceptKernelArgs args) {
  // Rows that fill the bucket choose something and keep nothing.
  SampleRowArgs pad;
  pad.greedy = pad.is_draft = 1;
  for (int row = Thread(); row < args.kept.max_rows; row += kThreads) args.kept.rows[row] = pad;
  __syncthreads();
  int known = 0, drafting = 0;
  for (int base = 0; base < args.main.num_runs; base += kThreads) {
    const int r = base + Thread();
    DrafterRun follow;
    if (r < args.main.num_runs) follow = Follow(args, r);
    int more_known, more_drafting;
    follow.first_known = known + SumBelow(follow.num_known, more_known);
    const int draft_row = drafting + SumBelow(follow.draft_row == 0 ? 1 : 0, more_drafting);
    known += more_known;
    drafting += more_drafting;
    if (follow.draft_row == 0) {
      follow.draft_row = draft_row;
      SampleRowArgs row = args.drafts[r];
      row.logits_row = draft_row;
      row.position = args.main.runs[r].first + follow.accepted + 1;
      args.kept.rows[draft_row] = row;
    }
    if (r < args.main.num_runs) args.runs[r] = follow;
  }
  if (Thread() != 0) return;
  args.counts[0] = known;
  args.counts[1] = drafting;
  args.counts[2] = args.main.num_runs;
  *args.kept.num_kept = 0;
}

// Grid: (runs, parts of a position's streams). A thread moves the same bytes of every row, the
// position before first.
__global__ void __launch_bounds__(kThreads) KeepStreamsKernel(KeepStreamsArgs args) {
  const RunInfo run = args.runs[blockIdx.x];
  const int32_t before = args.before[blockIdx.x];
  const uint64_t pieces = args.slots.stream_bytes / sizeof(uint4);
  auto* kept = reinterpret_cast<uint4*>(args.slots.base + args.slots.slot_bytes * run.slot +
                                        args.slots.streams_offset);
  const auto* streams = reinterpret_cast<const uint4*>(args.streams) + pieces * run.first_row;
  const int first = run.is_verify ? 0 : run.num_rows - 1;
  for (uint64_t i = blockIdx.y * kThreads + Thread(); i < pieces; i += gridDim.y * kThreads) {
    if (run.first > 0 && before != 0) kept[i] = kept[pieces * before + i];
    for (int row = first; row < run.num_rows; ++row) {
      kept[pieces * (1 + row - first) + i] = streams[pieces * row + i];
    }
  }
}

// A thread for each run. The rows of the last step are all of a verify run, so that the streams of
// the last that stays are as many places behind those before the run as rows stay. A run whose
// token could not be chosen goes on from any: nothing of it will count.
__global__ void __launch_bounds__(kThreads) FollowKernel(FollowArgs args) {
  const int r = static_cast<int>(blockIdx.x) * kThreads + Thread();
  if (r == 0) *args.live_rows = args.num_runs * args.rows_of_run;
  if (r >= args.num_runs) return;
  RunInfo run = args.runs[r];
  const DrafterRun last = args.outcome[r];
  args.folds[r] = {run.slot, run.first, run.first + last.accepted};
  args.before[r] = last.accepted;
  run.first += last.accepted;
  run.first_row = r * args.rows_of_run;
  run.num_rows = args.rows_of_run;
  args.runs[r] = run;
  for (int i = 0; i < run.num_rows; ++i) {
    int32_t token = last.next_token;
    if (i > 0) {
      token = last.draft_row == kNone
                  ? kNone
                  : args.kept.tokens[(i - 1) * args.kept.max_rows + last.draft_row];
    }
    args.token[run.first_row + i] = max(token, 0);
    args.position[run.first_row + i] = static_cast<int32_t>(run.first) + i;
    args.sequence[run.first_row + i] = r;
  }
}

// The rows of one run. H of a position before the run, or of one that is drafted from, is the
// slot's: streams of the position before the run, then of those kept, all of a verify run and the
// last of others. Of the known ones the step still has it.
__device__ void WriteRun(const DrafterViewArgs& args, int r) {
  const RunInfo main = args.main_runs[r];
  const DrafterRun run = args.runs[r];
  if (args.are_drafting && run.draft_row == kNone) return;
  const auto begin = static_cast<int32_t>(main.first), end = begin + run.accepted;
  const int32_t first = args.are_drafting ? end - 1 : run.first;
  const int32_t rows = args.are_drafting ? 1 : run.num_known;
  const int32_t first_row = args.are_drafting ? run.draft_row : run.first_known;
  const int32_t index = args.are_drafting ? run.draft_row : r;
  const int32_t first_kept = main.is_verify ? begin : begin + main.num_rows - 1;
  const uint8_t* slot =
      args.slots.base + args.slots.slot_bytes * main.slot + args.slots.streams_offset;
  const auto* streams = reinterpret_cast<const uint8_t*>(args.streams);
  for (int32_t i = Thread(); i < rows; i += kThreads) {
    const int32_t position = first + i, row = first_row + i;
    const int32_t next_row = main.first_row + position + 1 - begin;
    args.token[row] = position + 1 == end ? run.next_token : args.main_token[next_row];
    args.position[row] = position;
    args.sequence[row] = index;
    const bool is_of_step = !args.are_drafting && position >= begin;
    const int32_t at = is_of_step          ? next_row - 1
                       : position >= begin ? 1 + position - first_kept
                                           : 0;
    args.sources[row] = reinterpret_cast<const uint16_t*>((is_of_step ? streams : slot) +
                                                          args.slots.stream_bytes * at);
  }
  if (Thread() != 0) return;
  args.tail_slot[index] = main.slot;
  args.view_runs[index] = {main.slot, 0, first_row, rows, first};
}

// Grid: runs to launch for; of the view, a run past the live ones has no rows.
__global__ void __launch_bounds__(kThreads) DrafterViewKernel(DrafterViewArgs args) {
  const int r = static_cast<int>(blockIdx.x), runs = args.counts[2];
  const int live = args.are_drafting ? args.counts[1] : runs;
  if (r >= live && Thread() == 0) args.view_runs[r] = RunInfo{};
  if (r == 0 && Thread() == 0) *args.live_rows = args.counts[args.are_drafting ? 1 : 0];
  if (r < runs) WriteRun(args, r);
}

__global__ void __launch_bounds__(kThreads) KeepDraftKernel(KeepDraftArgs args) {
  const int num_rows = *args.num_rows, index = *args.kept.num_kept;
  for (int row = Thread(); row < num_rows; row += kThreads) {
    const int32_t token = args.results[row].token;
    if (index < args.kept.max_drafts) args.kept.tokens[index * args.kept.max_rows + row] = token;
    args.token[row] = token;
    ++args.position[row];
    ++args.runs[row].first;
    ++args.kept.rows[row].position;
  }
  __syncthreads();
  if (threadIdx.x == 0) *args.kept.num_kept = index + 1;
}

}  // namespace

cudaError_t RunAccept(const AcceptKernelArgs& args, cudaStream_t stream) {
  AcceptKernel<<<1, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunKeepStreams(const KeepStreamsArgs& args, cudaStream_t stream) {
  if (args.num_runs == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(args.num_runs), kStreamParts);
  KeepStreamsKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunFollow(const FollowArgs& args, cudaStream_t stream) {
  const int blocks = (args.num_runs + kThreads - 1) / kThreads;
  FollowKernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunDrafterView(const DrafterViewArgs& args, cudaStream_t stream) {
  DrafterViewKernel<<<static_cast<unsigned>(args.blocks), kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

cudaError_t RunKeepDraft(const KeepDraftArgs& args, cudaStream_t stream) {
  KeepDraftKernel<<<1, kThreads, 0, stream>>>(args);
  return cudaPeekAtLastError();
}

}  // namespace baton::kernels::cuda
