#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_phases.h"
#include "kernels/exact_math.h"

// Attend: one softmax over window rows and entries with one sink, in the fixed order of R3
// (contracts.md 1.3): keys by position, then by rank; blocks of 64; the window is a segment, every
// 512 entries are one more.
namespace baton::kernels::cpu {
namespace {

constexpr int kHeadGroup = 8;  // heads that share a decoded key block
constexpr int kSegmentEntries = 512;

}  // namespace

// One query row, up to eight of its heads.
class AttentionPhases::RowAttention {
 public:
  RowAttention(AttentionPhases& phases, const LayerWeights& layer, int row, int first_head)
      : phases_(phases),
        state_(phases.state_),
        layer_(layer),
        run_index_(phases.ops_.sequence_[static_cast<size_t>(row)]),
        run_(state_.runs[static_cast<size_t>(run_index_)]),
        row_(row),
        position_(phases.ops_.position_[static_cast<size_t>(row)]),
        first_head_(first_head),
        num_heads_(std::min(kHeadGroup, phases.config_.num_attention_heads - first_head)),
        dim_(phases.config_.head_dim) {}

  void Run() {
    Start(total_);
    AddWindow();
    AddEntries();
    Finish();
  }

 private:
  // A softmax in progress. max is used by the running-maximum form only.
  struct Segment {
    float sums[kHeadGroup * kMaxHeadDim];
    float denominator[kHeadGroup];
    float max[kHeadGroup];
  };

  void Start(Segment& segment) const {
    std::fill_n(segment.sums, num_heads_ * dim_, 0.0f);
    std::fill_n(segment.denominator, kHeadGroup, 0.0f);
    std::fill_n(segment.max, kHeadGroup, -std::numeric_limits<float>::infinity());
  }

  // position's row: of this step from the activations, older from what StoreRows took out of the
  // ring.
  const float* WindowKey(int64_t position) const {
    if (position >= run_.first) {
      const int64_t row = run_.first_row + (position - run_.first);
      return phases_.act_.kv.data() + row * dim_;
    }
    const int reach = phases_.config_.sliding_window - 1;
    const int64_t index = int64_t{run_index_} * reach + position - (run_.first - reach);
    return state_.old_window.data() + index * dim_;
  }

  void AddWindow() {
    const float* keys[kKeyBlock];
    int64_t p = std::max<int64_t>(position_ - phases_.config_.sliding_window + 1, 0);
    while (p <= position_) {
      const int64_t block_end = std::min((p / kKeyBlock + 1) * kKeyBlock, position_ + 1);
      int count = 0;
      for (; p < block_end; ++p) keys[count++] = WindowKey(p);
      AddBlock(keys, count, total_);
    }
  }

  void AddEntries() {
    if (layer_.ratio == 0) return;
    const bool is_csa = layer_.ratio == kCsaRatio;
    const auto row = static_cast<size_t>(row_);
    const int32_t* selected =
        phases_.act_.selected.data() + int64_t{row_} * phases_.config_.index_topk;
    const int64_t count = is_csa ? phases_.act_.num_selected[row] : (position_ + 1) / kHcaRatio;
    const float* keys[kKeyBlock];
    for (int64_t rank = 0; rank < count; rank += kKeyBlock) {
      if (rank % kSegmentEntries == 0) Start(part_);
      const auto num_keys = static_cast<int>(std::min<int64_t>(kKeyBlock, count - rank));
      for (int j = 0; j < num_keys; ++j) {
        const int64_t entry = is_csa ? selected[rank + j] : rank + j;
        const RowPlace place = phases_.EntryPlace(layer_, run_index_, entry);
        float* key = decoded_ + j * dim_;
        state_.codec.DecodeRow(place.data, place.scales, key);
        keys[j] = key;
      }
      AddBlock(keys, num_keys, part_);
      const int64_t next = rank + kKeyBlock;
      if (next % kSegmentEntries == 0 || next >= count) Combine(part_);
    }
  }

