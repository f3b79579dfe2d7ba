#include <cstddef>
#include <cstdint>
#include <span>

#include "common/check.h"
#include "engine/load/safetensors.h"

// Any bytes: refused with a reason, or tensors that lie inside the file, each of the size its shape
// says, ascending by name.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto tensors = baton::engine::ParseSafetensors(file, "fuzz");
  if (!tensors.ok()) {
    CHECK(!tensors.status().message().empty());
    return 0;
  }
  const baton::engine::HostTensor* last = nullptr;
  for (const baton::engine::HostTensor& tensor : *tensors) {
    uint64_t bytes = baton::engine::ElementBytes(tensor.dtype);
    for (int64_t dimension : tensor.shape) bytes *= static_cast<uint64_t>(dimension);
    CHECK(bytes == tensor.bytes.size());
    CHECK(tensor.bytes.data() >= file.data());
    CHECK(tensor.bytes.data() + bytes <= file.data() + file.size());
    CHECK(last == nullptr || last->name < tensor.name);
    last = &tensor;
  }
  return 0;
}
