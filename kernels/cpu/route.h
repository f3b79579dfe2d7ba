#pragma once

#include <cstdint>
#include <span>

namespace baton::kernels::cpu {

// score = sqrt(softplus(logit)), in place (model.md 6.1).
void GateScores(std::span<float> logits);

// The experts of the ids.size() largest scores + bias, largest first, ties to the lower expert
// (R7).
void SelectExperts(std::span<const float> scores, const float* bias, std::span<int32_t> ids);

// weights[i] = scores[ids[i]] / sum * scaling; the sum runs over the slots in order. Pure, any
// thread.
void RoutingWeights(std::span<const float> scores, std::span<const int32_t> ids, float scaling,
                    std::span<float> weights);

}  // namespace baton::kernels::cpu
