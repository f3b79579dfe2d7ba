#include "engine/load/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

#include "common/check.h"
#include "common/status.h"
#include "engine/load/safetensors.h"
#include "engine/load/shard_index.h"
#include "engine/load/tensor_table.h"
#include "engine/load/weights_id.h"

namespace baton::engine {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;
constexpr size_t kMaxIndexBytes = 64 << 20;
constexpr size_t kMaxShownProblems = 20;
constexpr char kConfigFile[] = "config.json";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr char kSingleFile[] = "model.safetensors";

std::string PathOf(const std::string& folder, const std::string& file) {
  return (std::filesystem::path(folder) / file).string();
}

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

absl::StatusOr<std::string> ReadText(const std::string& path, size_t limit) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) return absl::NotFoundError(absl::StrFormat("%s: %s", path, error.message()));
  if (size > limit) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes, at most %d", path, size, limit));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (!in) return absl::InvalidArgumentError(absl::StrFormat("%s: cannot be read", path));
  return text;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrFormat("[%s]", absl::StrJoin(shape, ", "));
}

}  // namespace

struct Checkpoint::Impl {
  std::string folder;
  ModelConfig config;
  std::vector<std::string> shard_paths;
  std::vector<SafetensorsFile> shards;  // the tensors' owners; not touched after Open
  std::vector<const HostTensor*> tensors;
  uint64_t total_bytes = 0;

  const HostTensor* Find(std::string_view name) const {
    const auto it = std::lower_bound(
        tensors.begin(), tensors.end(), name,
        [](const HostTensor* tensor, std::string_view wanted) { return tensor->name < wanted; });
    return it != tensors.end() && (*it)->name == name ? *it : nullptr;
  }

  absl::StatusOr<ShardIndex> FindShards(std::set<std::string>& files) const;
  void Collect(const std::set<std::string>& files, const ShardIndex& map,
               std::vector<std::string>& problems);
  void CheckTensors(const ShardIndex& map, std::vector<std::string>& problems) const;
  void CheckTensor(const ExpectedTensor& expected, std::vector<std::string>& problems) const;
};

absl::StatusOr<ShardIndex> Checkpoint::Impl::FindShards(std::set<std::string>& files) const {
  const std::string index_path = PathOf(folder, kIndexFile);
  if (!Exists(index_path)) {
    if (!Exists(PathOf(folder, kSingleFile))) {
      return absl::NotFoundError(
          absl::StrFormat("%s: neither %s nor %s", folder, kIndexFile, kSingleFile));
    }
    files.insert(kSingleFile);
    return ShardIndex{};
  }
  ASSIGN_OR_RETURN(const std::string text, ReadText(index_path, kMaxIndexBytes));
  ASSIGN_OR_RETURN(ShardIndex map, ParseShardIndex(text, index_path));
  for (const auto& [name, file] : map) files.insert(file);
  return map;
}

// Fills `tensors`; reports names that two shards have, or that lie elsewhere than the index says.
void Checkpoint::Impl::Collect(const std::set<std::string>& files, const ShardIndex& map,
                               std::vector<std::string>& problems) {
  std::map<std::string_view, const std::string*> owner;
  auto file = files.begin();
  for (const SafetensorsFile& shard : shards) {
    for (const HostTensor& tensor : shard.tensors()) {
      const auto [it, is_new] = owner.emplace(tensor.name, &*file);
      if (!is_new) {
        problems.push_back(
            absl::StrFormat("%s: in both %s and %s", tensor.name, *it->second, *file));
        continue;
      }
      tensors.push_back(&tensor);
      total_bytes += tensor.bytes.size();
      const auto place = map.find(tensor.name);
      if (!map.empty() && (place == map.end() || place->second != *file)) {
        problems.push_back(absl::StrFormat("%s: in %s, the index says %s", tensor.name, *file,
                                           place == map.end() ? "nothing" : place->second));
      }
    }
    ++file;
  }
  std::sort(tensors.begin(), tensors.end(),
            [](const HostTensor* a, const HostTensor* b) { return a->name < b->name; });
}

