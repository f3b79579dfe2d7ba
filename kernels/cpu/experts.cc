#include "kernels/cpu/cpu_ops_impl.h"

namespace baton::kernels::cpu {
namespace {

constexpr int kPairPiece = 64;  // pairs of one part

bool PromotesPer32(const ExpertWeights& expert) {
  return Prepared(*expert.w1).has_wide_spread() || Prepared(*expert.w3).has_wide_spread() ||
         Prepared(*expert.w2).has_wide_spread();
}

// Splits scratch rows first .. last - 1 of one expert into parts.
void AddParts(const ExpertPart& whole, std::vector<ExpertPart>& parts) {
  for (int done = 0; done < whole.count; done += kPairPiece) {
    ExpertPart part = whole;
    part.first = whole.first + done;
    part.count = std::min(kPairPiece, whole.count - done);
    parts.push_back(part);
  }
}

}  // namespace

int CountPromotedExperts(const ModelWeights& weights) {
  return CountExperts(weights, PromotesPer32);
}

absl::Status CpuOps::Experts(const LayerArgs& args) {
  const int rows = *args.step.num_rows;
  for (int first = 0; first < rows; first += kExpertSlice) {
    RunExpertSlice(args.layer, first, std::min(kExpertSlice, rows - first));
  }
  return absl::OkStatus();
}

void CpuOps::RunExpertSlice(const LayerWeights& layer, int first_row, int num_rows) {
  const auto slots = static_cast<size_t>(config_.num_experts_per_tok);
  const auto first = static_cast<size_t>(first_row) * slots;
  const auto count = static_cast<size_t>(num_rows) * slots;
  expert_plan_.Build({&act_.expert_ids[first], count}, {&act_.expert_weights[first], count},
                     config_.num_experts_per_tok, config_.n_routed_experts);
  expert_parts_.clear();
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    const int begin = expert_plan_.expert_begin[e], end = expert_plan_.expert_begin[e + 1];
    if (begin == end) continue;
    AddParts({.expert = &layer.experts[e],
              .promotes_per_32 = PromotesPer32(layer.experts[e]),
              .first = begin,
              .count = end - begin},
             expert_parts_);
  }
  AddParts({.expert = &layer.shared,
            .is_shared = true,
            .promotes_per_32 = PromotesPer32(layer.shared),
            .first = expert_plan_.num_pairs(),
            .count = num_rows},
           expert_parts_);
  ForRows(static_cast<int>(expert_parts_.size()), 1, [&](int begin, int) {
    RunExpertPart(expert_parts_[static_cast<size_t>(begin)], first_row);
  });
  ForRows(num_rows, kRowPiece, [&](int begin, int end) { SumExperts(first_row, begin, end); });
}

// w1, w3, activation, fp8, w2 of one run of scratch rows (model.md 6.2, 10.6 item 12).
void CpuOps::RunExpertPart(const ExpertPart& part, int first_row) {
  const int width = config_.moe_intermediate_size, hidden = config_.hidden_size;
  const auto offset = static_cast<size_t>(part.first) * static_cast<size_t>(width);
  float* gate = &expert_scratch_.gate[offset];
  float* up = &expert_scratch_.up[offset];
  float* scales = &expert_scratch_.scales[offset / kFp8Group];

  GemmArgs in = Fp8Linear(part.expert->w1, act_.normed8, part.count, gate);
  in.promotes_per_32 = part.promotes_per_32;
  in.x += int64_t{first_row} * hidden;
  in.x_scales += int64_t{first_row} * (hidden / kFp8Group);
  if (part.is_shared) {
    const int row = part.first - expert_plan_.num_pairs();
    in.x += int64_t{row} * hidden;
    in.x_scales += int64_t{row} * (hidden / kFp8Group);
  } else {
    in.x_rows = &expert_plan_.row[static_cast<size_t>(part.first)];
  }
  gemm_.RunHere(in);
  in.weight = part.expert->w3;
  in.y = up;
  gemm_.RunHere(in);

  for (int i = 0; i < part.count; ++i) {
    const auto pair = static_cast<size_t>(part.first + i);
    float* activation = gate + int64_t{i} * width;
    swiglu_({.gate = activation,
             .up = up + int64_t{i} * width,
             .n = width,
             .limit = static_cast<float>(config_.swiglu_limit),
             .weight = part.is_shared ? 1.0f : expert_plan_.weight[pair],
             .out = activation});
    Round(activation, width);
    QuantiseRow(activation, width, mode_, activation, scales + int64_t{i} * (width / kFp8Group));
  }
  GemmArgs out = in;
  out.weight = part.expert->w2;
  out.x = gate;
  out.x_scales = scales;
  out.x_stride = width;
  out.x_rows = nullptr;
  out.y = &expert_scratch_.out[static_cast<size_t>(part.first) * static_cast<size_t>(hidden)];
  out.y_stride = hidden;
  gemm_.RunHere(out);
}

// branch = round(sum of the row's experts by ascending id, the shared one last) (R5), for rows
// begin .. end - 1 of the slice.
void CpuOps::SumExperts(int first_row, int begin, int end) {
  const auto hidden = static_cast<size_t>(config_.hidden_size);
  const auto num_pairs = static_cast<size_t>(expert_plan_.num_pairs());
  for (auto row = static_cast<size_t>(begin); row < static_cast<size_t>(end); ++row) {
    float* sum = &act_.branch[(static_cast<size_t>(first_row) + row) * hidden];
    std::fill_n(sum, hidden, 0.0f);
    const auto add = [&](size_t scratch_row) {
      const float* y = &expert_scratch_.out[scratch_row * hidden];
      for (size_t i = 0; i < hidden; ++i) sum[i] += y[i];
    };
    for (auto i = static_cast<size_t>(expert_plan_.row_begin[row]);
         i < static_cast<size_t>(expert_plan_.row_begin[row + 1]); ++i) {
      add(static_cast<size_t>(expert_plan_.row_pairs[i]));
    }
    add(num_pairs + row);
    Round(sum, config_.hidden_size);
  }
}

}  // namespace baton::kernels::cpu
