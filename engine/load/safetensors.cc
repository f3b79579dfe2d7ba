#include "engine/load/safetensors.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "common/check.h"
#include "common/status.h"

namespace baton::engine {
namespace {

using nlohmann::json;

constexpr size_t kLengthBytes = 8;
constexpr int kMaxHeaderDepth = 3;  // root, tensor, shape
constexpr size_t kMaxRank = 8;
constexpr size_t kMaxNameBytes = 512;

struct DTypeFacts {
  DType dtype;
  const char* name;
  size_t bytes;
};
constexpr std::array<DTypeFacts, 7> kDTypes = {{{DType::kBf16, "BF16", 2},
                                                {DType::kF32, "F32", 4},
                                                {DType::kF8E4M3, "F8_E4M3", 1},
                                                {DType::kF8E8M0, "F8_E8M0", 1},
                                                {DType::kI8, "I8", 1},
                                                {DType::kI32, "I32", 4},
                                                {DType::kI64, "I64", 8}}};

const DTypeFacts& FactsOf(DType dtype) {
  for (const DTypeFacts& facts : kDTypes) {
    if (facts.dtype == dtype) return facts;
  }
  CHECK(false);
}

// A name as far as it may be shown in a message.
std::string Shown(std::string_view name) {
  constexpr size_t kMaxShown = 100;
  std::string shown;
  for (char c : name.substr(0, kMaxShown)) shown += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return name.size() > kMaxShown ? shown + "..." : shown;
}

absl::Status FileError(const std::string& path, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, problem));
}

// One file's header while it is read.
class HeaderReader {
 public:
  HeaderReader(std::span<const std::byte> data, const std::string& path)
      : data_(data), path_(path) {}

  absl::StatusOr<std::vector<HostTensor>> Read(std::string_view header) {
    ASSIGN_OR_RETURN(const json root, ParseHeader(header));
    std::vector<HostTensor> tensors;
    tensors.reserve(root.size());
    for (const auto& [name, entry] : root.items()) {
      if (name == "__metadata__") continue;
      ASSIGN_OR_RETURN(HostTensor tensor, ReadTensor(name, entry));
      tensors.push_back(std::move(tensor));
    }
    RETURN_IF_ERROR(CheckTiling(tensors));
    std::sort(tensors.begin(), tensors.end(),
              [](const HostTensor& a, const HostTensor& b) { return a.name < b.name; });
    return tensors;
  }

 private:
  absl::Status TensorError(std::string_view name, const std::string& problem) const {
    return FileError(path_, absl::StrFormat("tensor %s: %s", Shown(name), problem));
  }

  // The parsed header; nlohmann keeps the last of two equal keys, so duplicates are caught while
  // parsing.
  absl::StatusOr<json> ParseHeader(std::string_view header) const {
    std::set<std::string> names;
    std::string duplicate;
    bool is_deep = false;
    const auto keep = [&](int depth, json::parse_event_t event, json& parsed) {
      is_deep = is_deep || depth > kMaxHeaderDepth;
      if (event == json::parse_event_t::key && depth == 1 &&
          !names.insert(parsed.get<std::string>()).second) {
        duplicate = parsed.get<std::string>();
      }
      return depth <= kMaxHeaderDepth;
    };
    json root = json::parse(header, keep, /*allow_exceptions=*/false);
    if (is_deep)
      return FileError(path_, absl::StrFormat("header is nested deeper than %d", kMaxHeaderDepth));
    if (!duplicate.empty()) return TensorError(duplicate, "appears twice in the header");
    if (!root.is_object()) return FileError(path_, "header is no JSON object");
    return root;
  }

  absl::Status CheckName(const std::string& name) const {
    if (name.empty() || name.size() > kMaxNameBytes) {
      return TensorError(
          name, absl::StrFormat("name has %d bytes, must have 1..%d", name.size(), kMaxNameBytes));
    }
    const bool is_printable = std::all_of(name.begin(), name.end(), [](char c) {
      return static_cast<unsigned char>(c) > 0x20 && c != 0x7f;
    });
    if (!is_printable)
      return TensorError(name, "name has a space, line break or control character");
    return absl::OkStatus();
  }

  absl::StatusOr<DType> ReadDType(const std::string& name, const json& entry) const {
    const auto it = entry.find("dtype");
    if (it == entry.end() || !it->is_string()) return TensorError(name, "dtype is missing");
    const auto& text = it->get_ref<const std::string&>();
    for (const DTypeFacts& facts : kDTypes) {
      if (text == facts.name) return facts.dtype;
    }
    return TensorError(name, absl::StrFormat("dtype %s is not known", Shown(text)));
  }