void Checkpoint::Impl::CheckTensor(const ExpectedTensor& expected,
                                   std::vector<std::string>& problems) const {
  const HostTensor* tensor = Find(expected.name);
  if (tensor == nullptr) {
    problems.push_back(absl::StrFormat("%s: missing", expected.name));
    return;
  }
  if (!IsAllowed(expected.kind, tensor->dtype)) {
    problems.push_back(absl::StrFormat("%s: dtype %s, must be %s", expected.name,
                                       DTypeName(tensor->dtype), AllowedDTypes(expected.kind)));
  }
  if (tensor->shape != expected.shape) {
    problems.push_back(absl::StrFormat("%s: shape %s, must be %s", expected.name,
                                       ShapeText(tensor->shape), ShapeText(expected.shape)));
  }
}

void Checkpoint::Impl::CheckTensors(const ShardIndex& map,
                                    std::vector<std::string>& problems) const {
  std::set<std::string, std::less<>> known;
  bool needs_scale = true;  // of the wo_a weight just before
  for (ExpectedTensor& expected : ExpectedTensors(config)) {
    if (expected.kind == TensorKind::kF8OrBf16) {
      const HostTensor* weight = Find(expected.name);
      needs_scale = weight == nullptr || weight->dtype == DType::kF8E4M3;
    }
    // The FP8 rerelease's index lists wo_a scales its shards do not have (model.md 9.5).
    if (expected.kind == TensorKind::kOptionalScale && !needs_scale) {
      if (Find(expected.name) != nullptr)
        problems.push_back(absl::StrFormat("%s: present beside a BF16 weight", expected.name));
    } else {
      CheckTensor(expected, problems);
    }
    known.insert(std::move(expected.name));
  }
  for (const HostTensor* tensor : tensors) {
    if (!known.contains(tensor->name))
      problems.push_back(absl::StrFormat("%s: no tensor of this model", tensor->name));
  }
  for (const auto& [name, file] : map) {
    if (!known.contains(name) && Find(name) == nullptr)
      problems.push_back(absl::StrFormat("%s: in the index, no tensor of this model", name));
  }
}

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

absl::StatusOr<Checkpoint> Checkpoint::Open(const std::string& folder) {
  auto impl = std::make_unique<Impl>();
  impl->folder = folder;
  const std::string config_path = PathOf(folder, kConfigFile);
  ASSIGN_OR_RETURN(const std::string text, ReadText(config_path, kMaxConfigBytes));
  ASSIGN_OR_RETURN(impl->config, ParseModelConfig(text, config_path));
  std::set<std::string> files;
  ASSIGN_OR_RETURN(const ShardIndex map, impl->FindShards(files));
  for (const std::string& file : files) {
    impl->shard_paths.push_back(PathOf(folder, file));
    ASSIGN_OR_RETURN(SafetensorsFile shard, SafetensorsFile::Open(impl->shard_paths.back()));
    impl->shards.push_back(std::move(shard));
  }
  std::vector<std::string> problems;
  impl->Collect(files, map, problems);
  impl->CheckTensors(map, problems);
  if (problems.empty()) return Checkpoint(std::move(impl));

  const size_t shown = std::min(problems.size(), kMaxShownProblems);
  const auto end = problems.begin() + static_cast<std::ptrdiff_t>(shown);
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s: %d problems with tensors: %s%s", folder, problems.size(),
      absl::StrJoin(problems.begin(), end, "; "),
      shown < problems.size() ? absl::StrFormat("; and %d more", problems.size() - shown) : ""));
}

const std::string& Checkpoint::folder() const { return impl_->folder; }
const ModelConfig& Checkpoint::config() const { return impl_->config; }
const std::vector<const HostTensor*>& Checkpoint::tensors() const { return impl_->tensors; }
uint64_t Checkpoint::total_bytes() const { return impl_->total_bytes; }
bool Checkpoint::Has(std::string_view name) const { return impl_->Find(name) != nullptr; }

const HostTensor& Checkpoint::Tensor(std::string_view name) const {
  const HostTensor* tensor = impl_->Find(name);
  CHECK(tensor != nullptr);
  return *tensor;
}

absl::StatusOr<WeightsId> Checkpoint::ComputeWeightsId(const std::string& cache_folder) const {
  if (cache_folder.empty()) return WeightsIdOf(impl_->tensors);
  return CachedWeightsId(impl_->tensors, impl_->shard_paths, cache_folder);
}

}  // namespace baton::engine
