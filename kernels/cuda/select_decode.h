#pragma once

#include "kernels/cuda/select.h"

// SelectEntries where every row is of another sequence, at the usual shape.
namespace baton::kernels::cuda {

constexpr int kMostShort = 8192;  // scores of a row that one launch takes

// Some rows' place in SelectArgs' buffers.
struct ScoreSlice {
  int first_row = 0, rows = 0;
  int64_t stride = 0;       // of scores
  float* maxima = nullptr;  // of groups of kGroupScores; null: not wanted
  int64_t maxima_stride = 0;
};

// All of it, in one launch, for rows of at most kMostShort.
cudaError_t RunSelectShort(const SelectArgs& args, const ScoreSlice& slice, cudaStream_t stream);
// Scores and maxima.
cudaError_t RunScoreDecode(const SelectArgs& args, const ScoreSlice& slice, cudaStream_t stream);

}  // namespace baton::kernels::cuda
