#include "kernels/cpu/prepared_matrix.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "common/check.h"
#include "kernels/cpu/quantise.h"
#include "kernels/host_matrix.h"

namespace baton::kernels::cpu {

// Row-major operands [rows, cols] and one scale per row and group of columns.
struct PreparedMatrix::Operands {
  std::vector<float> values;
  std::vector<float> scales;  // [rows, cols / group], empty without scales
  int group = 0;
};

namespace {

constexpr float kWidestExactSpread = 0x1p14f;  // R1: code * 2^k is an e4m3 for k = -8..6
// Where the lane pair (i, i + 8) lies among the eight pairs of a block: the inverse of 0, 4, 2, 6,
// 1, 5, 3, 7.
constexpr std::array<int, 8> kPairPlace = {0, 4, 2, 6, 1, 5, 3, 7};

float HostValue(const HostMatrix& host, size_t index) {
  const std::byte* bytes = host.values;
  switch (host.format) {
    case WeightFormat::kF32: {
      float value;
      std::memcpy(&value, bytes + 4 * index, sizeof(value));
      return value;
    }
    case WeightFormat::kBf16: {
      uint16_t code;
      std::memcpy(&code, bytes + 2 * index, sizeof(code));
      return DecodeBf16(code);
    }
    case WeightFormat::kFp8Block128:
      return DecodeE4m3(static_cast<uint8_t>(bytes[index]));
    case WeightFormat::kFp4Group32: {
      const auto pair = static_cast<uint8_t>(bytes[index / 2]);
      return DecodeE2m1(index % 2 == 0 ? pair & 15u : pair >> 4);
    }
  }
  return 0.0f;
}

// One 128 x 128 block of an FP4 matrix: its rows' groups of 32 (model.md 9.3, R1).
struct Fp4Block {
  int first_row, last_row, first_col, cols;

