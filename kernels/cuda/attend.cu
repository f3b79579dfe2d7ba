#include <algorithm>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_load.cuh"
#include "kernels/cuda/attend_quad.cuh"
#include "kernels/cuda/attend_sums.cuh"

// A block of threads computes one row's 64 heads at a time, over all segments of keys or over one
// of them. Two warpgroups bring blocks of 64 keys into shared memory as bf16, in two stages; two
// multiply, each half of the channels: half of each score's sum, then softmax weights of 32 of the
// keys, then its channels' sums over all keys, in registers. All tiles are wgmma's, in slabs of 64
// channels with the 128-byte swizzle, padded with zeros up to 64 heads and 512 channels. Of few
// rows four blocks compute each: attend_quad_shared.cuh.
namespace baton::kernels::cuda {
namespace {

constexpr int kMathRegisters = 192, kLoadRegisters = 64;

struct SingleShared : Tiles {
  float4 scores[2][4][kGroup];  // halves of sums, for each warpgroup from the other
  int is_next_full;             // when a block's weights are made: the block behind it is there
};
static_assert(kSharedBytes<SingleShared> <= 227 * 1024);

// A multiplying warpgroup.
template <bool kIsBounded>
class SingleAttention : HeadSums<kIsBounded, SingleShared> {
  using Base = HeadSums<kIsBounded, SingleShared>;
  using Base::all_denominator_, Base::all_max_, Base::args_, Base::denominator_, Base::group_,
      Base::head_, Base::max_, Base::pair_, Base::s_, Base::sums_, Base::thread_;
  using Place = Cursor<SingleShared::kStages>;
  static constexpr int kTileBytes = SingleShared::kTileBytes;
  static constexpr int kSlabs = SingleShared::kSlabs;

 public:
  __device__ SingleAttention(const AttendArgs& args, SingleShared& shared) : Base(args, shared) {}

  __device__ void Run() {
    if (args_.shape.head_dim < kSlab * kSlabs) ClearQuery();
    index_ = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x);
    Item item = NextItem();
    if (item.blocks == 0) return;
    StartQuery(item);
    for (int number = 0; item.blocks > 0; ++number) {
      const Item next = AddBlocks(item);
      if (args_.segments > 1) {
        Base::StorePartial(item);
      } else {
        Base::Finish(item, s_.angles[number % SingleShared::kAngleSets]);
      }
      item = next;
    }
  }

 private:
  // No blocks: there is none.
  __device__ Item NextItem() {
    const int items = NumItems(args_);
    Item item;
    for (index_ += static_cast<int>(gridDim.x); index_ < items && item.blocks == 0;) {
      item = ItemAt(args_, index_);
      if (item.blocks == 0) index_ += static_cast<int>(gridDim.x);
    }
    return item;
  }

  __device__ uint8_t* OwnQuery() const { return s_.query + group_ * (kTileBytes / 2); }

  __device__ void ClearQuery() const {
    for (int at = 16 * thread_; at < kTileBytes / 2; at += 16 * kGroup) {
      *reinterpret_cast<uint4*>(OwnQuery() + at) = make_uint4(0, 0, 0, 0);
    }
    MeetAt(kFirstGroup + group_, kGroup);
  }

  // Starts the copies of this warpgroup's channels.
  __device__ void StartQuery(const Item& item) const {
    const int chunk = thread_ % 32, channel = group_ * (kSlab * kSlabs / 2) + 8 * chunk;
    const int dim = args_.shape.head_dim, heads = args_.shape.heads - item.first_head;
    if (channel < dim) {
      const int64_t first = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
      const Bf16* query = args_.query + first * dim + channel;
      const uint32_t to = SharedAddress(OwnQuery() + chunk / 8 * kSlabBytes);
#pragma unroll
      for (int i = 0; i < kHeads / 4; ++i) {
        const int head = thread_ / 32 + 4 * i;
        CopyAsync16(to + Swizzled(head, chunk % 8), query + min(head, heads - 1) * dim,
                    head < heads);
      }
    }
    CopyAsyncCommit();
  }
  __device__ void AwaitQuery() const {
    CopyAsyncWait<0>();
    FenceAsyncProxy();
    MeetAt(kFirstGroup + group_, kGroup);
  }

