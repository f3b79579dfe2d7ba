#include "kernels/cuda/attend.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/slots.cuh"

// One block of 8 warps computes one row's 32 heads, over all segments of keys or over one of them.
// Keys come in blocks of 64: as they are stored by cp.async, one block ahead, then as bf16 rows.
// Scores: a warp has 16 heads x 16 keys; output: 16 heads x a quarter of the channels, in
// registers, once for the segment and once for the total. Denominators are sums of unrounded p in
// key order.
namespace baton::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 32;
constexpr int kKeys = 64;
constexpr int kBatchKeys = 512;  // whose places are looked up at once
constexpr int kSegmentEntries = 512;
constexpr int kPad = 8;      // bf16 values between rows, against bank conflicts
constexpr int kRawPad = 64;  // bytes between stored rows, likewise
constexpr int kScoreStride = kKeys + 1;
constexpr int kWeightStride = kKeys + kPad;
constexpr float kNone = -__builtin_inff();

// Where a key lies: a bf16 row, or with scales a stored entry. No row: masked, its values zero.
struct KeySource {
  const uint8_t* row = nullptr;
  const uint8_t* scales = nullptr;
};

struct Shared {
  Bf16* query;         // [kHeads, D + kPad]
  Bf16* keys;          // [kKeys, D + kPad]
  uint8_t* raw;        // [kKeys, 2 D + kRawPad] stored rows of the next block
  KeySource* sources;  // [kBatchKeys]
  Bf16* weights;       // [kHeads, kWeightStride] r(p)
  float* scores;       // [kHeads, kScoreStride] scores, then p
  float* factors;      // [kHeads] what the running maximum multiplies sums by
  float* max;          // [kHeads] of the segment
  float* den;          // [kHeads] of the segment
  float* all_max;      // [kHeads]
  float* all_den;      // [kHeads]
};

int SharedBytes(int dim) {
  return (kHeads + kKeys) * (dim + kPad) * 2 + kKeys * (2 * dim + kRawPad) +
         kBatchKeys * static_cast<int>(sizeof(KeySource)) + kHeads * kWeightStride * 2 +
         kHeads * (kScoreStride + 5) * 4;
}

__device__ Shared Place(uint8_t* base, int dim) {
  Shared s;
  s.query = reinterpret_cast<Bf16*>(base);
  s.keys = s.query + kHeads * (dim + kPad);
  s.raw = reinterpret_cast<uint8_t*>(s.keys + kKeys * (dim + kPad));
  s.sources = reinterpret_cast<KeySource*>(s.raw + kKeys * (2 * dim + kRawPad));
  s.weights = reinterpret_cast<Bf16*>(s.sources + kBatchKeys);
  s.scores = reinterpret_cast<float*>(s.weights + kHeads * kWeightStride);
  s.factors = s.scores + kHeads * kScoreStride;
  s.max = s.factors + kHeads;
  s.den = s.max + kHeads;
  s.all_max = s.den + kHeads;
  s.all_den = s.all_max + kHeads;
  return s;
}

__device__ void CopyAsync8(uint32_t to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
}

__device__ uint4 Masked(const uint4& x, uint32_t keep) {
  return make_uint4(x.x & keep, x.y & keep, x.z & keep, x.w & keep);
}

// Entries that a row attends to.
__device__ int64_t NumEntries(const AttendArgs& args, int row) {
  if (args.ratio == 0) return 0;
  if (args.ratio == 4) return args.num_selected[row];
  return (args.step.position[row] + 1) / 128;
}

// Numerators, denominator and reference of a segment of a row's head, or of all of them.
struct PartialPlace {
  float *sums, *den, *max;
};
__device__ PartialPlace PartialOf(const AttendArgs& args, int row, int segment, int head) {
  const int dim = args.shape.head_dim;
  const int64_t index =
      (static_cast<int64_t>(row) * args.segments + segment) * args.shape.heads + head;
  float* place = args.partials + index * (dim + 2);
  return {place, place + dim, place + dim + 1};
}

// Output, inverse rope and bf16 of two neighbouring channels.
__device__ void StorePair(const AttendArgs& args, int64_t position, int channel, Pair v,
                          Bf16* out) {
  const int rope = args.shape.head_dim - args.shape.rope_dim;
  v = {RoundBf16(v.a), RoundBf16(v.b)};
  if (channel >= rope) {
    const float frequency = args.frequencies[(channel - rope) / 2];
    v = RotateBack(v, RopeSinCos(RopeAngle(position, frequency)));
  }
  *reinterpret_cast<uint32_t*>(out + channel) =
      EncodeBf16(v.a) | static_cast<uint32_t>(EncodeBf16(v.b)) << 16;
}