  // fn(row, first column, scale index) for each group.
  template <typename F>
  void ForGroups(const F& fn) const {
    for (int row = first_row; row < last_row; ++row) {
      for (int col = first_col; col < first_col + kWeightBlock; col += kFp4Group) {
        fn(row, col,
           (static_cast<size_t>(row) * static_cast<size_t>(cols) + static_cast<size_t>(col)) /
               kFp4Group);
      }
    }
  }
};

bool IsZeroGroup(const float* values) {
  return std::all_of(values, values + kFp4Group, [](float v) { return v == 0.0f; });
}

// Largest and smallest scale of the groups with a code that is not zero; {0, 0} for a block of
// zeros.
std::pair<float, float> ScaleRange(const Fp4Block& block, const std::vector<float>& values,
                                   const float* scales) {
  float largest = 0.0f, smallest = 0.0f;
  block.ForGroups([&](int, int, size_t group) {
    if (IsZeroGroup(&values[group * kFp4Group])) return;
    largest = std::max(largest, scales[group]);
    smallest = smallest == 0.0f ? scales[group] : std::min(smallest, scales[group]);
  });
  return {largest, smallest};
}

std::vector<Fp4Block> BlocksOf(const HostMatrix& host) {
  std::vector<Fp4Block> blocks;
  for (int row = 0; row < host.rows; row += kWeightBlock) {
    for (int col = 0; col < host.cols; col += kWeightBlock) {
      blocks.push_back({row, std::min(row + kWeightBlock, host.rows), col, host.cols});
    }
  }
  return blocks;
}

// Multiplies every group of the block by its scale over S and sets the rows' scale to S = largest *
// 2^-6 (R1).
void FoldBlock(const Fp4Block& block, float largest, const float* group_scales,
               std::vector<float>& values, std::vector<float>& scales) {
  const float common = largest == 0.0f ? 1.0f : largest * 0x1p-6f;
  const int blocks_per_row = block.cols / kWeightBlock;
  block.ForGroups([&](int row, int col, size_t group) {
    scales[static_cast<size_t>(row * blocks_per_row + col / kWeightBlock)] = common;
    float* value = &values[group * kFp4Group];
    if (IsZeroGroup(value)) return;  // its scale does not count and may be anything
    const float factor = group_scales[group] / common;
    for (int i = 0; i < kFp4Group; ++i) value[i] *= factor;
  });
}

bool IsBf16Exact(float value) { return (std::bit_cast<uint32_t>(value) & 0xffffu) == 0; }

}  // namespace

PreparedMatrix::Operands PreparedMatrix::Widen(const HostMatrix& host, NumericsMode mode) {
  Operands result;
  const size_t count = static_cast<size_t>(host.rows) * static_cast<size_t>(host.cols);
  result.values.resize(count);
  for (size_t i = 0; i < count; ++i) result.values[i] = HostValue(host, i);

  if (host.format == WeightFormat::kFp8Block128) {
    result.group = kWeightBlock;
    const int width = host.cols / kWeightBlock;
    const std::vector<float> block_scales = Fp8ScalesOf(host);
    for (int row = 0; row < host.rows; ++row) {
      const auto scales = block_scales.begin() + row / kWeightBlock * width;
      result.scales.insert(result.scales.end(), scales, scales + width);
    }
  }
  if (host.format == WeightFormat::kFp4Group32) {
    const std::vector<Fp4Block> blocks = BlocksOf(host);
    const bool is_wide = std::any_of(blocks.begin(), blocks.end(), [&](const Fp4Block& block) {
      const auto [largest, smallest] = ScaleRange(block, result.values, host.scales);
      return largest > smallest * kWidestExactSpread;
    });
    if (is_wide || mode == NumericsMode::kFloat32) {
      result.group = kFp4Group;
      result.scales.assign(host.scales, host.scales + count / kFp4Group);
    } else {
      result.group = kWeightBlock;
      result.scales.resize(count / kWeightBlock);
      for (const Fp4Block& block : blocks) {
        const float largest = ScaleRange(block, result.values, host.scales).first;
        FoldBlock(block, largest, host.scales, result.values, result.scales);
      }
    }
  }
  if (mode == NumericsMode::kFloat32 && result.group != 0) {
    for (size_t i = 0; i < count; ++i) {
      result.values[i] *= result.scales[i / static_cast<size_t>(result.group)];
    }
    result.scales.clear();
    result.group = 0;
  }
  return result;
}

absl::StatusOr<std::unique_ptr<PreparedMatrix>> PreparedMatrix::Prepare(const HostMatrix& host,
                                                                        NumericsMode mode) {
  if (absl::Status status = CheckHost(host); !status.ok()) return status;
  std::unique_ptr<PreparedMatrix> matrix(new PreparedMatrix(host.rows, host.cols));
  const Operands operands = Widen(host, mode);
  matrix->scale_group_ = operands.group;
  matrix->is_bf16_ = std::all_of(operands.values.begin(), operands.values.end(), IsBf16Exact);
  matrix->Pack(operands);
  return matrix;
}

size_t PreparedMatrix::ValueIndex(int row, int col) const {
  const int panel = row / kPanelOutputs, output = row % kPanelOutputs;
  const int block = col / kWeightBlock, in_block = col % kWeightBlock;
  const int step = in_block / 16, lane = in_block % 16;
  const int place = (kPairPlace[static_cast<size_t>(lane % 8)] * 8 + step) * 2 + lane / 8;
  const size_t line = static_cast<size_t>(panel) * static_cast<size_t>(cols()) +
                      static_cast<size_t>(block * kWeightBlock + place);
  return line * kPanelOutputs + static_cast<size_t>(output);
}

void PreparedMatrix::Pack(const Operands& operands) {
  const size_t padded = static_cast<size_t>(num_panels()) * kPanelOutputs;
  const auto width = static_cast<size_t>(cols());
  if (is_bf16_) {
    bf16_.resize(padded * width);
  } else {
    f32_.resize(padded * width);
  }
  for (int row = 0; row < rows(); ++row) {
    const float* values = &operands.values[static_cast<size_t>(row) * width];
    for (int col = 0; col < cols(); ++col) {
      const size_t index = ValueIndex(row, col);
      if (is_bf16_) {
        bf16_[index] = EncodeBf16(values[col]);
      } else {
        f32_[index] = values[col];
      }
    }
  }
  if (scale_group_ == 0) return;
  const size_t groups = width / static_cast<size_t>(scale_group_);
  scales_.assign(padded * groups, 1.0f);
  for (size_t row = 0; row < static_cast<size_t>(rows()); ++row) {
    for (size_t group = 0; group < groups; ++group) {
      const size_t line = row / kPanelOutputs * groups + group;
      scales_[line * kPanelOutputs + row % kPanelOutputs] = operands.scales[row * groups + group];
    }
  }
}

const uint16_t* PreparedMatrix::Bf16Panel(int panel) const {
  return &bf16_[ValueIndex(panel * kPanelOutputs, 0)];
}

const float* PreparedMatrix::F32Panel(int panel) const {
  return &f32_[ValueIndex(panel * kPanelOutputs, 0)];
}

const float* PreparedMatrix::PanelScales(int panel) const {
  if (scale_group_ == 0) return nullptr;
  const size_t groups = static_cast<size_t>(cols() / scale_group_);
  return &scales_[static_cast<size_t>(panel) * groups * kPanelOutputs];
}

void PreparedMatrix::CopyRow(int row, float* out) const {
  CHECK(row >= 0 && row < rows());
  const float* scales = PanelScales(row / kPanelOutputs);
  for (int col = 0; col < cols(); ++col) {
    const size_t index = ValueIndex(row, col);
    out[col] = is_bf16_ ? DecodeBf16(bf16_[index]) : f32_[index];
    if (scales != nullptr) {
      out[col] *= scales[col / scale_group_ * kPanelOutputs + row % kPanelOutputs];
    }
  }
}

size_t PreparedMatrix::bytes() const {
  return bf16_.size() * sizeof(uint16_t) + (f32_.size() + scales_.size()) * sizeof(float);
}

}  // namespace baton::kernels::cpu
