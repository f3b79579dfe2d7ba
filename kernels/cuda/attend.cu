#include <algorithm>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/attend_load.cuh"

// A block of threads computes one row's 64 heads at a time, over all segments of keys or over one
// of them. Two warpgroups bring blocks of 64 keys into shared memory as bf16, in two stages; two
// multiply, each half of the channels: half of each score's sum, then softmax weights of 32 of the
// keys, then its channels' sums over all keys, in registers. All tiles are wgmma's, in slabs of 64
// channels with the 128-byte swizzle, padded with zeros up to 64 heads and 512 channels.
namespace baton::kernels::cuda {
namespace {

// A segment of a row's head: sums [D], denominators of both warpgroups' keys, reference.
__device__ float* PartialOf(const AttendArgs& args, int row, int segment, int head) {
  const int64_t index =
      (static_cast<int64_t>(row) * args.segments + segment) * args.shape.heads + head;
  return args.partials + index * (args.shape.head_dim + kPartialTail);
}

// What sums are multiplied by in the end: the sink enters the denominator once.
template <bool kIsBounded>
__device__ float FinalFactor(float sink, float max, float denominator) {
  if constexpr (kIsBounded) return 1.0f / (denominator + Exp(sink));
  const float reference = Larger(sink, max);
  const float factor = ExpNeg(max - reference);
  return factor / (denominator * factor + ExpNeg(sink - reference));
}

// Two neighbouring output channels, rotated back.
__device__ __forceinline__ uint32_t RotatedBack(uint32_t pair, const SinCos& angle) {
  const Pair v = RotateBack({FloatOf(pair << 16), FloatOf(pair & 0xffff0000u)}, angle);
  return PackBf16(v.a, v.b);
}

// A multiplying warpgroup. Thread: heads lane / 4 and + 8 of its warp's 16; of a tile's columns
// 8 j + 2 (lane % 4) and + 1.
template <bool kIsBounded>
class Attention {
 public:
  __device__ Attention(const AttendArgs& args, Shared& shared)
      : args_(args),
        s_(shared),
        group_(static_cast<int>(threadIdx.x) / kGroup),
        thread_(static_cast<int>(threadIdx.x) % kGroup),
        head_(thread_ / kWarp * 16 + LaneIndex() / 4),
        pair_(LaneIndex() % 4) {}

  __device__ void Run() {
    if (args_.shape.head_dim < kSlab * kSlabs) ClearQuery();
    index_ = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x);
    Item item = NextItem();
    if (item.blocks == 0) return;
    StartQuery(item);
    for (int number = 0; item.blocks > 0; ++number) {
      const Item next = AddBlocks(item);
      if (args_.segments > 1) {
        StorePartial(item);
      } else {
        Finish(item, s_.angles[number % kAngleSets]);
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
        const Cursor here = cursor_;
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
      if (args_.segments == 1) EndSegment(segment++, b == item.blocks);
    }
    return next;
  }

  __device__ Item StartNext() {
    const Item next = NextItem();
    if (next.blocks > 0) StartQuery(next);
    return next;
  }