  // The dimensions and, through `bytes`, the size they imply.
  absl::StatusOr<std::vector<int64_t>> ReadShape(const std::string& name, const json& entry,
                                                 uint64_t& bytes) const {
    const auto it = entry.find("shape");
    if (it == entry.end() || !it->is_array()) return TensorError(name, "shape is missing");
    if (it->size() > kMaxRank) {
      return TensorError(
          name, absl::StrFormat("shape has %d dimensions, at most %d", it->size(), kMaxRank));
    }
    std::vector<int64_t> shape;
    for (const json& dimension : *it) {
      const bool is_size = dimension.is_number_unsigned() && dimension <= uint64_t{1} << 40;
      const uint64_t size = is_size ? dimension.get<uint64_t>() : 0;
      if (!is_size || __builtin_mul_overflow(bytes, size, &bytes))
        return TensorError(name, "shape has a dimension that is no size");
      shape.push_back(static_cast<int64_t>(size));
    }
    return shape;
  }

  absl::StatusOr<HostTensor> ReadTensor(const std::string& name, const json& entry) const {
    RETURN_IF_ERROR(CheckName(name));
    if (!entry.is_object()) return TensorError(name, "entry is no JSON object");
    HostTensor tensor;
    tensor.name = name;
    ASSIGN_OR_RETURN(tensor.dtype, ReadDType(name, entry));
    uint64_t bytes = ElementBytes(tensor.dtype);
    ASSIGN_OR_RETURN(tensor.shape, ReadShape(name, entry, bytes));
    const auto it = entry.find("data_offsets");
    if (it == entry.end() || !it->is_array() || it->size() != 2 || !(*it)[0].is_number_unsigned() ||
        !(*it)[1].is_number_unsigned()) {
      return TensorError(name, "data_offsets are missing");
    }
    const auto begin = (*it)[0].get<uint64_t>();
    const auto end = (*it)[1].get<uint64_t>();
    if (begin > end || end > data_.size()) {
      return TensorError(name, absl::StrFormat("data_offsets %d..%d, the file has %d data bytes",
                                               begin, end, data_.size()));
    }
    if (end - begin != bytes) {
      return TensorError(
          name, absl::StrFormat("has %d bytes, its shape and dtype need %d", end - begin, bytes));
    }
    tensor.bytes = data_.subspan(begin, bytes);
    return tensor;
  }

  // The tensors follow one another without gap or overlap up to the end, each aligned to its
  // element.
  absl::Status CheckTiling(std::vector<HostTensor>& tensors) const {
    std::sort(tensors.begin(), tensors.end(), [](const HostTensor& a, const HostTensor& b) {
      return std::pair(a.bytes.data(), a.bytes.size()) < std::pair(b.bytes.data(), b.bytes.size());
    });
    const std::byte* expected = data_.data();
    for (const HostTensor& tensor : tensors) {
      const std::byte* start = tensor.bytes.data();
      if (start != expected) {
        return TensorError(
            tensor.name,
            absl::StrFormat("starts at data byte %d, %s", start - data_.data(),
                            start < expected ? "inside another tensor" : "after a gap"));
      }
      const auto address = reinterpret_cast<std::uintptr_t>(start);
      if (!tensor.bytes.empty() && address % ElementBytes(tensor.dtype) != 0) {
        return TensorError(tensor.name,
                           absl::StrFormat("starts at data byte %d, not aligned to %d",
                                           start - data_.data(), ElementBytes(tensor.dtype)));
      }
      expected = start + tensor.bytes.size();
    }
    const auto rest = data_.data() + data_.size() - expected;
    if (rest != 0) return FileError(path_, absl::StrFormat("%d bytes after the last tensor", rest));
    return absl::OkStatus();
  }

  std::span<const std::byte> data_;
  const std::string& path_;
};

}  // namespace

size_t ElementBytes(DType dtype) { return FactsOf(dtype).bytes; }

const char* DTypeName(DType dtype) { return FactsOf(dtype).name; }

absl::StatusOr<std::vector<HostTensor>> ParseSafetensors(std::span<const std::byte> file,
                                                         const std::string& path) {
  if (file.size() < kLengthBytes) {
    return FileError(path, absl::StrFormat("%d bytes, a safetensors file has at least %d",
                                           file.size(), kLengthBytes));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), kLengthBytes);
  const uint64_t limit = std::min<uint64_t>(kMaxHeaderBytes, file.size() - kLengthBytes);
  if (header_bytes > limit) {
    return FileError(path, absl::StrFormat("header length %d, at most %d in a file of %d bytes",
                                           header_bytes, limit, file.size()));
  }
  const std::string_view header(reinterpret_cast<const char*>(file.data() + kLengthBytes),
                                header_bytes);
  return HeaderReader(file.subspan(kLengthBytes + header_bytes), path).Read(header);
}

}  // namespace baton::engine