// The sink, once, into the denominator: what numerators are multiplied by and divided by.
struct Quotient {
  float factor, den;
};
template <bool kIsBounded>
__device__ Quotient AddSink(float sink, float max, float den) {
  if constexpr (kIsBounded) return {1.0f, den + Exp(sink)};
  const float reference = Larger(sink, max);
  const float factor = ExpNeg(max - reference);
  return {factor, den * factor + ExpNeg(sink - reference)};
}

// One query row, 32 of its heads; kIsFull: their dimension is that of kTiles tiles a warp.
template <int kTiles, bool kIsFull, bool kIsBounded>
class RowAttention {
 public:
  __device__ RowAttention(const AttendArgs& args, const Shared& s)
      : args_(args),
        s_(s),
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

  // All segments, to the output.
  __device__ void Run() {
    Begin();
    for (int segment = 0; HasSegment(segment); ++segment) {
      AddSegment(segment);
      EndSegment();
    }
    Finish();
  }

  // One segment, to its partial sums; nothing where the row has no such segment.
  __device__ void RunSegment(int segment) {
    if (!HasSegment(segment)) return;
    Begin();
    AddSegment(segment);
    StorePartial(segment);
  }

 private:
  __device__ int Dim() const { return kIsFull ? 32 * kTiles : args_.shape.head_dim; }
  __device__ int Stride() const { return Dim() + kPad; }
  __device__ bool HasTile(int tile) const { return kIsFull || ChannelOf(tile) < Dim(); }

  __device__ void Begin() const {
    LoadQuery();
    if (threadIdx.x < kHeads) {
      s_.all_den[threadIdx.x] = 0.0f;
      s_.all_max[threadIdx.x] = kNone;
    }
  }

  // Segment 0 is the window, the others are 512 entries each.
  __device__ bool HasSegment(int segment) const {
    return segment == 0 ||
           static_cast<int64_t>(segment - 1) * kSegmentEntries < NumEntries(args_, row_);
  }

  __device__ void LoadQuery() const {
    const int heads = args_.shape.heads;
    for (int i = static_cast<int>(threadIdx.x); i < kHeads * Dim() / 8; i += kThreads) {
      const int head = i / (Dim() / 8), chunk = i % (Dim() / 8);
      uint4 value = make_uint4(0, 0, 0, 0);
      if (first_head_ + head < heads) {
        const int64_t at = (static_cast<int64_t>(row_) * heads + first_head_ + head) * Dim();
        value = reinterpret_cast<const uint4*>(args_.query + at)[chunk];
      }
      *reinterpret_cast<uint4*>(s_.query + head * Stride() + chunk * 8) = value;
    }
  }

  __device__ KeySource WindowSource(int64_t position) const {
    if (position >= run_.first) {
      const Bf16* row = args_.kv + (run_.first_row + (position - run_.first)) * Dim();
      return {reinterpret_cast<const uint8_t*>(row), nullptr};
    }
    const int reach = args_.shape.window - 1;
    const int64_t index =
        static_cast<int64_t>(run_index_) * reach + position - (run_.first - reach);
    return {reinterpret_cast<const uint8_t*>(args_.old_window + index * Dim()), nullptr};
  }

  __device__ KeySource EntrySource(int64_t rank) const {
    const int64_t entry =
        args_.ratio == 4
            ? args_.selected[static_cast<int64_t>(row_) * args_.shape.index_topk + rank]
            : rank;
    const RowPlace place = EntryPlace(args_.step, args_.pages, run_index_, entry);
    return {place.data, place.scales};
  }

  __device__ uint8_t* RawRow(int key) const { return s_.raw + key * (2 * Dim() + kRawPad); }

  // Starts the copies of keys first .. first + 63 of the batch. Four threads a key.
  template <bool kIsEntry>
  __device__ void LoadRaw(int first) const {
    const int key = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
    const KeySource source = s_.sources[first + key];
    if (source.row == nullptr) return;
    const uint32_t to = SharedAddress(RawRow(key));
    const int bytes = kIsEntry ? args_.pages.data_bytes : 2 * Dim();
#pragma unroll 4
    for (int at = 16 * quarter; at < bytes; at += 64) {
      CopyAsync16(to + at, source.row + at, true);
    }
    if constexpr (kIsEntry) {
      if (8 * quarter < args_.pages.scale_bytes) {
        CopyAsync8(to + bytes + 8 * quarter, source.scales + 8 * quarter);
      }
    }
  }

