#include <algorithm>
#include <cstring>

#include "absl/strings/str_format.h"

#include "common/digest.h"
#include "common/status.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/digest.h"

// Digest: what lies in GPU memory is read there, what lies in host memory by the host.
namespace baton::kernels::cuda {
namespace {

constexpr size_t kBatch = 256;  // items of one launch

bool IsOnDevice(const void* data) {
  cudaPointerAttributes attributes = {};
  if (cudaPointerGetAttributes(&attributes, data) != cudaSuccess) {
    cudaGetLastError();
    return false;
  }
  return attributes.type == cudaMemoryTypeDevice || attributes.type == cudaMemoryTypeManaged;
}

}  // namespace

absl::Status CudaOps::Digest(const DigestArgs& args) {
  const NhDigest host_digest(args.secret);
  std::vector<size_t> on_device;
  for (size_t i = 0; i < args.items.size(); ++i) {
    const DigestItem& item = args.items[i];
    if (item.header.size() > kDigestChunkBytes) {
      return absl::InvalidArgumentError(absl::StrFormat("Digest: header of %d bytes, at most %d",
                                                        item.header.size(), kDigestChunkBytes));
    }
    if (!item.data.empty() && IsOnDevice(item.data.data())) {
      on_device.push_back(i);
    } else {
      args.digests[i] = host_digest.Of(item.header, item.data);
    }
  }
  for (size_t first = 0; first < on_device.size(); first += kBatch) {
    const size_t count = std::min(kBatch, on_device.size() - first);
    RETURN_IF_ERROR(DigestOnDevice(args, std::span(on_device).subspan(first, count)));
  }
  return absl::OkStatus();
}

absl::Status CudaOps::DigestOnDevice(const DigestArgs& args, std::span<const size_t> chosen) {
  RETURN_IF_ERROR(staging_.Begin());
  DigestKernelArgs kernel;
  std::memcpy(kernel.secret, args.secret.bytes.data(), sizeof(kernel.secret));
  std::vector<DigestItemArgs> items;
  for (const size_t index : chosen) {
    const DigestItem& item = args.items[index];
    std::vector<uint8_t> header(kDigestChunkBytes, 0);
    if (!item.header.empty()) std::memcpy(header.data(), item.header.data(), item.header.size());
    items.push_back({.header = staging_.Put(std::span<const uint8_t>(header)),
                     .data = reinterpret_cast<const uint8_t*>(item.data.data()),
                     .bytes = item.data.size()});
    kernel.longest = std::max<uint64_t>(kernel.longest, item.data.size());
  }
  kernel.items = staging_.Put(std::span<const DigestItemArgs>(items));
  kernel.num_items = static_cast<int>(items.size());
  std::vector<uint64_t> sums(2 * items.size());
  kernel.sums = staging_.Put(std::span<const uint64_t>(sums));
  RETURN_IF_ERROR(staging_.Flush());
  RETURN_IF_ERROR(ToStatus(RunDigest(kernel, stream()), "Digest"));
  RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(sums.data(), kernel.sums, 8 * sums.size(), cudaMemcpyDeviceToHost, stream()),
      "Digest: results"));
  RETURN_IF_ERROR(ToStatus(cudaStreamSynchronize(stream()), "Digest"));
  for (size_t i = 0; i < chosen.size(); ++i) {
    std::memcpy(args.digests[chosen[i]].bytes.data(), &sums[2 * i], 16);
  }
  return absl::OkStatus();
}

}  // namespace baton::kernels::cuda