  // Half of the sums over channels of all heads and keys of a tile.
  __device__ void MultiplyScores(const Cursor& at) {
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
  __device__ void MultiplyValues(const Cursor& at, bool starts_segment) {
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
  __device__ void EndFirstHalf(const Cursor& at) const {
    WgmmaWait<1>();
    BarrierArrive(SharedAddress(&s_.empty[at.stage][0]));
  }
  __device__ void EndValues(const Cursor& at) {
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
  __device__ void Exponentiate(int first, int end, const Cursor& adding) {
    float p[16];
    ExchangeScores(p);
    const int own = 32 * group_ + 2 * pair_;  // key of p[0]
    first -= own;
    end -= own;
    if constexpr (!kIsBounded) MoveReference<kHasSums>(p, first, end);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int key = i / 4 * 8 + i % 2, half = i / 2 % 2;
      const float value = kIsBounded ? QuickExp(p[i]) : QuickExpNeg(p[i] - max_[half]);
      p[i] = key >= first && key < end ? value : 0.0f;
      denominator_[half] += p[i];
    }
    if constexpr (kIsAdding) EndFirstHalf(adding);
    uint8_t* weights = s_.weights[cursor_.stage];
#pragma unroll
    for (int i = 0; i < 16; i += 2) {
      const int chunk = 4 * group_ + i / 4, head = head_ + 8 * (i / 2 % 2);
      *reinterpret_cast<uint32_t*>(weights + Swizzled(head, chunk) + 4 * pair_) =
          PackBf16(p[i], p[i + 1]);
    }
    if (threadIdx.x == 0) {
      Cursor next = cursor_;
      next.Advance();
      s_.is_next_full = BarrierHasEnded(SharedAddress(&s_.full[next.stage]), next.parity) ? 1 : 0;
    }
    FenceAsyncProxy();
    MeetAt(kMath, kMathThreads);
  }

  // The running maximum (R3): a new reference for each head, which all its sums are brought to.
  template <bool kHasSums>
  __device__ void MoveReference(const float (&p)[16], int first, int end) {
    float max[2] = {kNone, kNone};
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int key = i / 4 * 8 + i % 2, half = i / 2 % 2;
      if (key >= first && key < end) max[half] = Larger(p[i], max[half]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      max[half] = GroupMax(max[half], 4);
      if (pair_ == 0) s_.maxima[group_][head_ + 8 * half] = max[half];
    }
    MeetAt(kMaxima, kMathThreads);
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float other = s_.maxima[1 - group_][head_ + 8 * half];
      const float reference = Larger(Larger(max[half], other), max_[half]);
      factor[half] = ExpNeg(max_[half] - reference);
      max_[half] = reference;
      denominator_[half] *= factor[half];
    }
    if constexpr (!kHasSums) return;
    WgmmaWait<0>();
    HoldResults(sums_[0]);
    HoldResults(sums_[1]);
#pragma unroll
    for (int i = 0; i < kSums; ++i) Sum(i) *= factor[i / 2 % 2];
  }

  // A head's denominator over this warpgroup's keys.
  __device__ static float SumOfFour(float x) {
    x += __shfl_xor_sync(kFullWarp, x, 1);
    return x + __shfl_xor_sync(kFullWarp, x, 2);
  }

  __device__ float& Sum(int i) { return sums_[i / (kSums / 2)][i % (kSums / 2)]; }
  __device__ float Sum(int i) const { return sums_[i / (kSums / 2)][i % (kSums / 2)]; }

  // total = total + segment, both brought to the larger reference first. Between segments the total
  // lies in global memory, behind the last one in sums_.
  __device__ void EndSegment(int number, bool is_last) {
    float scales[2][2];  // [total, segment][half]
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float own = SumOfFour(denominator_[half]);
      scales[0][half] = scales[1][half] = 1.0f;
      if (number == 0) {
        all_denominator_[half] = own;
        all_max_[half] = max_[half];
        continue;
      }
      if constexpr (!kIsBounded) {
        const float reference = Larger(max_[half], all_max_[half]);
        scales[0][half] = ExpNeg(all_max_[half] - reference);
        scales[1][half] = ExpNeg(max_[half] - reference);
        all_max_[half] = reference;
      }
      all_denominator_[half] = all_denominator_[half] * scales[0][half] + own * scales[1][half];
    }
    if (number == 0 && is_last) return;
    auto* total = reinterpret_cast<float4*>(args_.partials) +
                  static_cast<int64_t>(blockIdx.x) * kMathThreads * (kSums / 4) + threadIdx.x;
    constexpr int kAtOnce = 8;
#pragma unroll
    for (int first = 0; first < kSums / 4; first += kAtOnce) {
      if (number > 0) AddTotal<kAtOnce>(total, first, scales);
      if (is_last) continue;
#pragma unroll
      for (int i = 4 * first; i < 4 * (first + kAtOnce); i += 4) {
        __stcg(total + i / 4 * kMathThreads,
               make_float4(Sum(i), Sum(i + 1), Sum(i + 2), Sum(i + 3)));
      }
    }
  }

  template <int kCount>
  __device__ void AddTotal(const float4* total, int first, const float (&scales)[2][2]) {
    float4 before[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) before[j] = __ldcg(total + (first + j) * kMathThreads);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int i = 4 * (first + j);
      Sum(i) = before[j].x * scales[0][0] + Sum(i) * scales[1][0];
      Sum(i + 1) = before[j].y * scales[0][0] + Sum(i + 1) * scales[1][0];
      Sum(i + 2) = before[j].z * scales[0][1] + Sum(i + 2) * scales[1][1];
      Sum(i + 3) = before[j].w * scales[0][1] + Sum(i + 3) * scales[1][1];
    }
  }

  __device__ int ChannelOf(int sum) const {
    return group_ * (kSlab * kSlabs / 2) + sum / 4 * 8 + 2 * pair_;
  }

  __device__ void StorePartial(const Item& item) const {
    const int dim = args_.shape.head_dim;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float denominator = SumOfFour(denominator_[half]);
      const int head = item.first_head + head_ + 8 * half;
      if (head >= args_.shape.heads) continue;
      float* partial = PartialOf(args_, item.row, item.segment, head);
#pragma unroll
      for (int i = 0; i < kSums; i += 4) {
        if (ChannelOf(i) >= dim) continue;
        *reinterpret_cast<float2*>(partial + ChannelOf(i)) =
            make_float2(Sum(i + 2 * half), Sum(i + 2 * half + 1));
      }
      if (pair_ != 0) continue;
      partial[dim + group_] = denominator;
      if (group_ == 0) partial[dim + 2] = max_[half];
    }
  }