  // The copied rows become bf16 rows; 64 channels are one scale and 16 channels of each of the four
  // threads.
  template <bool kIsEntry>
  __device__ void Convert(int first) const {
    const int key = static_cast<int>(threadIdx.x) / 4, quarter = static_cast<int>(threadIdx.x) % 4;
    const uint32_t keep = s_.sources[first + key].row == nullptr ? 0u : ~0u;
    const uint8_t* raw = RawRow(key);
    Bf16* out = s_.keys + key * Stride();
    const int nope = kIsEntry ? Dim() - args_.shape.rope_dim : 0;
    if constexpr (kIsEntry) {
      const uint8_t* scales = raw + args_.pages.data_bytes;
#pragma unroll 4
      for (int group = 0; group < nope / kKvGroup; ++group) {
        const int channel = kKvGroup * group + 16 * quarter;
        const uint4 codes = *reinterpret_cast<const uint4*>(raw + channel);
        const auto scale = static_cast<uint8_t>(scales[group] & keep);  // never an infinite one
        WidenCodes(Masked(codes, keep), DecodeE8m0(scale), out + channel);
      }
    }
#pragma unroll 4
    for (int channel = nope + 16 * quarter; channel < Dim(); channel += 64) {
      const auto* values = reinterpret_cast<const uint4*>(raw + nope + 2 * (channel - nope));
      const uint4 low = values[0], high = values[1];
      reinterpret_cast<uint4*>(out + channel)[0] = Masked(low, keep);
      reinterpret_cast<uint4*>(out + channel)[1] = Masked(high, keep);
    }
  }

  // Visible keys first .. end - 1 of a list, in blocks of 64 at absolute multiples; source(k) says
  // where key k lies.
  template <bool kIsEntry, typename Source>
  __device__ void AddKeys(int64_t first, int64_t end, const Source& source) {
    for (int64_t base = first / kKeys * kKeys; base < end; base += kBatchKeys) {
      const int count = static_cast<int>(min(static_cast<int64_t>(kBatchKeys), end - base));
      const int hidden = static_cast<int>(first > base ? first - base : 0);
      __syncthreads();  // the batch before is done
      for (int k = static_cast<int>(threadIdx.x); k < kBatchKeys; k += kThreads) {
        s_.sources[k] = k >= hidden && k < count ? source(base + k) : KeySource{};
      }
      __syncthreads();
      LoadRaw<kIsEntry>(0);
      for (int k = 0; k < count; k += kKeys) {
        CopyAsyncCommit();
        CopyAsyncWait<0>();
        __syncthreads();  // all copies are here, and the block before is done with the keys
        Convert<kIsEntry>(k);
        __syncthreads();
        if (k + kKeys < count) LoadRaw<kIsEntry>(k + kKeys);
        AddBlock(max(hidden - k, 0), min(count - k, kKeys));
      }
    }
  }

  // Keys first .. last - 1 of the block are visible.
  __device__ void AddBlock(int first, int last) {
    Score();
    __syncthreads();
    if constexpr (!kIsBounded) {
      MoveReference(first, last);
      __syncthreads();
    }
    Exponentiate(first, last);
    __syncthreads();
    if (threadIdx.x < kHeads) AddDenominators(first, last);
    Accumulate();
  }

  __device__ void AddDenominators(int first, int last) const {
    const float* p = s_.scores + threadIdx.x * kScoreStride;
    float den = s_.den[threadIdx.x];
    if (first == 0 && last == kKeys) {
#pragma unroll
      for (int j = 0; j < kKeys; ++j) den += p[j];
    } else {
      for (int j = first; j < last; ++j) den += p[j];
    }
    s_.den[threadIdx.x] = den;
  }

