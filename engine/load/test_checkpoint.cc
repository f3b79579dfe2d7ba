#include "engine/load/test_checkpoint.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "common/check.h"
#include "common/hash.h"
#include "common/rng.h"
#include "common/status.h"
#include "engine/load/safetensors.h"
#include "engine/load/tensor_table.h"

namespace baton::engine {
namespace {

using nlohmann::json;

constexpr int kBlock = 128;
constexpr int kGroup = 32;

uint64_t SeedOf(uint64_t seed, std::string_view name) {
  const Sha256Bytes hash = Sha256Of(name);
  uint64_t word = 0;
  std::memcpy(&word, hash.data(), sizeof(word));
  return Mix64(seed ^ word);
}

// Uniform in [-1, 1).
float Signed(Rng& rng) { return static_cast<float>(2.0 * rng.Uniform() - 1.0); }

float E4M3Value(uint8_t code) {
  const int exponent = (code >> 3) & 15;
  const int mantissa = code & 7;
  const int significand = exponent == 0 ? mantissa : 8 + mantissa;
  const float magnitude =
      std::ldexp(static_cast<float>(significand), exponent == 0 ? -9 : exponent - 10);
  return (code & 0x80) != 0 ? -magnitude : magnitude;
}

// The code of a value that has one.
uint8_t E4M3Code(float value) {
  constexpr uint8_t kMaxCode = 0x7e;
  for (uint8_t code = 0; code <= kMaxCode; ++code) {
    if (E4M3Value(code) == std::fabs(value))
      return static_cast<uint8_t>(value < 0 ? code | 0x80 : code);
  }
  CHECK(false);
}

float E2M1Value(int code) {
  constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  const float magnitude = kMagnitudes[code & 7];
  return (code & 8) != 0 ? -magnitude : magnitude;
}

uint16_t Bf16Bits(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
std::vector<std::byte> BytesOf(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

int64_t Count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t dimension : shape) count *= dimension;
  return count;
}

// A quantised matrix: one-byte codes and the exponents of its power-of-two scales.
struct Quantised {
  std::vector<uint8_t> codes;
  std::vector<int> exponents;
};

// The exponent at which values of a few units make outputs of about one.
int BaseExponent(int64_t cols, int magnitude_bits) {
  return -static_cast<int>(std::bit_width(static_cast<uint64_t>(cols))) / 2 - magnitude_bits;
}

Quantised MakeFp8(Rng& rng, int64_t rows, int64_t cols) {
  Quantised out;
  for (int64_t i = 0; i < rows * cols; ++i) {
    const uint64_t magnitude = 0x30 + rng.Below(0x38);  // 0.5 .. 120
    out.codes.push_back(static_cast<uint8_t>(magnitude | (rng.Below(2) << 7)));
  }
  for (int64_t i = 0; i < (rows / kBlock) * (cols / kBlock); ++i)
    out.exponents.push_back(BaseExponent(cols, 5) + static_cast<int>(rng.Below(2)));
  return out;
}

// Codes are one nibble each here.
Quantised MakeFp4(Rng& rng, int64_t rows, int64_t cols, int spread) {
  Quantised out;
  for (int64_t i = 0; i < rows * cols; ++i)
    out.codes.push_back(static_cast<uint8_t>(rng.Below(16)));
  for (int64_t i = 0; i < rows * (cols / kGroup); ++i) {
    const uint64_t below = rng.Below(static_cast<uint64_t>(spread) + 1);
    out.exponents.push_back(BaseExponent(cols, 1) - static_cast<int>(below));
  }
  return out;
}

// The lossless copy of model.md 9.5: block scale = largest group scale / 2^6.
Quantised Fp8TwinOf(const Quantised& fp4, int64_t rows, int64_t cols) {
  const int64_t groups = cols / kGroup;
  const int64_t blocks = cols / kBlock;
  Quantised out;
  out.codes.resize(fp4.codes.size());
  out.exponents.assign(static_cast<size_t>((rows / kBlock) * blocks), -1'000);
  const auto block_of = [&](int64_t row, int64_t group) {
    return static_cast<size_t>((row / kBlock) * blocks + group * kGroup / kBlock);
  };
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t g = 0; g < groups; ++g) {
      int& exponent = out.exponents[block_of(row, g)];
      exponent = std::max(exponent, fp4.exponents[static_cast<size_t>(row * groups + g)] - 6);
    }
  }
  for (size_t i = 0; i < fp4.codes.size(); ++i) {
    const int64_t group = static_cast<int64_t>(i) / kGroup;  // of the whole matrix
    const int shift = fp4.exponents[static_cast<size_t>(group)] -
                      out.exponents[block_of(group / groups, group % groups)];
    out.codes[i] = E4M3Code(std::ldexp(E2M1Value(fp4.codes[i]), shift));
  }
  return out;
}

// Makes the bytes of one tensor after the other.
class TensorMaker {
 public:
  explicit TensorMaker(const TestCheckpointOptions& options) : options_(options) {}