  // Returns the next item, whose query is on its way. While a block's values are added, the next
  // one's scores become weights, within a segment.
  __device__ Item AddBlocks(const Item& item) {
    Item next;
    int segment = 0;
    AwaitQuery();
    for (int b = 0; b < item.blocks;) {
      MultiplyScores(cursor_);
      WgmmaWait<0>();
      HoldResults(scores_);
      denominator_[0] = denominator_[1] = 0.0f;
      max_[0] = max_[1] = kNone;
      Exponentiate<false, false>(item.FirstKey(b), item.EndKey(b), cursor_);
      bool starts = true;
      for (; b + 1 < item.blocks && !item.StartsSegment(b + 1); ++b, starts = false) {
        const Place here = cursor_;
        cursor_.Advance();
        if (s_.is_next_full != 0) {
          MultiplyScores(cursor_);
          MultiplyValues(here, starts);
          WgmmaWait<2>();
          HoldResults(scores_);
          Exponentiate<true, true>(item.FirstKey(b + 1), item.EndKey(b + 1), here);
          EndValues(here);
        } else {  // its place is free the sooner
          MultiplyValues(here, starts);
          EndFirstHalf(here);
          EndValues(here);
          MultiplyScores(cursor_);
          WgmmaWait<0>();
          HoldResults(scores_);
          Exponentiate<true, false>(item.FirstKey(b + 1), item.EndKey(b + 1), here);
        }
      }
      MultiplyValues(cursor_, starts);
      if (++b == item.blocks) next = StartNext();
      EndFirstHalf(cursor_);
      EndValues(cursor_);
      cursor_.Advance();
      if (args_.segments == 1) Base::EndSegment(segment++, b == item.blocks);
    }
    return next;
  }

  __device__ Item StartNext() {
    const Item next = NextItem();
    if (next.blocks > 0) StartQuery(next);
    return next;
  }

  // Half of the sums over channels of all heads and keys of a tile.
  __device__ void MultiplyScores(const Place& at) {
    BarrierWait(SharedAddress(&s_.full[at.stage]), at.parity);
    FenceAsyncProxy();  // see ArriveBehindCopies
    const int first = group_ * (kTileBytes / 2);
    const Tile query(SharedAddress(s_.query + first), kByRows);
    const Tile keys(SharedAddress(s_.keys[at.stage] + first), kByRows);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kSlabs / 2 * kSlab / 16; ++k) {
      const int offset = k / 4 * kSlabBytes + k % 4 * 32;
      WgmmaScores(scores_, query.At(offset), keys.At(offset), k > 0);
    }
    WgmmaCommit();
  }

