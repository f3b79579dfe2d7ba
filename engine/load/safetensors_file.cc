#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "engine/load/checkpoint.h"
#include "engine/load/safetensors.h"

namespace baton::engine {
namespace {

absl::Status SystemError(const std::string& path, const char* call) {
  const int error = errno;
  const std::string text =
      absl::StrFormat("%s: %s: %s", path, call, std::generic_category().message(error));
  return error == ENOENT ? absl::NotFoundError(text) : absl::InvalidArgumentError(text);
}

// Closes its descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// A whole file, mapped for reading.
class Mapping {
 public:
  Mapping(void* start, size_t size) : start_(start), size_(size) {}
  ~Mapping() { ::munmap(start_, size_); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(start_), size_};
  }

 private:
  void* start_;
  size_t size_;
};

absl::StatusOr<std::unique_ptr<Mapping>> Map(const std::string& path) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) return SystemError(path, "open");
  struct stat facts = {};
  if (::fstat(file.get(), &facts) != 0) return SystemError(path, "fstat");
  if (!S_ISREG(facts.st_mode))
    return absl::InvalidArgumentError(absl::StrFormat("%s: is no regular file", path));
  if (facts.st_size == 0) return absl::InvalidArgumentError(absl::StrFormat("%s: 0 bytes", path));
  const size_t size = static_cast<size_t>(facts.st_size);
  void* start = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (start == MAP_FAILED) return SystemError(path, "mmap");
  return std::make_unique<Mapping>(start, size);
}

}  // namespace

struct SafetensorsFile::Impl {
  std::unique_ptr<Mapping> mapping;
  std::vector<HostTensor> tensors;
};

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

absl::StatusOr<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->mapping, Map(path));
  ASSIGN_OR_RETURN(impl->tensors, ParseSafetensors(impl->mapping->bytes(), path));
  return SafetensorsFile(std::move(impl));
}

const std::vector<HostTensor>& SafetensorsFile::tensors() const { return impl_->tensors; }

const HostTensor* SafetensorsFile::Find(std::string_view name) const {
  const auto it = std::lower_bound(
      impl_->tensors.begin(), impl_->tensors.end(), name,
      [](const HostTensor& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return it != impl_->tensors.end() && it->name == name ? &*it : nullptr;
}

}  // namespace baton::engine
