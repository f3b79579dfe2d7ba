#include <algorithm>
#include <functional>

#include "kernels/cpu/attention_phases.h"
#include "kernels/exact_math.h"

// SelectEntries: the lightning indexer (model.md 5). Scores in fp32, top-k exact, ties to the
// lowest index, selected entries ascending (R3, R7).
namespace baton::kernels::cpu {
namespace {

constexpr int kHeadGroup = 8;

// Descending order of these integers is: score descending, then entry ascending.
uint64_t Rank(float score, uint32_t entry) {
  const uint32_t bits = BitsOf(score + 0.0f);  // -0 becomes +0: they tie
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (uint64_t{ordered} << 32) | (0xffffffffu - entry);
}

uint32_t EntryOf(uint64_t rank) { return 0xffffffffu - static_cast<uint32_t>(rank); }

}  // namespace

// Some rows of one run that are scored together.
struct AttentionPhases::SelectGroup {
  int run = 0;
  int first_row = 0;
  int num_rows = 0;
  int64_t NumVisible(const CpuOps& ops, int row) const {
    return (ops.position_[static_cast<size_t>(row)] + 1) / kCsaRatio;
  }
};

// Scores of up to 64 entries, which share a page, for the group's rows.
void AttentionPhases::ScoreTile(const LayerWeights& layer, const SelectGroup& group, int tile) {
  const int dim = config_.index_head_dim, heads = config_.index_n_heads;
  const int64_t first = int64_t{tile} * kKeyBlock;
  const int64_t last =
      std::min(first + kKeyBlock, group.NumVisible(ops_, group.first_row + group.num_rows - 1));
  float keys[kKeyBlock * kMaxIndexDim], scores[kHeadGroup * kKeyBlock];
  const float* key_rows[kKeyBlock];
  const PageId page = PageOf(group.run, first * kCsaRatio);
  for (int64_t entry = first; entry < last; ++entry) {
    float* key = keys + (entry - first) * dim;
    const RowPlace place = IndexPlaceIn(layer.layer, page, entry);
    state_.codec.DecodeIndexRow(place.data, place.scales, key);
    key_rows[entry - first] = key;
  }
  for (int i = 0; i < group.num_rows; ++i) {
    const auto row = static_cast<size_t>(group.first_row + i);
    const int64_t visible = std::min(last, group.NumVisible(ops_, group.first_row + i));
    const auto num_keys = static_cast<int>(visible - first);
    if (num_keys <= 0) continue;
    float sums[kKeyBlock] = {};
    for (int h = 0; h < heads; h += kHeadGroup) {
      const int group_heads = std::min(kHeadGroup, heads - h);
      const size_t head = row * static_cast<size_t>(heads) + static_cast<size_t>(h);
      state_.kernels.score(act_.index_query.data() + head * static_cast<size_t>(dim), group_heads,
                           {key_rows, num_keys, dim}, scores);
      for (int g = 0; g < group_heads; ++g) {
        const float weight = act_.index_weights[head + static_cast<size_t>(g)];
        const float* dots = scores + g * kKeyBlock;
        for (int j = 0; j < num_keys; ++j) sums[j] += weight * std::max(dots[j], 0.0f);
      }
    }
    uint64_t* ranks = state_.ranks.data() + static_cast<size_t>(i * state_.max_entries + first);
    for (int j = 0; j < num_keys; ++j) ranks[j] = Rank(sums[j], static_cast<uint32_t>(first + j));
  }
}

void AttentionPhases::PickBest(const SelectGroup& group, int row) {
  const int64_t visible = group.NumVisible(ops_, row);
  const int64_t count = std::min<int64_t>(visible, config_.index_topk);
  int32_t* selected = act_.selected.data() + static_cast<int64_t>(row) * config_.index_topk;
  act_.num_selected[static_cast<size_t>(row)] = static_cast<int32_t>(count);
  if (visible <= config_.index_topk) {
    for (int64_t i = 0; i < count; ++i) selected[i] = static_cast<int32_t>(i);
    return;
  }
  uint64_t* ranks = state_.ranks.data() + (row - group.first_row) * state_.max_entries;
  std::nth_element(ranks, ranks + count - 1, ranks + visible, std::greater<>());
  for (int64_t i = 0; i < count; ++i) selected[i] = static_cast<int32_t>(EntryOf(ranks[i]));
  std::sort(selected, selected + count);
}

void AttentionPhases::SelectEntries(const LayerWeights& layer) {
  if (layer.ratio != kCsaRatio) return;
  for (size_t r = 0; r < state_.runs.size(); ++r) {
    const StepRun& run = state_.runs[r];
    for (int done = 0; done < run.num_rows; done += kSelectRows) {
      const SelectGroup group{.run = static_cast<int>(r),
                              .first_row = run.first_row + done,
                              .num_rows = std::min(kSelectRows, run.num_rows - done)};
      const int64_t visible = group.NumVisible(ops_, group.first_row + group.num_rows - 1);
      if (visible > config_.index_topk) {
        const auto tiles = static_cast<int>((visible + kKeyBlock - 1) / kKeyBlock);
        ops_.ForRows(tiles, 1, [&](int begin, int end) {
          for (int tile = begin; tile < end; ++tile) ScoreTile(layer, group, tile);
        });
      }
      ops_.ForRows(group.num_rows, 4, [&](int begin, int end) {
        for (int i = begin; i < end; ++i) PickBest(group, group.first_row + i);
      });
    }
  }
}

}  // namespace baton::kernels::cpu
