#pragma once

#include <array>
#include <cstdint>

#include "kernels/model_config.h"

namespace baton::kernels::cpu {

// Two frequency sets (model.md 3.2): sliding-only layers and the MTP rotate by theta 10000; layers
// with compressed entries rotate everything (queries, window rows, entries, index) by theta 160000
// with YaRN.
enum class RopeKind { kPlain, kCompressed };

inline RopeKind RopeKindOf(int ratio) {
  return ratio == 0 ? RopeKind::kPlain : RopeKind::kCompressed;
}

inline constexpr int kMaxRopePairs = 64;

// cos and sin of one position's angles, by pair.
struct RopeAngles {
  int num_pairs = 0;
  std::array<float, kMaxRopePairs> cos, sin;
};

// The angles of contracts.md 2.6. Those of a position cost less than one row's norm, so they are
// computed where they are used instead of kept for the whole context. Immutable, any thread.
class RopeTable {
 public:
  explicit RopeTable(const ModelConfig& config);
  RopeAngles At(RopeKind kind, int64_t position) const;

 private:
  int num_pairs_;
  std::array<std::array<float, kMaxRopePairs>, 2> frequencies_;  // [kind][pair]
};

// Rotates interleaved pairs in place: (a, b) -> (a cos - b sin, a sin + b cos), fp32, unrounded.
// `values` are the last 2 * num_pairs dimensions of a vector.
void Rotate(const RopeAngles& angles, float* values);
// The same by the opposite angle.
void RotateBack(const RopeAngles& angles, float* values);

}  // namespace baton::kernels::cpu
