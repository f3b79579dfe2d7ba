#pragma once

#include <cstdint>
#include <cuda_runtime_api.h>

// The sampler (contracts.md 2.2, 2.3, 2.5), bit-equal to the CPU back end's for equal logits.
// Device pointers, asynchronous.
namespace baton::kernels::cuda {

inline constexpr int kMaxTop = 20;
inline constexpr int kMaxVocabulary = (1 << 17) - 1;
inline constexpr int kMaxFewTopK = 100;  // up to here top-k looks at few tokens

// What penalties and bias do to one token (2.2 steps 1 to 3).
struct ScoreEdit {
  int32_t token = 0;
  int32_t repeats = 0;  // 1: the repetition penalty applies
  int32_t count = 0;    // among generated tokens
  float bias = 0;
  int32_t has_bias = 0;
};

struct SampleRowArgs {
  int32_t logits_row = 0;
  int32_t greedy = 0;
  int32_t is_draft = 0;
  int32_t top_logprobs = -1;
  float inv_temperature = 1;
  float repetition = 1, frequency = 0, presence = 0;
  int32_t top_k = 0;
  int32_t num_edits = 0;
  uint64_t top_p = 0, min_p = 0;  // as in SamplingSpec
  uint64_t key = 0;
  int64_t position = 0;
  const int32_t* before = nullptr;    // device; not null: the position is one after this
  const ScoreEdit* edits = nullptr;   // device
  const uint32_t* allowed = nullptr;  // device, bit v allows token v; null: all
};

// Whether the row's scores are edited, or read so often that they are best kept.
inline bool KeepsScores(const SampleRowArgs& row) {
  const bool has_only_p = row.top_k == 0 && row.top_p < uint64_t{1} << 32;
  const bool is_truncated = row.greedy == 0 && row.is_draft == 0;
  return row.num_edits > 0 || (is_truncated && (has_only_p || row.top_k > kMaxFewTopK));
}

struct SampleResult {
  int32_t token = 0;
  int32_t is_empty = 0;
  float logprob = 0;
  int32_t num_top = 0;
  int32_t top_tokens[kMaxTop] = {};
  float top_logprobs[kMaxTop] = {};
};

struct SampleKernelArgs {
  const SampleRowArgs* rows = nullptr;  // device
  int num_rows = 0;
  bool keeps_scores = true;  // some row KeepsScores; may be true anyway
  int vocabulary = 0;
  const float* logits = nullptr;  // [.., V]
  SampleResult* results = nullptr;
};
cudaError_t RunSample(const SampleKernelArgs& args, cudaStream_t stream);

}  // namespace baton::kernels::cuda
