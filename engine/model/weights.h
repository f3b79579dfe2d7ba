#pragma once

#include "absl/status/statusor.h"

#include "engine/load/checkpoint.h"
#include "kernels/device.h"
#include "kernels/weights.h"

namespace baton::engine {

// Uploads every matrix and vector of a checkpoint (model.md 9.2) to `device`, which owns them from
// then on; both checkpoint layouts (model.md 9.5: FP8 experts, wo_a without scale, scales as f32).
// Decides per layer whether scores are bounded (contracts.md 1.3, R3). Errors name the tensor.
// Engine thread, at start; the checkpoint may be closed afterwards.
absl::StatusOr<kernels::ModelWeights> LoadWeights(const Checkpoint& checkpoint,
                                                  kernels::Device& device);

// R3's load check: 1.07 * sqrt(head_dim) * max |norm weight| <= 70 and |sink| <= 70. Then exp with
// reference 0 neither overflows nor vanishes. Pure.
bool AreScoresBounded(int head_dim, float max_norm_weight, float max_sink);

}  // namespace baton::engine
