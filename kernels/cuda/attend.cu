#include "kernels/cuda/attend.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/slots.cuh"

// One block of 8 warps computes one row's 32 heads. Keys come in blocks of 64 as bf16 rows in
// shared memory. Scores: a warp has 16 heads x 16 keys; output: 16 heads x a quarter of the
// channels, in registers, once for the segment and once for the total. Denominators are sums of
// unrounded p in key order.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 32;
constexpr int kKeys = 64;
constexpr int kSegmentEntries = 512;
constexpr int kPad = 8;  // bf16 values between rows, against bank conflicts
constexpr int kScoreStride = kKeys + 1;
constexpr int kWeightStride = kKeys + kPad;
constexpr float kNone = -__builtin_inff();

struct Shared {
  Bf16* query;     // [kHeads, D + kPad]
  Bf16* keys;      // [kKeys, D + kPad]
  Bf16* weights;   // [kHeads, kWeightStride] r(p)
  float* scores;   // [kHeads, kScoreStride] scores, then p
  float* factors;  // [kHeads] what the running maximum multiplies sums by
  float* max;      // [kHeads] of the segment
  float* den;      // [kHeads] of the segment
  float* all_max;  // [kHeads]
  float* all_den;  // [kHeads]
};

int SharedBytes(int dim) {
  return (kHeads + kKeys) * (dim + kPad) * 2 + kHeads * kWeightStride * 2 +
         kHeads * (kScoreStride + 5) * 4;
}

__device__ Shared Place(uint8_t* base, int dim) {
  Shared s;
  s.query = reinterpret_cast<Bf16*>(base);
  s.keys = s.query + kHeads * (dim + kPad);
  s.weights = s.keys + kKeys * (dim + kPad);
  s.scores = reinterpret_cast<float*>(s.weights + kHeads * kWeightStride);
  s.factors = s.scores + kHeads * kScoreStride;
  s.max = s.factors + kHeads;
  s.den = s.max + kHeads;
  s.all_max = s.den + kHeads;
  s.all_den = s.all_max + kHeads;
  return s;
}

// Where a key of the block comes from. Neither: it is masked, its row zero.
struct KeySource {
  const Bf16* row = nullptr;
  RowPlace entry = {nullptr, nullptr};
};

