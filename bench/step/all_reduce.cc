#include "bench/step/all_reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>
#include <vector>

#include "bench/step/all_reduce_kernels.h"
#include "common/status.h"
#include "kernels/cuda/cuda_status.h"

namespace baton::bench {
namespace {

using kernels::cuda::ToStatus;

constexpr int kTimed = 256;  // all-reduces between the two events
constexpr int kReplays = 5;
constexpr int kBlockWords = kAllReduceThreads;  // of rows, a block
constexpr int kMaxBlocks = 128;                 // all of both ranks run at once

// Small values, different in each place and rank, whose sums need rounding.
uint16_t ValueOf(int rank, int i) {
  const float value = static_cast<float>((i * 37 + rank * 11) % 509) * 0.0173f - 3.0f;
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
}

uint16_t SumOf(int i) {
  const auto wide = [i](int rank) {
    return std::bit_cast<float>(static_cast<uint32_t>(ValueOf(rank, i)) << 16);
  };
  const uint32_t bits = std::bit_cast<uint32_t>(wide(0) + wide(1));
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

using Reduce = cudaError_t (*)(const AllReduceArgs&, cudaStream_t);

}  // namespace

struct AllReducePair::State {
  struct Rank {
    cudaStream_t stream = nullptr;
    cudaEvent_t start = nullptr, end = nullptr;
    cudaGraphExec_t graph = nullptr;
    uint2 *own = nullptr, *sum = nullptr, *words = nullptr;
    uint4* packets = nullptr;
    uint32_t *flags = nullptr, *epoch = nullptr, *has_failed = nullptr;
  };
  std::array<Rank, 2> ranks;
  int max_rows = 0, width = 0;

  ~State();
  int Words(int rows) const { return rows * width / 4; }
  absl::Status Allocate(int device);
  absl::Status Record(Rank& rank, AllReduceArgs args, Reduce reduce);
  absl::Status RecordBoth(int rows, Reduce reduce);
  absl::StatusOr<double> Replay();
  absl::Status Check(int rows);
  absl::StatusOr<double> TimeWith(int rows, Reduce reduce);
};

AllReducePair::State::~State() {
  for (int device = 0; device < 2; ++device) {
    Rank& rank = ranks[static_cast<size_t>(device)];
    cudaSetDevice(device);
    if (rank.graph != nullptr) cudaGraphExecDestroy(rank.graph);
    for (void* memory : {static_cast<void*>(rank.own), static_cast<void*>(rank.sum),
                         static_cast<void*>(rank.words), static_cast<void*>(rank.packets),
                         static_cast<void*>(rank.flags)}) {
      cudaFree(memory);
    }
    for (cudaEvent_t event : {rank.start, rank.end}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (rank.stream != nullptr) cudaStreamDestroy(rank.stream);
  }
  cudaSetDevice(0);
}

absl::Status AllReducePair::State::Allocate(int device) {
  Rank& rank = ranks[static_cast<size_t>(device)];
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "cudaSetDevice"));
  RETURN_IF_ERROR(ToStatus(cudaDeviceEnablePeerAccess(1 - device, 0), "peer access"));
  RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking), "stream"));
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&rank.start), "event"));
  RETURN_IF_ERROR(ToStatus(cudaEventCreate(&rank.end), "event"));
  const auto make = [](auto** memory, size_t count) {
    const size_t bytes = count * sizeof(**memory);
    RETURN_IF_ERROR(ToStatus(cudaMalloc(reinterpret_cast<void**>(memory), bytes), "cudaMalloc"));
    return ToStatus(cudaMemset(*memory, 0, bytes), "cudaMemset");
  };
  const auto words = static_cast<size_t>(Words(max_rows));
  RETURN_IF_ERROR(make(&rank.own, words));
  RETURN_IF_ERROR(make(&rank.sum, words));
  RETURN_IF_ERROR(make(&rank.words, 2 * words));
  RETURN_IF_ERROR(make(&rank.packets, 2 * words));
  RETURN_IF_ERROR(make(&rank.flags, kMaxBlocks + 2));
  rank.epoch = rank.flags + kMaxBlocks;
  rank.has_failed = rank.epoch + 1;
  std::vector<uint16_t> values(4 * words);
  for (size_t i = 0; i < values.size(); ++i) values[i] = ValueOf(device, static_cast<int>(i));
  return ToStatus(cudaMemcpy(rank.own, values.data(), 8 * words, cudaMemcpyHostToDevice), "rows");
}

// One all-reduce in front, so that both ranks start the timed ones together.
absl::Status AllReducePair::State::Record(Rank& rank, AllReduceArgs args, Reduce reduce) {
  if (rank.graph != nullptr) cudaGraphExecDestroy(std::exchange(rank.graph, nullptr));
  RETURN_IF_ERROR(
      ToStatus(cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal), "capture"));
  cudaError_t error = cudaSuccess;
  const auto keep = [&error](cudaError_t next) {
    if (error == cudaSuccess) error = next;
  };
  for (int i = 0; i <= kTimed; ++i) {
    args.index = i;
    keep(reduce(args, rank.stream));
    if (i == 0) keep(cudaEventRecordWithFlags(rank.start, rank.stream, cudaEventRecordExternal));
  }
  keep(cudaEventRecordWithFlags(rank.end, rank.stream, cudaEventRecordExternal));
  keep(RunAdvanceEpoch(rank.epoch, kTimed + 1, rank.stream));
  cudaGraph_t graph = nullptr;
  keep(cudaStreamEndCapture(rank.stream, &graph));
  if (error == cudaSuccess) keep(cudaGraphInstantiate(&rank.graph, graph, 0));
  if (graph != nullptr) cudaGraphDestroy(graph);
  return ToStatus(error, "record all-reduces");
}

