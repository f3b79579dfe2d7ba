#include "kernels/cpu/rope.h"

#include "common/check.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {

RopeTable::RopeTable(const ModelConfig& config)
    : num_pairs_(config.qk_rope_head_dim / 2), frequencies_{} {
  CHECK(num_pairs_ <= kMaxRopePairs);
  const RopeShape plain{.rope_dim = config.qk_rope_head_dim, .theta = config.rope_theta};
  const RopeShape compressed{.rope_dim = config.qk_rope_head_dim,
                             .theta = config.compress_rope_theta,
                             .yarn_factor = config.yarn_factor,
                             .yarn_beta_fast = config.yarn_beta_fast,
                             .yarn_beta_slow = config.yarn_beta_slow,
                             .yarn_original_positions = config.yarn_original_positions};
  for (int i = 0; i < num_pairs_; ++i) {
    const auto pair = static_cast<size_t>(i);
    frequencies_[static_cast<size_t>(RopeKind::kPlain)][pair] = RopeFrequency(plain, i);
    frequencies_[static_cast<size_t>(RopeKind::kCompressed)][pair] = RopeFrequency(compressed, i);
  }
}

RopeAngles RopeTable::At(RopeKind kind, int64_t position) const {
  RopeAngles angles;
  angles.num_pairs = num_pairs_;
  const auto& frequencies = frequencies_[static_cast<size_t>(kind)];
  for (size_t i = 0; i < static_cast<size_t>(num_pairs_); ++i) {
    const SinCos rotation = RopeSinCos(RopeAngle(position, frequencies[i]));
    angles.sin[i] = rotation.sin;
    angles.cos[i] = rotation.cos;
  }
  return angles;
}

void Rotate(const RopeAngles& angles, float* values) {
  for (size_t i = 0; i < static_cast<size_t>(angles.num_pairs); ++i) {
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * angles.cos[i] - b * angles.sin[i];
    values[2 * i + 1] = a * angles.sin[i] + b * angles.cos[i];
  }
}

void RotateBack(const RopeAngles& angles, float* values) {
  for (size_t i = 0; i < static_cast<size_t>(angles.num_pairs); ++i) {
    const float a = values[2 * i], b = values[2 * i + 1];
    values[2 * i] = a * angles.cos[i] + b * angles.sin[i];
    values[2 * i + 1] = b * angles.cos[i] - a * angles.sin[i];
  }
}

}  // namespace baton::kernels::cpu