  __device__ void Score() const {
    const int m = WarpIndex() / 4 * 16, n = WarpIndex() % 4 * 16, lane = LaneIndex();
    const uint32_t query = SharedAddress(s_.query + (m + lane % 16) * Stride() + lane / 16 * 8);
    const uint32_t keys =
        SharedAddress(s_.keys + (n + lane / 16 * 8 + lane % 8) * Stride() + lane / 8 % 2 * 8);
    float d[2][4] = {};
#pragma unroll 8
    for (int k = 0; k < Dim(); k += 16) {
      uint32_t a[4], b[4];
      LoadMatrices(query + 2 * k, a);
      LoadMatrices(keys + 2 * k, b);
      Mma(d[0], a, b[0], b[1]);
      Mma(d[1], a, b[2], b[3]);
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
    constexpr int kOwn = kHeads * kKeys / kThreads;
    float p[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const int head = at / kKeys, key = at % kKeys;
      const float scaled = s_.scores[head * kScoreStride + key] * args_.shape.score_scale;
      const float value = kIsBounded ? Exp(scaled) : ExpNeg(scaled - s_.max[head]);
      p[i] = key >= first && key < last ? value : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int at = i * kThreads + static_cast<int>(threadIdx.x);
      const int head = at / kKeys, key = at % kKeys;
      s_.scores[head * kScoreStride + key] = p[i];
      s_.weights[head * kWeightStride + key] = EncodeBf16(p[i]);
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
    const int lane = LaneIndex();
#pragma unroll
    for (int k = 0; k < kKeys; k += 16) {
      uint32_t a[4];
      LoadA(s_.weights, kWeightStride, WarpIndex() / 4 * 16, k, a);
#pragma unroll
      for (int t = 0; t < kTiles; t += 2) {
        if (!HasTile(t)) continue;
        const bool has_two = HasTile(t + 1);
        const int channel = ChannelOf(lane < 16 || !has_two ? t : t + 1);
        uint32_t b[4];
        LoadMatricesTransposed(SharedAddress(s_.keys + (k + lane % 16) * Stride() + channel), b);
        Mma(sums_[t], a, b[0], b[1]);
        if (has_two) Mma(sums_[t + 1], a, b[2], b[3]);
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

  __device__ void AddSegment(int segment) {
    StartSegment();
    if (segment == 0) {
      const int64_t oldest = position_ - args_.shape.window + 1;
      AddKeys<false>(oldest < 0 ? 0 : oldest, position_ + 1,
                     [this](int64_t key) { return WindowSource(key); });
      return;
    }
    const int64_t first = static_cast<int64_t>(segment - 1) * kSegmentEntries;
    const int64_t count = NumEntries(args_, row_), end = first + kSegmentEntries;
    AddKeys<true>(first, count < end ? count : end,
                  [this](int64_t key) { return EntrySource(key); });
  }

  __device__ void StorePartial(int segment) const {
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = first_head_ + HeadOf(half);
      if (head >= args_.shape.heads) continue;
      const PartialPlace place = PartialOf(args_, row_, segment, head);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (!HasTile(t)) continue;
        *reinterpret_cast<float2*>(place.sums + ChannelOf(t) + LaneIndex() % 4 * 2) =
            make_float2(sums_[t][2 * half], sums_[t][2 * half + 1]);
      }
    }
    const int head = first_head_ + static_cast<int>(threadIdx.x);
    if (threadIdx.x >= kHeads || head >= args_.shape.heads) return;
    const PartialPlace place = PartialOf(args_, row_, segment, head);
    *place.den = s_.den[threadIdx.x];
    *place.max = s_.max[threadIdx.x];
  }

  __device__ void Finish() {
    __syncthreads();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int head = first_head_ + HeadOf(half);
      if (head >= args_.shape.heads) continue;
      const Quotient q =
          AddSink<kIsBounded>(args_.sink[head], s_.all_max[HeadOf(half)], s_.all_den[HeadOf(half)]);
      Bf16* out = args_.attended + (static_cast<int64_t>(row_) * args_.shape.heads + head) * Dim();
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        if (!HasTile(t)) continue;
        Pair v = {total_[t][2 * half], total_[t][2 * half + 1]};
        if constexpr (!kIsBounded) v = {v.a * q.factor, v.b * q.factor};
        StorePair(args_, position_, ChannelOf(t) + LaneIndex() % 4 * 2, {v.a / q.den, v.b / q.den},
                  out);
      }
    }
  }

  const AttendArgs& args_;
  const Shared& s_;
  const int row_, first_head_;
  const int64_t position_;
  const int run_index_;
  const RunInfo run_;
  float sums_[kTiles][4], total_[kTiles][4];
};

template <int kTiles, bool kIsFull, bool kIsBounded>
__global__ void __launch_bounds__(kThreads) AttendKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (static_cast<int>(blockIdx.x) >= *args.step.num_rows) return;
  const Shared s = Place(shared, args.shape.head_dim);
  RowAttention<kTiles, kIsFull, kIsBounded>(args, s).Run();
}

// Grid: (rows, groups of heads, segments).
template <int kTiles, bool kIsFull, bool kIsBounded>
__global__ void __launch_bounds__(kThreads)
    AttendSegmentKernel(const __grid_constant__ AttendArgs args) {
  extern __shared__ __align__(16) uint8_t shared[];
  if (static_cast<int>(blockIdx.x) >= *args.step.num_rows) return;
  const Shared s = Place(shared, args.shape.head_dim);
  RowAttention<kTiles, kIsFull, kIsBounded>(args, s).RunSegment(static_cast<int>(blockIdx.z));
}