absl::Status AllReducePair::State::RecordBoth(int rows, Reduce reduce) {
  for (int device = 0; device < 2; ++device) {
    Rank& rank = ranks[static_cast<size_t>(device)];
    const Rank& peer = ranks[static_cast<size_t>(1 - device)];
    RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "cudaSetDevice"));
    AllReduceArgs args;
    args.rank = device;
    args.count = Words(rows);
    args.blocks = std::min(kMaxBlocks, (args.count + kBlockWords - 1) / kBlockWords);
    args.epoch = rank.epoch;
    args.own = rank.own;
    args.sum = rank.sum;
    args.to_packets = peer.packets;
    args.packets = rank.packets;
    args.to_words = peer.words;
    args.words = rank.words;
    args.to_flags = peer.flags;
    args.flags = rank.flags;
    args.has_failed = rank.has_failed;
    RETURN_IF_ERROR(Record(rank, args, reduce));
  }
  return absl::OkStatus();
}

// Microseconds of one all-reduce.
absl::StatusOr<double> AllReducePair::State::Replay() {
  for (int device = 0; device < 2; ++device) {
    const Rank& rank = ranks[static_cast<size_t>(device)];
    RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "cudaSetDevice"));
    RETURN_IF_ERROR(ToStatus(cudaGraphLaunch(rank.graph, rank.stream), "all-reduces"));
  }
  for (const Rank& rank : ranks)
    RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(rank.stream), "all-reduces"));
  float milliseconds = 0;
  RETURN_IF_ERROR(
      ToStatus(cudaEventElapsedTime(&milliseconds, ranks[1].start, ranks[1].end), "time"));
  return 1e3 * double{milliseconds} / kTimed;
}

absl::Status AllReducePair::State::Check(int rows) {
  const auto words = static_cast<size_t>(Words(rows));
  for (int device = 0; device < 2; ++device) {
    const Rank& rank = ranks[static_cast<size_t>(device)];
    RETURN_IF_ERROR(ToStatus(cudaSetDevice(device), "cudaSetDevice"));
    uint32_t has_failed = 0;
    std::vector<uint16_t> sums(4 * words);
    RETURN_IF_ERROR(
        ToStatus(cudaMemcpy(&has_failed, rank.has_failed, 4, cudaMemcpyDeviceToHost), "flag"));
    RETURN_IF_ERROR(
        ToStatus(cudaMemcpy(sums.data(), rank.sum, 8 * words, cudaMemcpyDeviceToHost), "sums"));
    if (has_failed != 0)
      return absl::DeadlineExceededError("all-reduce: the peer's rows never came");
    for (size_t i = 0; i < sums.size(); ++i) {
      if (sums[i] == SumOf(static_cast<int>(i))) continue;
      return absl::DataLossError(
          absl::StrFormat("all-reduce: rank %d, element %d is %04x, want %04x", device, i, sums[i],
                          SumOf(static_cast<int>(i))));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<double> AllReducePair::State::TimeWith(int rows, Reduce reduce) {
  RETURN_IF_ERROR(RecordBoth(rows, reduce));
  std::vector<double> times;
  for (int i = 0; i < kReplays; ++i) {
    ASSIGN_OR_RETURN(const double time, Replay());
    times.push_back(time);
  }
  RETURN_IF_ERROR(Check(rows));
  RETURN_IF_ERROR(ToStatus(cudaSetDevice(0), "cudaSetDevice"));
  std::sort(times.begin(), times.end());
  return times[kReplays / 2];
}

absl::StatusOr<AllReducePair> AllReducePair::Create(int max_rows, int width) {
  int devices = 0, can_reach = 0, can_be_reached = 0;
  cudaGetDeviceCount(&devices);
  if (devices >= 2) {
    cudaDeviceCanAccessPeer(&can_reach, 0, 1);
    cudaDeviceCanAccessPeer(&can_be_reached, 1, 0);
  }
  if (can_reach == 0 || can_be_reached == 0) {
    return absl::UnavailableError(
        absl::StrFormat("%d GPUs, none reaches another's memory", devices));
  }
  auto state = std::make_unique<State>();
  state->max_rows = max_rows;
  state->width = width;
  RETURN_IF_ERROR(state->Allocate(1));
  RETURN_IF_ERROR(state->Allocate(0));  // the last: it stays this thread's GPU
  return AllReducePair(std::move(state));
}

AllReducePair::AllReducePair(std::unique_ptr<State> state) : state_(std::move(state)) {}
AllReducePair::AllReducePair(AllReducePair&& other) noexcept = default;
AllReducePair::~AllReducePair() = default;

absl::StatusOr<AllReduceTime> AllReducePair::Time(int rows) {
  AllReduceTime time;
  ASSIGN_OR_RETURN(time.packets, state_->TimeWith(rows, RunPacketReduce));
  ASSIGN_OR_RETURN(time.blocks, state_->TimeWith(rows, RunBlockReduce));
  return time;
}

}  // namespace baton::bench
