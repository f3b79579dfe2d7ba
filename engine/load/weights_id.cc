#include "engine/load/weights_id.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <string_view>
#include <sys/stat.h>
#include <system_error>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "common/hash.h"
#include "common/status.h"
#include "engine/load/safetensors.h"

namespace baton::engine {
namespace {

namespace fs = std::filesystem;

std::string HexDigest(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.Update(bytes.data(), bytes.size());
  const Sha256Bytes digest = hash.Finish();
  return ToHex(digest.data(), digest.size());
}

// What identifies the files' contents without reading them.
absl::StatusOr<std::string> CacheKey(std::span<const std::string> files) {
  std::string facts;
  for (const std::string& file : files) {
    struct stat status = {};
    std::error_code error;
    const fs::path path = fs::canonical(file, error);
    if (error || ::stat(file.c_str(), &status) != 0)
      return absl::NotFoundError(absl::StrFormat("%s: cannot be read any more", file));
    facts += absl::StrFormat("%s %d %d.%09d\n", path.string(), status.st_size,
                             status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
  }
  const Sha256Bytes digest = Sha256Of(facts);
  return ToHex(digest.data(), 16);
}

std::optional<WeightsId> ReadCached(const fs::path& path) {
  std::ifstream in(path);
  std::string text;
  if (!(in >> text)) return std::nullopt;
  return WeightsId::FromHexText(text);
}

// Through a temporary file, so that a reader never sees half an id.
void WriteCached(const fs::path& path, const WeightsId& id) {
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const fs::path temporary = path.string() + ".new";
  {
    std::ofstream out(temporary, std::ios::trunc);
    out << id.Hex() << '\n';
    if (!out.flush()) return;
  }
  fs::rename(temporary, path, error);
}

}  // namespace

WeightsId WeightsIdOf(std::span<const HostTensor* const> tensors) {
  Sha256 hash;
  for (const HostTensor* tensor : tensors) {
    hash.Update(absl::StrFormat("%s %s %s %s\n", tensor->name, DTypeName(tensor->dtype),
                                absl::StrJoin(tensor->shape, ","), HexDigest(tensor->bytes)));
  }
  return PrefixOf<WeightsId>(hash.Finish());
}

absl::StatusOr<WeightsId> CachedWeightsId(std::span<const HostTensor* const> tensors,
                                          std::span<const std::string> files,
                                          const std::string& cache_folder) {
  ASSIGN_OR_RETURN(const std::string key, CacheKey(files));
  const fs::path path = fs::path(cache_folder) / (key + ".weights_id");
  if (const auto cached = ReadCached(path)) return *cached;
  const WeightsId id = WeightsIdOf(tensors);
  WriteCached(path, id);
  return id;
}

}  // namespace baton::engine