  OwnedTensor Make(const ExpectedTensor& expected) {
    OwnedTensor tensor;
    tensor.name = expected.name;
    tensor.shape = expected.shape;
    SeededRng rng(SeedOf(options_.seed, expected.name));
    switch (expected.kind) {
      case TensorKind::kBf16:
        SetBf16(tensor, Values(expected, rng));
        break;
      case TensorKind::kF32:
        tensor.bytes = BytesOf(Values(expected, rng));
        break;
      case TensorKind::kF8:
        SetCodes(tensor);
        break;
      case TensorKind::kF8OrBf16:
        options_.has_bf16_wo_a ? SetWidened(tensor) : SetCodes(tensor);
        break;
      case TensorKind::kPackedFp4:
        SetPacked(tensor);
        break;
      case TensorKind::kScale:
      case TensorKind::kOptionalScale:
        SetScales(tensor);
        break;
      case TensorKind::kIndices:
        SetIndices(tensor, rng);
        break;
    }
    return tensor;
  }

 private:
  static bool IsExpert(const std::string& name) {
    return name.find(".experts.") != std::string::npos;
  }
  static std::string BaseName(const std::string& name) { return name.substr(0, name.rfind('.')); }

  // Floats of a size that keeps activations near one.
  std::vector<float> Values(const ExpectedTensor& expected, Rng& rng) const {
    const std::string& name = expected.name;
    const bool is_norm = name.ends_with("norm.weight");
    const bool is_mix_scale = name.ends_with("_scale");
    const bool is_matrix = expected.shape.size() == 2 && !name.ends_with(".ape");
    const float width = is_matrix ? std::sqrt(3.0f / static_cast<float>(expected.shape[1])) : 0.25f;
    std::vector<float> values(static_cast<size_t>(Count(expected.shape)));
    for (float& value : values) {
      if (is_norm)
        value = 1.0f + 0.1f * Signed(rng);
      else if (is_mix_scale)
        value = 0.75f + 0.25f * Signed(rng);
      else if (name == "embed.weight")
        value = Signed(rng);
      else
        value = width * Signed(rng);
    }
    return values;
  }

  // The matrix whose ".weight" and ".scale" both come from here; `rows` and `cols` count elements.
  Quantised MatrixOf(const std::string& base) const {
    const auto [rows, cols] = Elements(base);
    SeededRng rng(SeedOf(options_.seed, base));
    if (!IsExpert(base)) return MakeFp8(rng, rows, cols);
    const Quantised fp4 = MakeFp4(rng, rows, cols, options_.fp4_scale_spread);
    return options_.config.expert_dtype == "fp8" ? Fp8TwinOf(fp4, rows, cols) : fp4;
  }

  std::pair<int64_t, int64_t> Elements(const std::string& base) const {
    const std::vector<int64_t>& shape = weight_shapes_.at(base);
    const bool is_packed = IsExpert(base) && options_.config.expert_dtype != "fp8";
    return {shape[0], is_packed ? 2 * shape[1] : shape[1]};
  }

  void SetBf16(OwnedTensor& tensor, const std::vector<float>& values) const {
    std::vector<uint16_t> halves;
    for (float value : values) halves.push_back(Bf16Bits(value));
    tensor.dtype = DType::kBf16;
    tensor.bytes = BytesOf(halves);
  }

  const Quantised& Remember(const OwnedTensor& weight) {
    weight_shapes_[BaseName(weight.name)] = weight.shape;
    last_ = MatrixOf(BaseName(weight.name));
    return last_;
  }

  void SetCodes(OwnedTensor& tensor) {
    tensor.dtype = DType::kF8E4M3;
    tensor.bytes = BytesOf(Remember(tensor).codes);
  }

  void SetWidened(OwnedTensor& tensor) {
    const Quantised& matrix = Remember(tensor);
    const int64_t cols = tensor.shape[1];
    std::vector<float> values;
    for (size_t i = 0; i < matrix.codes.size(); ++i) {
      const int64_t row = static_cast<int64_t>(i) / cols;
      const int64_t col = static_cast<int64_t>(i) % cols;
      const int64_t block = (row / kBlock) * (cols / kBlock) + col / kBlock;
      values.push_back(
          std::ldexp(E4M3Value(matrix.codes[i]), matrix.exponents[static_cast<size_t>(block)]));
    }
    SetBf16(tensor, values);
  }