// One query row, 32 of its heads.
template <int kTiles, bool kIsBounded>
class RowAttention {
 public:
  __device__ RowAttention(const AttendArgs& args, const Shared& s)
      : args_(args),
        s_(s),
        dim_(args.shape.head_dim),
        stride_(args.shape.head_dim + kPad),
        row_(static_cast<int>(blockIdx.x)),
        first_head_(static_cast<int>(blockIdx.y) * kHeads),
        position_(args.step.position[row_]),
        run_index_(args.step.sequence[row_]),
        run_(args.step.runs[run_index_]) {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums_[t][i] = total_[t][i] = 0.0f;
    }
  }

  __device__ void Run() {
    LoadQuery();
    if (threadIdx.x < kHeads) {
      s_.all_den[threadIdx.x] = 0.0f;
      s_.all_max[threadIdx.x] = kNone;
    }
    AddWindow();
    AddEntries();
    Finish();
  }

 private:
  __device__ void LoadQuery() const {
    const int heads = args_.shape.heads;
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * dim_ / 8; i += kThreads) {
      const int head = i / (dim_ / 8), chunk = i % (dim_ / 8);
      uint4 value = make_uint4(0, 0, 0, 0);
      if (first_head_ + head < heads) {
        const int64_t at = (static_cast<int64_t>(row_) * heads + first_head_ + head) * dim_;
        value = reinterpret_cast<const uint4*>(args_.query + at)[chunk];
      }
      *reinterpret_cast<uint4*>(s_.query + head * stride_ + chunk * 8) = value;
    }
  }

  __device__ KeySource WindowSource(int64_t position) const {
    if (position > position_ || position < 0) return {};
    if (position <= position_ - args_.shape.window) return {};
    if (position >= run_.first) {
      return {.row = args_.kv + (run_.first_row + (position - run_.first)) * dim_};
    }
    const int reach = args_.shape.window - 1;
    const int64_t index =
        static_cast<int64_t>(run_index_) * reach + position - (run_.first - reach);
    return {.row = args_.old_window + index * dim_};
  }

  __device__ KeySource EntrySource(int64_t rank, int64_t count) const {
    if (rank >= count) return {};
    const int64_t entry =
        args_.ratio == 4
            ? args_.selected[static_cast<int64_t>(row_) * args_.shape.index_topk + rank]
            : rank;
    return {.entry = EntryPlace(args_.step, args_.pages, run_index_, entry)};
  }

  __device__ void LoadChunk(const KeySource& source, int chunk, Bf16* out) const {
    const int nope = dim_ - args_.shape.rope_dim, first = chunk * 16;
    auto* words = reinterpret_cast<uint4*>(out);
    if (source.row != nullptr) {
      words[0] = reinterpret_cast<const uint4*>(source.row)[2 * chunk];
      words[1] = reinterpret_cast<const uint4*>(source.row)[2 * chunk + 1];
    } else if (source.entry.data == nullptr) {
      words[0] = words[1] = make_uint4(0, 0, 0, 0);
    } else if (first < nope) {
      WidenCodes(*reinterpret_cast<const uint4*>(source.entry.data + first),
                 DecodeE8m0(source.entry.scales[first / kKvGroup]), out);
    } else {
      const auto* rope =
          reinterpret_cast<const uint4*>(source.entry.data + nope + 2 * (first - nope));
      words[0] = rope[0];
      words[1] = rope[1];
    }
  }

  // Keys first .. last - 1 of the block are visible; source(j) says where key j lies.
  template <typename Source>
  __device__ void AddBlock(int first, int last, const Source& source) {
    __syncthreads();  // the block before is done with the keys
    for (int i = static_cast<int>(threadIdx.x); i < kKeys * dim_ / 16; i += kThreads) {
      const int key = i / (dim_ / 16), chunk = i % (dim_ / 16);
      LoadChunk(source(key), chunk, s_.keys + key * stride_ + chunk * 16);
    }
    __syncthreads();
    Score();
    __syncthreads();
    if constexpr (!kIsBounded) {
      MoveReference(first, last);
      __syncthreads();
    }
    Exponentiate(first, last);
    __syncthreads();
    if (threadIdx.x < kHeads) {
      const float* p = s_.scores + threadIdx.x * kScoreStride;
      float den = s_.den[threadIdx.x];
      for (int j = first; j < last; ++j) den += p[j];
      s_.den[threadIdx.x] = den;
    }
    Accumulate();
  }

  __device__ void Score() const {
    const int m = WarpIndex() / 4 * 16, n = WarpIndex() % 4 * 16;
    float d[2][4] = {};
    for (int k = 0; k < dim_; k += 16) {
      uint32_t a[4];
      LoadA(s_.query, stride_, m, k, a);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const Bf16* key =
            s_.keys + (n + 8 * t + LaneIndex() / 4) * stride_ + k + LaneIndex() % 4 * 2;
        Mma(d[t], a, LoadPair(key), LoadPair(key + 8));
      }
    }
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      float* out = s_.scores + (m + LaneIndex() / 4) * kScoreStride + n + 8 * t;
      out += LaneIndex() % 4 * 2;
      out[0] = d[t][0];
      out[1] = d[t][1];
      out[8 * kScoreStride] = d[t][2];
      out[8 * kScoreStride + 1] = d[t][3];
    }
  }

  // The running maximum (R3): a new reference for each head, and what that multiplies its sums by.
  __device__ void MoveReference(int first, int last) const {
    if (threadIdx.x >= kHeads) return;
    const float* scores = s_.scores + threadIdx.x * kScoreStride;
    float max = kNone;
    for (int j = first; j < last; ++j) max = Larger(scores[j] * args_.shape.score_scale, max);
    const float before = s_.max[threadIdx.x];
    const float reference = Larger(max, before);
    const float factor = ExpNeg(before - reference);
    s_.factors[threadIdx.x] = factor;
    s_.den[threadIdx.x] *= factor;
    s_.max[threadIdx.x] = reference;
  }

  __device__ void Exponentiate(int first, int last) const {
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * kKeys; i += kThreads) {
      const int head = i / kKeys, key = i % kKeys;
      float& score = s_.scores[head * kScoreStride + key];
      float p = 0.0f;
      if (key >= first && key < last) {
        const float scaled = score * args_.shape.score_scale;
        p = kIsBounded ? Exp(scaled) : ExpNeg(scaled - s_.max[head]);
      }
      score = p;
      s_.weights[head * kWeightStride + key] = EncodeBf16(p);
    }
  }

  __device__ int HeadOf(int half) const {
    return WarpIndex() / 4 * 16 + LaneIndex() / 4 + 8 * half;
  }
  __device__ int ChannelOf(int tile) const { return (tile * 4 + WarpIndex() % 4) * 8; }

  __device__ void Accumulate() {
    if constexpr (!kIsBounded) {
      const float low = s_.factors[HeadOf(0)], high = s_.factors[HeadOf(1)];
#pragma unroll
      for (int t = 0; t < kTiles; ++t) Scale(sums_[t], low, high);
    }
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t a[4];
      LoadA(s_.weights, kWeightStride, WarpIndex() / 4 * 16, k, a);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (ChannelOf(t) >= dim_) continue;
        uint32_t b0, b1;
        LoadTransposed(s_.keys, stride_, k, ChannelOf(t), b0, b1);
        Mma(sums_[t], a, b0, b1);
      }
    }
  }

  __device__ static void Scale(float (&sums)[4], float low, float high) {
    sums[0] *= low;
    sums[1] *= low;
    sums[2] *= high;
    sums[3] *= high;
  }

  __device__ void StartSegment() const {
    __syncthreads();
    if (threadIdx.x >= kHeads) return;
    s_.den[threadIdx.x] = 0.0f;
    s_.max[threadIdx.x] = kNone;
  }

  // total = total + segment, both brought to the larger reference first.
  __device__ void EndSegment() {
    __syncthreads();
    float scales[2][2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};  // [total, segment][half]
    if constexpr (!kIsBounded) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float total = s_.all_max[HeadOf(half)], segment = s_.max[HeadOf(half)];
        const float reference = Larger(segment, total);
        scales[0][half] = ExpNeg(total - reference);
        scales[1][half] = ExpNeg(segment - reference);
      }
    }
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if constexpr (!kIsBounded) {
        Scale(total_[t], scales[0][0], scales[0][1]);
        Scale(sums_[t], scales[1][0], scales[1][1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total_[t][i] += sums_[t][i];
        sums_[t][i] = 0.0f;
      }
    }
    __syncthreads();  // all have read the references
    if (threadIdx.x >= kHeads) return;
    float total = s_.all_den[threadIdx.x], segment = s_.den[threadIdx.x];
    if constexpr (!kIsBounded) {
      const float before = s_.all_max[threadIdx.x], max = s_.max[threadIdx.x];
      const float reference = Larger(max, before);
      total *= ExpNeg(before - reference);
      segment *= ExpNeg(max - reference);
      s_.all_max[threadIdx.x] = reference;
    }
    s_.all_den[threadIdx.x] = total + segment;
  }

  __device__ void AddWindow() {
    StartSegment();
    const int64_t oldest = position_ - args_.shape.window + 1;
    int64_t p = oldest < 0 ? 0 : oldest;
    while (p <= position_) {
      const int64_t base = p / kKeys * kKeys;
      const int64_t end = base + kKeys < position_ + 1 ? base + kKeys : position_ + 1;
      AddBlock(static_cast<int>(p - base), static_cast<int>(end - base),
               [&](int key) { return WindowSource(base + key); });
      p = end;
    }
    EndSegment();
  }

  __device__ void AddEntries() {
    if (args_.ratio == 0) return;
    const int64_t count = args_.ratio == 4 ? args_.num_selected[row_] : (position_ + 1) / 128;
    for (int64_t rank = 0; rank < count; rank += kKeys) {
      if (rank % kSegmentEntries == 0) StartSegment();
      const int64_t left = count - rank;
      AddBlock(0, static_cast<int>(left < kKeys ? left : kKeys),
               [&](int key) { return EntrySource(rank + key, count); });
      const int64_t next = rank + kKeys;
      if (next % kSegmentEntries == 0 || next >= count) EndSegment();
    }
  }

  // The sink, once, into the denominator; then output, inverse rope, bf16.
  __device__ void Finish() {
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = first_head_ + HeadOf(half);
      if (head >= args_.shape.heads) continue;
      float den = s_.all_den[HeadOf(half)], factor = 1.0f;
      const float sink = args_.sink[head];
      if constexpr (kIsBounded) {
        den += Exp(sink);
      } else {
        const float max = s_.all_max[HeadOf(half)];
        const float reference = Larger(sink, max);
        factor = ExpNeg(max - reference);
        den = den * factor + ExpNeg(sink - reference);
      }
      Bf16* out = args_.attended + (static_cast<int64_t>(row_) * args_.shape.heads + head) * dim_;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (ChannelOf(t) < dim_) StorePair(t, half, factor, den, out);
      }
    }
  }

  __device__ void StorePair(int tile, int half, float factor, float den, Bf16* out) const {
    const int channel = ChannelOf(tile) + LaneIndex() % 4 * 2;
    const int rope = dim_ - args_.shape.rope_dim;
    Pair v = {total_[tile][2 * half], total_[tile][2 * half + 1]};
    if constexpr (!kIsBounded) v = {v.a * factor, v.b * factor};
    v = {RoundBf16(v.a / den), RoundBf16(v.b / den)};
    if (channel >= rope) {
      const float frequency = args_.frequencies[(channel - rope) / 2];
      v = RotateBack(v, RopeSinCos(RopeAngle(position_, frequency)));
    }
    out[channel] = EncodeBf16(v.a);
    out[channel + 1] = EncodeBf16(v.b);
  }

  const AttendArgs& args_;
  const Shared& s_;
  const int dim_, stride_, row_, first_head_;
  const int64_t position_;
  const int run_index_;
  const RunInfo run_;
  float sums_[kTiles][4], total_[kTiles][4];
};