  // Sums of this warpgroup's channels over a tile's keys, half of them after the other.
  __device__ void MultiplyValues(const Place& at, bool starts_segment) {
    const Tile weights(SharedAddress(s_.weights[at.stage]), kByRows);
    const Tile values(SharedAddress(s_.keys[at.stage] + group_ * (kTileBytes / 2)), kByColumns);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      const int adds = k > 0 || !starts_segment;
      WgmmaValues(sums_[0], weights.At(32 * k), values.At(2048 * k), adds);
      WgmmaValues(sums_[1], weights.At(32 * k), values.At(2048 * k + 2 * kSlabBytes), adds);
      if (k % 2 == 1) WgmmaCommit();
    }
  }
  __device__ void EndFirstHalf(const Place& at) const {
    WgmmaWait<1>();
    BarrierArrive(SharedAddress(&s_.empty[at.stage][0]));
  }
  __device__ void EndValues(const Place& at) {
    WgmmaWait<0>();
    BarrierArrive(SharedAddress(&s_.empty[at.stage][1]));
    HoldResults(sums_[0]);
    HoldResults(sums_[1]);
  }

  // The scores of this warpgroup's 32 keys: both halves' sum, scaled.
  __device__ void ExchangeScores(float (&p)[16]) const {
    float4(&to)[4][kGroup] = s_.scores[1 - group_];
    const float4(&from)[4][kGroup] = s_.scores[group_];
    const bool is_second = group_ == 1;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* low = scores_ + 4 * i;
      const float* high = scores_ + 16 + 4 * i;
      to[i][thread_] = make_float4(is_second ? low[0] : high[0], is_second ? low[1] : high[1],
                                   is_second ? low[2] : high[2], is_second ? low[3] : high[3]);
#pragma unroll
      for (int j = 0; j < 4; ++j) p[4 * i + j] = is_second ? high[j] : low[j];
    }
    MeetAt(kMath, kMathThreads);
    const float scale = args_.shape.score_scale;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 other = from[i][thread_];
      p[4 * i] = (p[4 * i] + other.x) * scale;
      p[4 * i + 1] = (p[4 * i + 1] + other.y) * scale;
      p[4 * i + 2] = (p[4 * i + 2] + other.z) * scale;
      p[4 * i + 3] = (p[4 * i + 3] + other.w) * scale;
    }
  }

  // Scores become weights, of keys first .. end - 1; the others' are zero. kHasSums: there are sums
  // of the segment's blocks before; kIsAdding: the values of the block at `adding` are being added.
  template <bool kHasSums, bool kIsAdding>
  __device__ void Exponentiate(int first, int end, const Place& adding) {
    float p[16];
    ExchangeScores(p);
    const int own = 32 * group_ + 2 * pair_;  // key of p[0]
    first -= own;
    end -= own;
    if constexpr (!kIsBounded) {
      float factor[2];
      Base::MoveReference(p, first, end, factor);
      if constexpr (kHasSums) {
        WgmmaWait<0>();
        HoldResults(sums_[0]);
        HoldResults(sums_[1]);
        Base::ScaleSums(factor);
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int key = i / 4 * 8 + i % 2, half = i / 2 % 2;
      const float value = kIsBounded ? QuickExp(p[i]) : QuickExpNeg(p[i] - max_[half]);
      p[i] = key >= first && key < end ? value : 0.0f;
      denominator_[half] += p[i];
    }
    if constexpr (kIsAdding) EndFirstHalf(adding);
    Base::StoreWeights(p, s_.weights[cursor_.stage]);
    if (threadIdx.x == 0) {
      Place next = cursor_;
      next.Advance();
      s_.is_next_full = BarrierHasEnded(SharedAddress(&s_.full[next.stage]), next.parity) ? 1 : 0;
    }
    FenceAsyncProxy();
    MeetAt(kMath, kMathThreads);
  }

  Place cursor_;
  int index_ = 0;  // of the item whose query is the last on its way
  float scores_[32];
};

template <bool kIsBounded>
__global__ void __launch_bounds__(kThreads, 1)
    AttendKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ uint8_t memory[];
  auto& shared = AlignedShared<SingleShared>(memory);
  LetNextStart();
  if (threadIdx.x == 0) shared.InitBarriers();
  __syncthreads();
  WaitForEarlier();
  if (threadIdx.x < kMathThreads) {
    GrowRegisters<kMathRegisters>();
    SingleAttention<kIsBounded>(args, shared).Run();
  } else {
    ShrinkRegisters<kLoadRegisters>();
    Loader<SingleShared>(args, shared).Run();
  }
}

constexpr int kCombineThreads = 256;

// Grid: (rows, heads). Adds a head's segments as EndSegment does, and finishes it.
template <bool kIsBounded>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const __grid_constant__ AttendArgs args) {
  StartAfterEarlier();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (row >= *args.step.num_rows) return;
  const int dim = args.shape.head_dim, channel = 2 * static_cast<int>(threadIdx.x);
  if (channel >= dim) return;
  const int segments = 1 + (NumEntries(args, row) + kSegmentEntries - 1) / kSegmentEntries;
  Pair total = {0.0f, 0.0f};
  float max = kNone, first_sum = 0.0f, second_sum = 0.0f;
#pragma unroll 4
  for (int segment = 0; segment < segments; ++segment) {
    const float* partial = PartialOf(args, row, segment, head);
    const float2 v = *reinterpret_cast<const float2*>(partial + channel);
    const float2 sums = *reinterpret_cast<const float2*>(partial + dim);
    float total_scale = 1.0f, scale = 1.0f;
    if constexpr (!kIsBounded) {
      const float reference = Larger(partial[dim + 2], max);
      total_scale = ExpNeg(max - reference);
      scale = ExpNeg(partial[dim + 2] - reference);
      max = reference;
    }
    total = {total.a * total_scale + v.x * scale, total.b * total_scale + v.y * scale};
    first_sum = first_sum * total_scale + sums.x * scale;
    second_sum = second_sum * total_scale + sums.y * scale;
  }
  const float factor = FinalFactor<kIsBounded>(args.sink[head], max, first_sum + second_sum);
  const int rope = dim - args.shape.rope_dim;
  SinCos angle{};
  if (channel >= rope) {
    angle = RopeSinCos(RopeAngle(args.step.position[row], args.frequencies[(channel - rope) / 2]));
  }
  Bf16* out = args.attended + (static_cast<int64_t>(row) * args.shape.heads + head) * dim;
  const uint32_t pair = PackBf16(total.a * factor, total.b * factor);
  *reinterpret_cast<uint32_t*>(out + channel) = channel < rope ? pair : RotatedBack(pair, angle);
}