  void SetPacked(OwnedTensor& tensor) {
    const std::vector<uint8_t>& codes = Remember(tensor).codes;
    std::vector<uint8_t> packed;
    for (size_t i = 0; i < codes.size(); i += 2)
      packed.push_back(static_cast<uint8_t>(codes[i] | (codes[i + 1] << 4)));
    tensor.dtype = DType::kI8;
    tensor.bytes = BytesOf(packed);
  }

  // A scale follows its weight in the table.
  void SetScales(OwnedTensor& tensor) {
    CHECK(weight_shapes_.contains(BaseName(tensor.name)));
    std::vector<float> floats;
    std::vector<uint8_t> bytes;
    for (int exponent : last_.exponents) {
      floats.push_back(std::ldexp(1.0f, exponent));
      bytes.push_back(static_cast<uint8_t>(exponent + 127));
    }
    tensor.dtype = options_.has_f32_scales ? DType::kF32 : DType::kF8E8M0;
    tensor.bytes = options_.has_f32_scales ? BytesOf(floats) : BytesOf(bytes);
  }

  // Distinct experts for every token.
  void SetIndices(OwnedTensor& tensor, Rng& rng) const {
    const auto experts = static_cast<uint64_t>(options_.config.n_routed_experts);
    std::vector<int64_t> all(experts);
    std::vector<int64_t> indices;
    for (uint64_t i = 0; i < experts; ++i) all[i] = static_cast<int64_t>(i);
    for (int64_t token = 0; token < tensor.shape[0]; ++token) {
      for (size_t i = 0; i < static_cast<size_t>(tensor.shape[1]); ++i) {
        std::swap(all[i], all[i + rng.Below(experts - i)]);
        indices.push_back(all[i]);
      }
    }
    tensor.dtype = DType::kI64;
    tensor.bytes = BytesOf(indices);
  }

  const TestCheckpointOptions& options_;
  std::map<std::string, std::vector<int64_t>> weight_shapes_;  // by name without ".weight"
  Quantised last_;  // the matrix whose weight was made last
};

absl::Status WriteText(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  if (!out.flush()) return absl::InternalError(absl::StrFormat("%s: cannot be written", path));
  return absl::OkStatus();
}

absl::Status WriteShards(std::vector<OwnedTensor> tensors, int num_shards,
                         const std::string& folder) {
  const size_t count = static_cast<size_t>(num_shards);
  std::vector<std::vector<OwnedTensor>> shards(count);
  json map = json::object();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const size_t shard = i * count / tensors.size();
    map[tensors[i].name] = absl::StrFormat("part-%05d-of-%05d.safetensors", shard + 1, count);
    shards[shard].push_back(std::move(tensors[i]));
  }
  for (size_t shard = 0; shard < count; ++shard) {
    const std::string name = absl::StrFormat("part-%05d-of-%05d.safetensors", shard + 1, count);
    RETURN_IF_ERROR(
        WriteSafetensors(absl::StrFormat("%s/%s", folder, name), std::move(shards[shard])));
  }
  return WriteText(folder + "/model.safetensors.index.json", json{{"weight_map", map}}.dump());
}

}  // namespace

absl::Status WriteSafetensors(const std::string& path, std::vector<OwnedTensor> tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return ElementBytes(a.dtype) > ElementBytes(b.dtype);
  });
  json header = json::object();
  uint64_t offset = 0;
  for (const OwnedTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", DTypeName(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string file(reinterpret_cast<const char*>(&length), sizeof(length));
  file += text;
  for (const OwnedTensor& tensor : tensors)
    file.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  return WriteText(path, file);
}

std::vector<OwnedTensor> MakeTestTensors(const TestCheckpointOptions& options) {
  TensorMaker maker(options);
  std::vector<OwnedTensor> tensors;
  for (const ExpectedTensor& expected : ExpectedTensors(options.config)) {
    if (expected.kind == TensorKind::kOptionalScale && options.has_bf16_wo_a) continue;
    tensors.push_back(maker.Make(expected));
  }
  return tensors;
}

absl::Status WriteTestCheckpoint(const TestCheckpointOptions& options, const std::string& folder) {
  RETURN_IF_ERROR(WriteText(folder + "/config.json", ModelConfigJson(options.config)));
  std::vector<OwnedTensor> tensors = MakeTestTensors(options);
  if (options.num_shards == 0)
    return WriteSafetensors(folder + "/model.safetensors", std::move(tensors));
  return WriteShards(std::move(tensors), options.num_shards, folder);
}

}  // namespace baton::engine