  void AddBlock(const float* const* keys, int num_keys, Segment& segment) {
    const KeyBlock block{keys, num_keys, dim_};
    const size_t query =
        static_cast<size_t>(row_ * phases_.config_.num_attention_heads + first_head_) *
        static_cast<size_t>(dim_);
    state_.kernels.score(phases_.act_.query.data() + query, num_heads_, block, scores_);
    for (int h = 0; h < num_heads_; ++h) {
      float* scores = scores_ + h * kKeyBlock;
      if (layer_.has_bounded_scores) {
        state_.kernels.exponentiate(scores, num_keys, state_.score_scale, &segment.denominator[h]);
      } else {
        Rescale(segment, h, BlockMaximum(scores, num_keys));
        state_.kernels.exponentiate_below(scores, num_keys, segment.max[h],
                                          &segment.denominator[h]);
      }
      phases_.ops_.Round(scores, num_keys);
    }
    state_.kernels.accumulate(scores_, num_heads_, block, segment.sums);
  }

  // Scales the scores and returns the largest.
  float BlockMaximum(float* scores, int n) const {
    float max = -std::numeric_limits<float>::infinity();
    for (int j = 0; j < n; ++j) {
      scores[j] *= state_.score_scale;
      max = std::max(max, scores[j]);
    }
    return max;
  }

  // Moves a head's reference up to at least `max`.
  void Rescale(Segment& segment, int h, float max) const {
    const float reference = std::max(segment.max[h], max);
    const float factor = ExpNeg(segment.max[h] - reference);  // 0 while max is -inf
    segment.denominator[h] *= factor;
    for (int d = 0; d < dim_; ++d) segment.sums[h * dim_ + d] *= factor;
    segment.max[h] = reference;
  }

  void Combine(Segment& part) {
    for (int h = 0; h < num_heads_; ++h) {
      if (!layer_.has_bounded_scores) {
        Rescale(total_, h, part.max[h]);
        Rescale(part, h, total_.max[h]);
      }
      total_.denominator[h] += part.denominator[h];
      for (int d = 0; d < dim_; ++d) total_.sums[h * dim_ + d] += part.sums[h * dim_ + d];
    }
  }

  void Finish() {
    const int rope = phases_.config_.qk_rope_head_dim;
    const RopeAngles angles = phases_.ops_.rope_.At(RopeKindOf(layer_.ratio), position_);
    const size_t first =
        static_cast<size_t>(row_ * phases_.config_.num_attention_heads + first_head_) *
        static_cast<size_t>(dim_);
    for (int h = 0; h < num_heads_; ++h) {
      const float sink = layer_.attn_sink.data[first_head_ + h];
      if (!layer_.has_bounded_scores) Rescale(total_, h, sink);
      const float sink_mass = layer_.has_bounded_scores ? Exp(sink) : ExpNeg(sink - total_.max[h]);
      const float denominator = total_.denominator[h] + sink_mass;
      float* out = phases_.act_.attended.data() + first + h * dim_;
      for (int d = 0; d < dim_; ++d) out[d] = total_.sums[h * dim_ + d] / denominator;
      phases_.ops_.Round(out, dim_);
      RotateBack(angles, out + dim_ - rope);
      phases_.ops_.Round(out + dim_ - rope, rope);
    }
  }

  AttentionPhases& phases_;
  AttentionState& state_;
  const LayerWeights& layer_;
  const int run_index_;
  const StepRun& run_;
  const int row_;
  const int64_t position_;
  const int first_head_, num_heads_, dim_;
  Segment total_, part_;
  float scores_[kHeadGroup * kKeyBlock];
  float decoded_[kKeyBlock * kMaxHeadDim];
};

void AttentionPhases::Attend(const LayerWeights& layer) {
  const int groups = (config_.num_attention_heads + kHeadGroup - 1) / kHeadGroup;
  ops_.ForRows(ops_.num_rows_ * groups, 1, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) {
      RowAttention(*this, layer, i / groups, i % groups * kHeadGroup).Run();
    }
  });
}

}  // namespace baton::kernels::cpu
