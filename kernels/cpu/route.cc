#include "kernels/cpu/route.h"

#include <algorithm>

#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/exact_math.h"

namespace baton::kernels::cpu {

void GateScores(std::span<float> logits) {
  for (float& logit : logits) logit = Sqrt(Softplus(logit));
}

void SelectExperts(std::span<const float> scores, const float* bias, std::span<int32_t> ids) {
  // Insertion into a short sorted list; an equal score stays behind the earlier, lower expert.
  size_t filled = 0;
  const auto key = [&](size_t expert) { return scores[expert] + bias[expert]; };
  for (size_t expert = 0; expert < scores.size(); ++expert) {
    const float value = key(expert);
    size_t slot = filled;
    while (slot > 0 && value > key(static_cast<size_t>(ids[slot - 1]))) --slot;
    if (slot == ids.size()) continue;
    filled = std::min(filled + 1, ids.size());
    for (size_t i = filled - 1; i > slot; --i) ids[i] = ids[i - 1];
    ids[slot] = static_cast<int32_t>(expert);
  }
}

void RoutingWeights(std::span<const float> scores, std::span<const int32_t> ids, float scaling,
                    std::span<float> weights) {
  float sum = 0.0f;
  for (const int32_t id : ids) sum += scores[static_cast<size_t>(id)];
  for (size_t i = 0; i < ids.size(); ++i) {
    weights[i] = scores[static_cast<size_t>(ids[i])] / sum * scaling;
  }
}

absl::Status CpuOps::Route(const LayerArgs& args) {
  const int rows = *args.step.num_rows;
  const auto num_experts = static_cast<size_t>(config_.n_routed_experts);
  const auto slots = static_cast<size_t>(config_.num_experts_per_tok);
  RETURN_IF_ERROR(
      RunLinears({{PlainLinear(args.layer.gate, act_.normed, rows, gate_logits_.data())}}));
  const auto scaling = static_cast<float>(config_.routed_scaling_factor);
  ForRows(rows, kRowPiece, [&](int begin, int end) {
    for (int r = begin; r < end; ++r) {
      const auto row = static_cast<size_t>(r);
      const std::span<float> scores(&gate_logits_[row * num_experts], num_experts);
      const std::span<int32_t> ids(&act_.expert_ids[row * slots], slots);
      GateScores(scores);
      if (args.layer.token_experts != nullptr) {
        const auto token = static_cast<size_t>(args.step.token[row]);
        std::copy_n(args.layer.token_experts + token * slots, slots, ids.begin());
      } else {
        SelectExperts(scores, args.layer.gate_bias.data, ids);
      }
      RoutingWeights(scores, ids, scaling, {&act_.expert_weights[row * slots], slots});
    }
  });
  return absl::OkStatus();
}

}  // namespace baton::kernels::cpu
