#include "engine/load/views.h"

#include <bit>
#include <cstring>
#include <string>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "engine/load/safetensors.h"

namespace baton::engine {
namespace {

constexpr uint32_t kMantissa = 0x007fffff;
constexpr uint32_t kTwoToMinus127 = 0x00400000;  // subnormal; E8M0 byte 0
constexpr uint32_t kInfinity = 0x7f800000;
constexpr uint8_t kE8M0Nan = 255;

absl::Status TensorError(const HostTensor& tensor, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrFormat("tensor %s: %s", tensor.name, problem));
}

template <typename T>
std::vector<T> CopyOf(const HostTensor& tensor) {
  std::vector<T> values(tensor.bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  return values;
}

bool IsPowerOfTwo(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (bits == kTwoToMinus127) return true;
  return bits != 0 && bits < kInfinity && (bits & kMantissa) == 0;
}

float FromE8M0(uint8_t byte) {
  return std::bit_cast<float>(byte == 0 ? kTwoToMinus127 : uint32_t{byte} << 23);
}

template <typename T>
absl::StatusOr<std::vector<int32_t>> Narrowed(const HostTensor& tensor, int limit) {
  std::vector<int32_t> indices;
  for (const T value : CopyOf<T>(tensor)) {
    if (value < 0 || value >= limit) {
      return TensorError(tensor, absl::StrFormat("entry %d is %d, must be 0..%d", indices.size(),
                                                 value, limit - 1));
    }
    indices.push_back(static_cast<int32_t>(value));
  }
  return indices;
}

kernels::WeightFormat FormatOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return kernels::WeightFormat::kF32;
    case DType::kBf16:
      return kernels::WeightFormat::kBf16;
    case DType::kF8E4M3:
      return kernels::WeightFormat::kFp8Block128;
    case DType::kI8:
      return kernels::WeightFormat::kFp4Group32;
    case DType::kF8E8M0:
    case DType::kI32:
    case DType::kI64:
      break;
  }
  CHECK(false);
}

}  // namespace

absl::StatusOr<std::vector<float>> FloatsOf(const HostTensor& tensor) {
  if (tensor.dtype == DType::kF32) return CopyOf<float>(tensor);
  if (tensor.dtype != DType::kBf16) {
    return TensorError(tensor,
                       absl::StrFormat("dtype %s, must be BF16 or F32", DTypeName(tensor.dtype)));
  }
  std::vector<float> values;
  values.reserve(tensor.bytes.size() / 2);
  for (const uint16_t half : CopyOf<uint16_t>(tensor))
    values.push_back(std::bit_cast<float>(uint32_t{half} << 16));
  return values;
}

absl::StatusOr<std::vector<float>> ScalesOf(const HostTensor& tensor) {
  if (tensor.dtype == DType::kF32) {
    std::vector<float> scales = CopyOf<float>(tensor);
    for (size_t i = 0; i < scales.size(); ++i) {
      if (IsPowerOfTwo(scales[i])) continue;
      return TensorError(tensor,
                         absl::StrFormat("scale %d is %.9g, must be a power of two", i, scales[i]));
    }
    return scales;
  }
  if (tensor.dtype != DType::kF8E8M0) {
    return TensorError(
        tensor, absl::StrFormat("dtype %s, must be F8_E8M0 or F32", DTypeName(tensor.dtype)));
  }
  std::vector<float> scales;
  scales.reserve(tensor.bytes.size());
  for (const uint8_t byte : CopyOf<uint8_t>(tensor)) {
    if (byte == kE8M0Nan)
      return TensorError(tensor,
                         absl::StrFormat("scale %d is 255 (NaN), must be 0..254", scales.size()));
    scales.push_back(FromE8M0(byte));
  }
  return scales;
}

absl::StatusOr<std::vector<int32_t>> IndicesOf(const HostTensor& tensor, int limit) {
  if (tensor.dtype == DType::kI64) return Narrowed<int64_t>(tensor, limit);
  if (tensor.dtype == DType::kI32) return Narrowed<int32_t>(tensor, limit);
  return TensorError(tensor,
                     absl::StrFormat("dtype %s, must be I64 or I32", DTypeName(tensor.dtype)));
}

absl::StatusOr<LoadedMatrix> MatrixOf(const Checkpoint& checkpoint, std::string_view name) {
  constexpr std::string_view kWeight = ".weight";
  const HostTensor& tensor = checkpoint.Tensor(name);
  CHECK(tensor.shape.size() == 2);
  LoadedMatrix loaded;
  loaded.matrix.format = FormatOf(tensor.dtype);
  loaded.matrix.rows = static_cast<int>(tensor.shape[0]);
  loaded.matrix.cols = static_cast<int>(tensor.shape[1]) * (tensor.dtype == DType::kI8 ? 2 : 1);
  loaded.matrix.values = tensor.bytes.data();
  if (tensor.dtype != DType::kI8 && tensor.dtype != DType::kF8E4M3) return loaded;
  CHECK(name.ends_with(kWeight));
  const std::string scale = std::string(name.substr(0, name.size() - kWeight.size())) + ".scale";
  ASSIGN_OR_RETURN(loaded.scales, ScalesOf(checkpoint.Tensor(scale)));
  loaded.matrix.scales = loaded.scales.data();
  return loaded;
}

}  // namespace baton::engine
