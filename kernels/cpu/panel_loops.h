#pragma once

#include "kernels/cpu/lanes.h"
#include "kernels/cpu/panel.h"

// The loops of panel.h for one instruction set; included once by each panel_*.cc. Here the 16
// vector lanes are 16 outputs, and R11's lanes are accumulators: s[i] sums k = i mod 16, so the
// tree is plain additions, taken depth first to keep few sums alive.
namespace baton::kernels::cpu::BATON_LANES {

inline constexpr int kBlock = 128;  // of K, see prepared_matrix.h
inline constexpr int kPairValues = 2 * kLanes;
inline constexpr int kStepsPerBlock = kBlock / 16;

// R rows at a time share each load of the weights.
template <int R>
struct Sums {
  Lanes row[R];
};

template <int R>
BATON_LANE_INLINE Sums<R> ZeroSums() {
  Sums<R> sums;
  for (int r = 0; r < R; ++r) sums.row[r] = Broadcast(0.0f);
  return sums;
}

template <int R>
BATON_LANE_INLINE Sums<R> AddSums(const Sums<R>& a, const Sums<R>& b) {
  Sums<R> sums;
  for (int r = 0; r < R; ++r) sums.row[r] = Add(a.row[r], b.row[r]);
  return sums;
}

// What a run of columns is: `blocks` blocks from block `first`, in each the steps first_step ..
// last_step - 1.
struct Run {
  int first, blocks, first_step, last_step;
};

template <int R, typename W, bool kIsWidened>
struct Tile {
  const W* weights;
  const float* scales;
  int group_shift;  // log2 of the scale group
  const float* x[R];

  // One weight vector: step `step` of lane pair place `place` in block `block`, half 0 or 1.
  BATON_LANE_INLINE Lanes Weight(int block, int place, int step, int half) const {
    const W* values = weights + static_cast<int64_t>(block) * kBlock * kLanes;
    const Lanes w = Load(values + (place * kStepsPerBlock + step) * kPairValues + half * kLanes);
    if constexpr (kIsWidened) {
      const int64_t group = (static_cast<int64_t>(block) * kBlock + step * 16) >> group_shift;
      return Mul(w, Load(scales + group * kLanes));
    }
    return w;
  }

  // s[lane] + s[lane + 8], lane = 0..7.
  template <int kPlace, int kLane>
  BATON_LANE_INLINE Sums<R> Pair(const Run& run) const {
    Sums<R> low = ZeroSums<R>(), high = ZeroSums<R>();
    for (int block = run.first; block < run.first + run.blocks; ++block) {
      const int column = block * kBlock + kLane;
      for (int step = run.first_step; step < run.last_step; ++step) {
        const Lanes w_low = Weight(block, kPlace, step, 0);
        const Lanes w_high = Weight(block, kPlace, step, 1);
        for (int r = 0; r < R; ++r) {
          const float* x_step = x[r] + column + step * 16;
          low.row[r] = Fma(Broadcast(x_step[0]), w_low, low.row[r]);
          high.row[r] = Fma(Broadcast(x_step[8]), w_high, high.row[r]);
        }
      }
    }
    return AddSums(low, high);
  }

  // (s[lane] + s[lane + 8]) + (s[lane + 4] + s[lane + 12]), lane = 0..3.
  template <int kPlace, int kLane>
  BATON_LANE_INLINE Sums<R> Quad(const Run& run) const {
    const Sums<R> first = Pair<kPlace, kLane>(run);
    return AddSums(first, Pair<kPlace + 1, kLane + 4>(run));
  }

  template <int kPlace, int kLane>
  BATON_LANE_INLINE Sums<R> Half(const Run& run) const {
    const Sums<R> first = Quad<kPlace, kLane>(run);
    return AddSums(first, Quad<kPlace + 2, kLane + 2>(run));
  }

  // The whole tree over the run's columns.
  BATON_LANE_INLINE Sums<R> Sum(const Run& run) const {
    const Sums<R> first = Half<0, 0>(run);
    return AddSums(first, Half<4, 1>(run));
  }
};

template <int R>
BATON_LANE_INLINE void StoreTile(const PanelArgs& args, int row, const Sums<R>& sums) {
  for (int r = 0; r < R; ++r) {
    const Lanes y = args.round_bf16 ? RoundToBf16(sums.row[r]) : sums.row[r];
    Store(args.y + static_cast<int64_t>(row + r) * kLanes, y);
  }
}

template <int R, typename W, bool kIsWidened>
BATON_LANE_INLINE Tile<R, W, kIsWidened> TileAt(const PanelArgs& args, const W* weights, int row) {
  Tile<R, W, kIsWidened> tile;
  tile.weights = weights;
  tile.scales = args.scales;
  tile.group_shift = args.scale_group == 32 ? 5 : 7;
  for (int r = 0; r < R; ++r) tile.x[r] = args.x[row + r];
  return tile;
}

// 16 lanes over all columns.
template <int R, typename W, bool kIsWidened>
__attribute__((noinline)) void MultiplyWhole(const PanelArgs& args, const W* weights, int row) {
  const auto tile = TileAt<R, W, kIsWidened>(args, weights, row);
  StoreTile<R>(args, row, tile.Sum({0, args.cols / kBlock, 0, kStepsPerBlock}));
}

// One promotion for each `promote_group` columns.
template <int R, typename W>
__attribute__((noinline)) void MultiplyPromoted(const PanelArgs& args, const W* weights, int row) {
  const auto tile = TileAt<R, W, false>(args, weights, row);
  Sums<R> acc = ZeroSums<R>();
  const int steps = args.promote_group / 16;
  for (int block = 0; block < args.cols / kBlock; ++block) {
    for (int step = 0; step < kStepsPerBlock; step += steps) {
      const Sums<R> part = steps == kStepsPerBlock ? tile.Sum({block, 1, 0, kStepsPerBlock})
                                                   : tile.Sum({block, 1, step, step + steps});
      const int64_t group = (static_cast<int64_t>(block) * kBlock + step * 16) >> tile.group_shift;
      const Lanes scale = Load(args.scales + group * kLanes);
      for (int r = 0; r < R; ++r) {
        const Lanes factor = Mul(Broadcast(args.x_scales[row + r][block]), scale);
        acc.row[r] = Fma(part.row[r], factor, acc.row[r]);
      }
    }
  }
  StoreTile<R>(args, row, acc);
}

template <int R, typename W>
BATON_LANE_INLINE void MultiplyTile(const PanelArgs& args, const W* weights, int row) {
  if (args.scales == nullptr) return MultiplyWhole<R, W, false>(args, weights, row);
  if (args.x_scales == nullptr) return MultiplyWhole<R, W, true>(args, weights, row);
  MultiplyPromoted<R, W>(args, weights, row);
}

// Rows in tiles of kMax, then of half that size, down to 1. Which tile a row falls into never
// changes its bits.
template <int kMax, typename W>
BATON_LANE_INLINE void MultiplyRows(const PanelArgs& args, const W* weights, int row) {
  for (; row + kMax <= args.num_rows; row += kMax) MultiplyTile<kMax, W>(args, weights, row);
  if constexpr (kMax > 1) MultiplyRows<kMax / 2, W>(args, weights, row);
}

template <int kMax>
BATON_LANE_INLINE void MultiplyPanel(const PanelArgs& args) {
  if (args.bf16 != nullptr) {
    MultiplyRows<kMax, uint16_t>(args, args.bf16, 0);
  } else {
    MultiplyRows<kMax, float>(args, args.f32, 0);
  }
}

}  // namespace baton::kernels::cpu::BATON_LANES