  __device__ void Finish(const Item& item, const SinCos* angles) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (pair_ == 0) s_.denominators[group_][head_ + 8 * half] = all_denominator_[half];
    }
    MeetAt(kMath, kMathThreads);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = head_ + 8 * half;
      const bool is_live = item.first_head + head < args_.shape.heads;
      const float factor = FinalFactor<kIsBounded>(
          is_live ? args_.sink[item.first_head + head] : 0.0f, all_max_[half],
          s_.denominators[0][head] + s_.denominators[1][head]);
      const int64_t row = static_cast<int64_t>(item.row) * args_.shape.heads + item.first_head;
      Bf16* out = args_.attended + (row + head) * args_.shape.head_dim;
#pragma unroll
      for (int i = 0; i < kSums; i += 16) {
        const int base = group_ * (kSlab * kSlabs / 2) + 2 * i, channel = base + 8 * pair_;
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int at = i + 4 * j + 2 * half;
          words[j] = PackBf16(Sum(at) * factor, Sum(at + 1) * factor);
        }
        if (base + 32 > args_.shape.head_dim - args_.shape.rope_dim)
          RotateTiles(base, angles, words);
        Transpose(words);
        if (!is_live || channel >= args_.shape.head_dim) continue;
        *reinterpret_cast<uint4*>(out + channel) =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }

  // Tiles of 8 channels, from channel `base` on.
  __device__ void RotateTiles(int base, const SinCos* angles, uint32_t (&words)[4]) const {
    const int dim = args_.shape.head_dim, rope = dim - args_.shape.rope_dim;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int tile = base + 8 * j;
      if (tile < rope || tile >= dim) continue;
      words[j] = RotatedBack(words[j], angles[(tile - rope) / 2 + pair_]);
    }
  }

  // Word j of lane l of four neighbours goes to word l of lane j.
  __device__ void Transpose(uint32_t (&words)[4]) const {
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((i & step) != 0) continue;
        const bool is_upper = (pair_ & step) != 0;
        const uint32_t got =
            __shfl_xor_sync(kFullWarp, is_upper ? words[i] : words[i + step], step);
        words[i] = is_upper ? got : words[i];
        words[i + step] = is_upper ? words[i + step] : got;
      }
    }
  }

  const AttendArgs& args_;
  Shared& s_;
  const int group_, thread_, head_, pair_;
  Cursor cursor_;
  int index_ = 0;  // of the item whose query is the last on its way
  float sums_[2][kSums / 2], scores_[32];
  float denominator_[2], max_[2], all_denominator_[2], all_max_[2];
};

template <bool kIsBounded>
__global__ void __launch_bounds__(kThreads, 1)
    AttendKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ uint8_t memory[];
  auto& shared =
      *reinterpret_cast<Shared*>(memory + (1024 - (SharedAddress(memory) & 1023u)) % 1024);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(SharedAddress(&shared.full[i]), kLoadThreads);
      for (uint64_t& half : shared.empty[i]) {
        BarrierInit(SharedAddress(&half), kMathThreads);
      }
    }
  }
  __syncthreads();
  if (threadIdx.x < kMathThreads) {
    GrowRegisters<kMathRegisters>();
    Attention<kIsBounded>(args, shared).Run();
  } else {
    ShrinkRegisters<kLoadRegisters>();
    Loader(args, shared).Run();
  }
}

constexpr int kCombineThreads = 256;

// Grid: (rows, heads). Adds a head's segments as EndSegment does, and finishes it.
template <bool kIsBounded>
__global__ void __launch_bounds__(kCombineThreads)
    CombineKernel(const __grid_constant__ AttendArgs args) {
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

template <bool kIsBounded>
cudaError_t Launch(const AttendArgs& args, cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error =
          cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) {
    return error;
  }
  if (const cudaError_t error = cudaFuncSetAttribute(
          AttendKernel<kIsBounded>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return error;
  }
  const int64_t groups = (args.shape.heads + kHeads - 1) / kHeads;
  const int64_t items = args.step.rows * groups * args.segments;
  const int64_t blocks = std::min<int64_t>({items, multiprocessors, kMaxAttendBlocks});
  AttendKernel<kIsBounded><<<static_cast<unsigned>(blocks), kThreads, kSharedBytes, stream>>>(args);
  if (args.segments > 1) {
    const dim3 heads(static_cast<unsigned>(args.step.rows),
                     static_cast<unsigned>(args.shape.heads));
    CombineKernel<kIsBounded><<<heads, kCombineThreads, 0, stream>>>(args);
  }
  return cudaPeekAtLastError();
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
                  int64_t{kMaxAttendBlocks} * kMathThreads * kSums);
}

cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream) {
  return args.has_bounded_scores ? Launch<true>(args, stream) : Launch<false>(args, stream);
}

}  // namespace baton::kernels::cuda