template <int kTiles, bool kIsBounded>
__global__ void __launch_bounds__(kThreads) AttendKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (static_cast<int>(blockIdx.x) >= *args.step.num_rows) return;
  const Shared s = Place(shared, args.shape.head_dim);
  RowAttention<kTiles, kIsBounded>(args, s).Run();
}

template <int kTiles, bool kIsBounded>
cudaError_t Launch(const AttendArgs& args, cudaStream_t stream) {
  const auto kernel = AttendKernel<kTiles, kIsBounded>;
  const int bytes = SharedBytes(args.shape.head_dim);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(args.step.rows),
                  static_cast<unsigned>((args.shape.heads + kHeads - 1) / kHeads));
  kernel<<<grid, kThreads, static_cast<unsigned>(bytes), stream>>>(args);
  return cudaPeekAtLastError();
}

template <bool kIsBounded>
cudaError_t LaunchFor(const AttendArgs& args, cudaStream_t stream) {
  if (args.shape.head_dim <= 128) return Launch<4, kIsBounded>(args, stream);
  if (args.shape.head_dim <= 256) return Launch<8, kIsBounded>(args, stream);
  return Launch<16, kIsBounded>(args, stream);
}

}  // namespace

cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream) {
  return args.has_bounded_scores ? LaunchFor<true>(args, stream) : LaunchFor<false>(args, stream);
}

}  // namespace baton::kernels::cuda
