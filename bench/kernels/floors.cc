#include "bench/kernels/floors.h"

#include <algorithm>

#include "bench/kernels/real_shape.h"

namespace baton::bench {
namespace {

constexpr double kFp4Bytes = 0.5 + 1.0 / 32;
constexpr double kFp8Bytes = 1 + 4.0 / 128 / 128;
constexpr double kRowBytes = 584;    // a cached row
constexpr double kIndexBytes = 132;  // an index row
constexpr double kAttendFlops = 2.0 * 2 * kHeads * kHeadDim;
constexpr double kIndexFlops = 2.0 * kIndexHeads * kIndexDim;
constexpr double kMixes = (2 + kStreams) * kStreams;

// A weight read once, rows in and out once (prefill only: in decode they stay in L2).
Work Linear(const StepSize& step, double weight_bytes, double weights, double io, Rate rate) {
  const double rows = step.rows();
  return {weights * weight_bytes + (step.rows_per_sequence > 1 ? rows * io : 0), 2 * weights * rows,
          rate};
}

// Mean over a sequence's rows of what `count` says of a number of tokens.
template <typename Count>
double MeanOverRows(const StepSize& step, const Count& count) {
  double sum = 0;
  for (int i = 0; i < step.rows_per_sequence; ++i) {
    sum += count(step.context - step.rows_per_sequence + i + 1);
  }
  return sum / step.rows_per_sequence;
}

double Attended(Kind kind, int tokens) {
  double rows = std::min(kWindow, tokens);
  if (kind == Kind::kCsa) rows += std::min(kIndexTopk, tokens / 4);
  if (kind == Kind::kHca) rows += tokens / 128;
  return rows;
}

double CompressorOutputs(Kind kind) {
  if (kind == Kind::kWindow) return 0;
  return kind == Kind::kCsa ? 4 * kHeadDim + 4 * kIndexDim + kIndexHeads : 2 * kHeadDim;
}

}  // namespace

Hardware HardwareOf(const std::string& device_name) {
  Hardware hardware;
  if (device_name.find("H200") != std::string::npos) hardware.bytes_per_second = 4.3e12;
  return hardware;
}

double FloorMicroseconds(const Hardware& hardware, const std::vector<Work>& work) {
  double seconds = 0;
  for (const Work& part : work) {
    double flops_per_second = 1e30;
    if (part.rate == Rate::kFp8) flops_per_second = hardware.fp8;
    if (part.rate == Rate::kBf16) flops_per_second = hardware.bf16;
    if (part.rate == Rate::kTf32) flops_per_second = hardware.bf16 / 2;
    seconds += std::max(part.bytes / hardware.bytes_per_second, part.flops / flops_per_second);
  }
  return seconds * 1e6;
}

std::vector<Work> MixWork(const StepSize& step) {
  const double width = kStreams * kHidden, rows = step.rows();
  return {{kMixes * width * 4 + rows * (2 * width * 2 + 3 * kHidden), 2 * kMixes * width * rows,
           Rate::kTf32}};
}

std::vector<Work> ProjectInWork(const StepSize& step, Kind kind) {
  const double low = kQueryLow + kHeadDim, rest = CompressorOutputs(kind);
  std::vector<Work> work = {Linear(step, kFp8Bytes, low * kHidden, kHidden + 2 * low, Rate::kFp8)};
  if (rest > 0) {
    work.push_back(Linear(step, 2, rest * kHidden, 2 * kHidden + 4 * rest, Rate::kBf16));
  }
  return work;
}

// Reads the projections, writes rows and what the next phases read.
std::vector<Work> StoreRowsWork(const StepSize& step, Kind kind) {
  const double compressors = kind == Kind::kCsa   ? 4.0 * kHeadDim + 4.0 * kIndexDim
                             : kind == Kind::kHca ? 2.0 * kHeadDim
                                                  : 0.0;
  const double bytes = 2 * kQueryLow + kQueryLow + 2 * 2 * kHeadDim + kRowBytes + 4 * compressors;
  return {{step.rows() * bytes, 0, Rate::kNone}};
}

std::vector<Work> ProjectQueryWork(const StepSize& step, Kind kind) {
  const double query = kHeads * kHeadDim, index = kIndexHeads * kIndexDim;
  std::vector<Work> work = {
      Linear(step, kFp8Bytes, query * kQueryLow, kQueryLow + 2 * query, Rate::kFp8)};
  if (kind == Kind::kCsa) {
    work.push_back(Linear(step, kFp8Bytes, index * kQueryLow, kQueryLow + index, Rate::kFp8));
  }
  // Norm and rope of the query, which could be part of the product's epilogue.
  if (step.rows_per_sequence > 1) work.push_back({step.rows() * query * 4, 0, Rate::kNone});
  return work;
}

std::vector<Work> SelectWork(const StepSize& step) {
  const double keys = MeanOverRows(step, [](int tokens) { return tokens / 4; });
  const double rows = step.rows();
  if (step.rows_per_sequence > 1) {
    return {
        {rows * kIndexHeads * kIndexDim + rows * keys * 4, rows * keys * kIndexFlops, Rate::kFp8},
        {rows * keys * 4, 0, Rate::kNone}};
  }
  return {{rows * keys * kIndexBytes, rows * keys * kIndexFlops, Rate::kFp8},
          {rows * keys * 4, 0, Rate::kNone}};
}

std::vector<Work> AttendWork(const StepSize& step, Kind kind) {
  const double keys = MeanOverRows(step, [kind](int tokens) { return Attended(kind, tokens); });
  const double rows = step.rows();
  const double bytes =
      step.rows_per_sequence > 1 ? rows * kHeads * kHeadDim * 4 : rows * keys * kRowBytes;
  return {{bytes, rows * keys * kAttendFlops, Rate::kBf16}};
}

std::vector<Work> ProjectOutWork(const StepSize& step) {
  const double low = kOutputGroups * kOutputLow, query = kHeads * kHeadDim;
  Work first =
      Linear(step, kFp8Bytes, low * query / kOutputGroups, 2 * query + 2 * low, Rate::kBf16);
  if (step.rows_per_sequence == 1) first.bytes += step.rows() * query * 2;
  return {first, Linear(step, kFp8Bytes, low * kHidden, low + 2 * kHidden, Rate::kFp8)};
}

std::vector<Work> RouteWork(const StepSize& step) {
  return {Linear(step, 2, double{1} * kExperts * kHidden, 2 * kHidden + 32, Rate::kBf16)};
}

std::vector<Work> ExpertsWork(const StepSize& step, int distinct) {
  const double rows = step.rows(), size = double{1} * kHidden * kIntermediate;
  const double io = step.rows_per_sequence > 1 ? 1 : 0;
  const double pairs = rows * kExpertsPerToken;
  return {{distinct * 2 * size * kFp4Bytes + io * pairs * (kHidden + kIntermediate),
           4 * size * pairs, Rate::kFp8},
          {distinct * size * kFp4Bytes + io * pairs * (kIntermediate + 2 * kHidden),
           2 * size * pairs, Rate::kFp8},
          {3 * size * kFp8Bytes + io * rows * kHidden * 4, 6 * size * rows, Rate::kFp8}};
}

std::vector<Work> LinearWork(int rows, int outputs, int columns, bool is_fp8_weight,
                             bool is_fp8_input) {
  const double weights = double{1} * outputs * columns;
  return {{weights * (is_fp8_weight ? kFp8Bytes : 2), 2 * weights * rows,
           is_fp8_input ? Rate::kFp8 : Rate::kBf16}};
}

std::vector<Work> SampleWork(int rows) {
  return {{double{1} * rows * kVocabulary * 4, 0, Rate::kNone}};
}

}  // namespace baton::bench