// Clusters of four that run at once: fewer than a quarter of the multiprocessors, which lie in
// groups.
template <bool kIsBounded>
int MaxClusters() {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kQuad, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kQuad);
  config.blockDim = dim3(kQuadThreads);
  config.dynamicSmemBytes = kSharedBytes<QuadShared>;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t error =
      cudaOccupancyMaxActiveClusters(&clusters, AttendQuadKernel<kIsBounded>, &config);
  if (error == cudaSuccess) return clusters;
  cudaGetLastError();  // no launch's
  return 0;
}

template <bool kIsBounded>
cudaError_t Launch(AttendArgs args, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  const auto single = AttendKernel<kIsBounded>;
  const auto quad = AttendQuadKernel<kIsBounded>;
  constexpr int kSingleBytes = kSharedBytes<SingleShared>, kQuadBytes = kSharedBytes<QuadShared>;
  if (const cudaError_t error =
          cudaFuncSetAttribute(single, cudaFuncAttributeMaxDynamicSharedMemorySize, kSingleBytes)) {
    return error;
  }
  if (const cudaError_t error =
          cudaFuncSetAttribute(quad, cudaFuncAttributeMaxDynamicSharedMemorySize, kQuadBytes)) {
    return error;
  }
  static const int clusters = MaxClusters<kIsBounded>();
  const int64_t rows = int64_t{args.step.rows} * ((args.shape.heads + kHeads - 1) / kHeads);
  // Too many segments for clusters and too few for single blocks.
  if (rows * args.segments > clusters && rows * args.segments < multiprocessors) args.segments = 1;
  const int64_t items = rows * args.segments;
  const bool is_quad = items <= 2 * clusters;
  const int64_t blocks = is_quad ? kQuad * std::min<int64_t>(items, clusters)
                                 : std::min<int64_t>({items, multiprocessors, kMaxAttendBlocks});
  EarlyLaunch launch(dim3(static_cast<unsigned>(blocks)), is_quad ? kQuadThreads : kThreads,
                     is_quad ? kQuadBytes : kSingleBytes, stream, is_quad ? kQuad : 1);
  if (const cudaError_t error = launch.Run(is_quad ? quad : single, args)) return error;
  if (args.segments == 1) return cudaSuccess;
  const dim3 heads(static_cast<unsigned>(args.step.rows), static_cast<unsigned>(args.shape.heads));
  return EarlyLaunch(heads, kCombineThreads, 0, stream).Run(CombineKernel<kIsBounded>, args);
}

}  // namespace

int AttendSegments(int ratio, int index_topk, int64_t entries) {
  if (ratio == 0) return 1;
  const int64_t most = ratio == 4 ? index_topk : entries;
  return 1 + static_cast<int>((most + kSegmentEntries - 1) / kSegmentEntries);
}

int64_t AttendPartialFloats(int64_t rows, int64_t segments, int heads, int head_dim) {
  const int64_t split = std::min<int64_t>(rows, kMaxSplitRows) * segments * heads;
  return std::max(split * (head_dim + kPartialTail),
                  int64_t{kMaxAttendBlocks} * kMathThreads * SingleShared::kSums);
}

cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream) {
  return args.has_bounded_scores ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace baton::kernels::cuda
