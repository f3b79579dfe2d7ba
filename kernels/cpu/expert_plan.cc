#include "kernels/cpu/expert_plan.h"

#include <algorithm>

namespace baton::kernels::cpu {

void ExpertPlan::Reserve(int rows, int experts_per_row, int num_experts) {
  const size_t pairs = static_cast<size_t>(rows) * static_cast<size_t>(experts_per_row);
  row.reserve(pairs);
  weight.reserve(pairs);
  row_pairs.reserve(pairs);
  expert_begin.reserve(static_cast<size_t>(num_experts) + 1);
  row_begin.reserve(static_cast<size_t>(rows) + 1);
}

void ExpertPlan::Build(std::span<const int32_t> ids, std::span<const float> weights,
                       int experts_per_row, int num_experts) {
  const auto width = static_cast<size_t>(experts_per_row);
  const size_t rows = ids.size() / width;
  // Is this the first mention of its expert in its row?
  const auto is_first = [&](size_t index) {
    const auto begin = ids.begin() + static_cast<std::ptrdiff_t>(index - index % width);
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(index);
    return std::find(begin, end, ids[index]) == end;
  };
  expert_begin.assign(static_cast<size_t>(num_experts) + 1, 0);
  row_begin.assign(rows + 1, 0);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!is_first(i)) continue;
    ++expert_begin[static_cast<size_t>(ids[i]) + 1];
    ++row_begin[i / width + 1];
  }
  for (size_t e = 1; e < expert_begin.size(); ++e) expert_begin[e] += expert_begin[e - 1];
  for (size_t r = 1; r < row_begin.size(); ++r) row_begin[r] += row_begin[r - 1];

  const auto pairs = static_cast<size_t>(num_pairs());
  row.resize(pairs);
  weight.resize(pairs);
  row_pairs.resize(pairs);
  // Rows ascending fill each expert's run in order; expert_begin is the cursor and is shifted back
  // afterwards.
  for (size_t i = 0; i < ids.size(); ++i) {
    if (!is_first(i)) continue;
    const size_t row_start = i - i % width;
    float sum = 0.0f;
    for (size_t j = row_start; j < row_start + width; ++j) {
      if (ids[j] == ids[i]) sum += weights[j];
    }
    const auto pair = static_cast<size_t>(expert_begin[static_cast<size_t>(ids[i])]++);
    row[pair] = static_cast<int32_t>(i / width);
    weight[pair] = sum;
  }
  for (size_t e = expert_begin.size() - 1; e > 0; --e) expert_begin[e] = expert_begin[e - 1];
  expert_begin[0] = 0;
  for (size_t pair = 0; pair < pairs; ++pair) {
    row_pairs[static_cast<size_t>(row_begin[static_cast<size_t>(row[pair])]++)] =
        static_cast<int32_t>(pair);
  }
  for (size_t r = rows; r > 0; --r) row_begin[r] = row_begin[r - 1];
  row_begin[0] = 0;
}

ExpertScratch::ExpertScratch(const ModelConfig& config, int max_rows) {
  const auto rows = static_cast<size_t>(std::min(max_rows, kExpertSlice)) *
                    static_cast<size_t>(config.num_experts_per_tok + 1);
  const auto width = static_cast<size_t>(config.moe_intermediate_size);
  gate.resize(rows * width);
  up.resize(rows * width);
  scales.resize(rows * width / 128);
  out.resize(rows * static_cast<size_t>(config.hidden_size));
}

}  // namespace baton::kernels::cpu