// Grid: (rows, heads). Adds a head's segments as EndSegment does, and finishes it.
template <bool kIsBounded>
__global__ void __launch_bounds__(kThreads) CombineKernel(const __grid_constant__ AttendArgs args) {
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (row >= *args.step.num_rows) return;
  const int dim = args.shape.head_dim;
  const int64_t entries = NumEntries(args, row);
  const int segments = 1 + static_cast<int>((entries + kSegmentEntries - 1) / kSegmentEntries);
  Bf16* out = args.attended + (static_cast<int64_t>(row) * args.shape.heads + head) * dim;
  for (int channel = 2 * static_cast<int>(threadIdx.x); channel < dim; channel += 2 * kThreads) {
    Pair total = {0.0f, 0.0f};
    float max = kNone, den = 0.0f;
#pragma unroll 4
    for (int segment = 0; segment < segments; ++segment) {
      const PartialPlace place = PartialOf(args, row, segment, head);
      float2 v = *reinterpret_cast<const float2*>(place.sums + channel);
      float segment_den = *place.den;
      if constexpr (!kIsBounded) {
        const float reference = Larger(*place.max, max);
        const float total_scale = ExpNeg(max - reference);
        const float segment_scale = ExpNeg(*place.max - reference);
        total = {total.a * total_scale, total.b * total_scale};
        v = make_float2(v.x * segment_scale, v.y * segment_scale);
        den *= total_scale;
        segment_den *= segment_scale;
        max = reference;
      }
      total = {total.a + v.x, total.b + v.y};
      den = den + segment_den;
    }
    const Quotient q = AddSink<kIsBounded>(args.sink[head], max, den);
    if constexpr (!kIsBounded) total = {total.a * q.factor, total.b * q.factor};
    StorePair(args, args.step.position[row], channel, {total.a / q.den, total.b / q.den}, out);
  }
}

template <int kTiles, bool kIsFull, bool kIsBounded>
cudaError_t Launch(const AttendArgs& args, cudaStream_t stream) {
  const bool is_split = args.segments > 1;
  const auto kernel = is_split ? AttendSegmentKernel<kTiles, kIsFull, kIsBounded>
                               : AttendKernel<kTiles, kIsFull, kIsBounded>;
  const int bytes = SharedBytes(args.shape.head_dim);
  if (const cudaError_t error =
          cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes)) {
    return error;
  }
  const dim3 grid(static_cast<unsigned>(args.step.rows),
                  static_cast<unsigned>((args.shape.heads + kHeads - 1) / kHeads),
                  is_split ? static_cast<unsigned>(args.segments) : 1u);
  kernel<<<grid, kThreads, static_cast<unsigned>(bytes), stream>>>(args);
  if (is_split) {
    const dim3 heads(static_cast<unsigned>(args.step.rows),
                     static_cast<unsigned>(args.shape.heads));
    CombineKernel<kIsBounded><<<heads, kThreads, 0, stream>>>(args);
  }
  return cudaPeekAtLastError();
}

template <int kTiles, bool kIsBounded>
cudaError_t LaunchTiles(const AttendArgs& args, cudaStream_t stream) {
  return args.shape.head_dim == 32 * kTiles ? Launch<kTiles, true, kIsBounded>(args, stream)
                                            : Launch<kTiles, false, kIsBounded>(args, stream);
}

template <bool kIsBounded>
cudaError_t LaunchFor(const AttendArgs& args, cudaStream_t stream) {
  if (args.shape.head_dim <= 128) return LaunchTiles<4, kIsBounded>(args, stream);
  if (args.shape.head_dim <= 256) return LaunchTiles<8, kIsBounded>(args, stream);
  return LaunchTiles<16, kIsBounded>(args, stream);
}

}  // namespace

int AttendSegments(int ratio, int index_topk, int64_t entries) {
  if (ratio == 0) return 1;
  const int64_t most = ratio == 4 ? index_topk : entries;
  return 1 + static_cast<int>((most + kSegmentEntries - 1) / kSegmentEntries);
}

cudaError_t RunAttend(const AttendArgs& args, cudaStream_t stream) {
  return args.has_bounded_scores ? LaunchFor<true>(args, stream) : LaunchFor<false>(args, stream);
}

}  // namespace baton::kernels::cuda
