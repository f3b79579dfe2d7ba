#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/activations.h"
#include "kernels/weights.h"

namespace baton::kernels::cpu {

// A slice of rows regrouped by expert: a pair is one row at one expert. Pairs are ordered by
// expert, then by row, so that an expert's rows are one contiguous run and a row's pairs, taken in
// pair order, come in ascending expert id (R5 of contracts.md 1.3). An expert named twice by one
// row (hash tables may) is one pair with the sum of its weights.
struct ExpertPlan {
  std::vector<int32_t> row;           // [pairs] row of the slice
  std::vector<float> weight;          // [pairs]
  std::vector<int32_t> expert_begin;  // [experts + 1] into pairs
  std::vector<int32_t> row_begin;     // [rows + 1] into row_pairs
  std::vector<int32_t> row_pairs;     // [pairs], ascending for each row

  int num_pairs() const { return expert_begin.empty() ? 0 : expert_begin.back(); }

  // Reserves for `rows` rows, so that Build does not allocate.
  void Reserve(int rows, int experts_per_row, int num_experts);
  // ids, weights [rows, experts_per_row].
  void Build(std::span<const int32_t> ids, std::span<const float> weights, int experts_per_row,
             int num_experts);
};

// Experts handles this many rows at a time; its buffers are [pairs, ..] of one slice, the shared
// expert's rows after the routed pairs.
inline constexpr int kExpertSlice = 512;

// A run of one expert's pairs, or of the shared expert's rows, that one part of the section
// computes.
struct ExpertPart {
  const ExpertWeights* expert = nullptr;
  bool is_shared = false;
  bool promotes_per_32 = false;
  int first = 0;  // into the scratch rows
  int count = 0;
};

struct ExpertScratch {
  std::vector<float> gate;    // [pairs + slice rows, I]; then the product, then its fp8 codes
  std::vector<float> up;      // [pairs + slice rows, I]
  std::vector<float> scales;  // [pairs + slice rows, I / 128]
  std::vector<float> out;     // [pairs + slice rows, H]

  ExpertScratch(const ModelConfig& config, int max_rows);
};

}  // namespace baton::kernels::cpu
