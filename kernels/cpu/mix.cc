#include "kernels/cpu/mix.h"

#include <algorithm>
#include <array>
#include <cstddef>

#include "kernels/exact_math.h"

namespace baton::kernels::cpu {
namespace {

// comb is square; i-th element of row or column `line`.
struct Lines {
  int size;
  bool are_rows;

  float& At(float* comb, int line, int i) const {
    return are_rows ? comb[line * size + i] : comb[i * size + line];
  }
};

void Normalise(const Lines& lines, float epsilon, float* comb) {
  for (int line = 0; line < lines.size; ++line) {
    float sum = 0.0f;
    for (int i = 0; i < lines.size; ++i) sum += lines.At(comb, line, i);
    const float divisor = sum + epsilon;
    for (int i = 0; i < lines.size; ++i) lines.At(comb, line, i) /= divisor;
  }
}

void SoftmaxRow(int n, float epsilon, float* row) {
  const float largest = *std::max_element(row, row + n);
  float sum = 0.0f;
  for (int i = 0; i < n; ++i) {
    row[i] = ExpNeg(row[i] - largest);
    sum += row[i];
  }
  for (int i = 0; i < n; ++i) row[i] = row[i] / sum + epsilon;
}

}  // namespace

void StreamWeights(const MixShape& shape, const MixWeights& mix, const float* products,
                   float* pre) {
  for (int i = 0; i < shape.num_streams; ++i) {
    pre[i] = Sigmoid(products[i] * mix.scale.data[0] + mix.base.data[i]) + shape.epsilon;
  }
}

void SplitMix(const MixShape& shape, const MixWeights& mix, const float* products, float* pre,
              float* post, float* comb) {
  const int n = shape.num_streams;
  const float* base = mix.base.data;
  const float* scale = mix.scale.data;
  StreamWeights(shape, mix, products, pre);
  for (int i = 0; i < n; ++i) {
    post[i] = 2.0f * Sigmoid(products[n + i] * scale[1] + base[n + i]);
  }
  for (int i = 0; i < n * n; ++i) comb[i] = products[2 * n + i] * scale[2] + base[2 * n + i];
  for (int row = 0; row < n; ++row) SoftmaxRow(n, shape.epsilon, comb + row * n);

  const Lines rows = {n, true}, columns = {n, false};
  Normalise(columns, shape.epsilon, comb);
  for (int i = 1; i < shape.sinkhorn_iterations; ++i) {
    Normalise(rows, shape.epsilon, comb);
    Normalise(columns, shape.epsilon, comb);
  }
}

void CollapseStreams(int num_streams, int hidden, const float* streams, const float* pre,
                     float* u) {
  for (int i = 0; i < hidden; ++i) u[i] = pre[0] * streams[i];
  for (int s = 1; s < num_streams; ++s) {
    const float* stream = streams + static_cast<size_t>(s) * static_cast<size_t>(hidden);
    for (int i = 0; i < hidden; ++i) u[i] += pre[s] * stream[i];
  }
}

void MergeBranch(const MergeArgs& args) {
  constexpr int kColumns = 64;  // a piece of every stream that fits the first cache beside its copy
  std::array<float, kMaxStreams * kColumns> old;
  const int n = args.num_streams;
  for (int begin = 0; begin < args.hidden; begin += kColumns) {
    const int width = std::min(kColumns, args.hidden - begin);
    const float* branch = args.branch + begin;
    for (int j = 0; j < n; ++j) {
      std::copy_n(args.streams + j * args.hidden + begin, width,
                  &old[static_cast<size_t>(j * kColumns)]);
    }
    for (int k = 0; k < n; ++k) {
      float* target = args.streams + k * args.hidden + begin;
      for (int i = 0; i < width; ++i) target[i] = args.post[k] * branch[i];
      for (int j = 0; j < n; ++j) {
        const float weight = args.comb[j * n + k];
        const float* source = &old[static_cast<size_t>(j * kColumns)];
        for (int i = 0; i < width; ++i) target[i] += weight * source[i];
      }
    }
  }
}

}  // namespace baton::kernels::cpu
