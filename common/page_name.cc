#include "common/page_name.h"

#include <algorithm>

#include "common/check.h"
#include "common/hash.h"

namespace baton {
namespace {

template <typename T>
void UpdateLittleEndian(Sha256& hash, T value) {
  hash.Update(&value, sizeof(value));
}

template <typename Id>
void UpdateId(Sha256& hash, const Id& id) {
  hash.Update(id.bytes.data(), id.bytes.size());
}

}  // namespace

PageName RootName(const WeightsId& weights, const LayoutId& layout, std::string_view salt) {
  Sha256 hash;
  hash.Update("baton.page.1");
  UpdateId(hash, weights);
  UpdateId(hash, layout);
  UpdateLittleEndian(hash, static_cast<uint32_t>(salt.size()));
  hash.Update(salt);
  return PrefixOf<PageName>(hash.Finish());
}

PageName NextName(const PageName& previous, std::span<const ClassRun> runs,
                  std::span<const int32_t> tokens) {
  CHECK(tokens.size() == kPageTokens);
  CHECK(!runs.empty() && runs.size() <= 255);
  Sha256 hash;
  UpdateId(hash, previous);
  UpdateLittleEndian(hash, static_cast<uint8_t>(runs.size()));
  int sum = 0;
  for (const ClassRun& run : runs) {
    UpdateLittleEndian(hash, run.count);
    UpdateId(hash, run.class_id);
    sum += run.count;
  }
  CHECK(sum == kPageTokens);
  hash.Update(tokens.data(), tokens.size_bytes());
  return PrefixOf<PageName>(hash.Finish());
}

void PageNamer::Append(const ClassId& class_id, std::span<const int32_t> tokens) {
  while (!tokens.empty()) {
    const size_t count = std::min(tokens.size(), size_t{kPageTokens} - tokens_.size());
    const std::span<const int32_t> taken = tokens.first(count);
    tokens_.insert(tokens_.end(), taken.begin(), taken.end());
    if (runs_.empty() || runs_.back().class_id != class_id) runs_.push_back({0, class_id});
    runs_.back().count = static_cast<uint16_t>(runs_.back().count + count);
    tokens = tokens.subspan(count);
    if (tokens_.size() < size_t{kPageTokens}) continue;
    last_ = NextName(last_, runs_, tokens_);
    names_.push_back(last_);
    tokens_.clear();
    runs_.clear();
  }
}

std::vector<PageName> PromptPageNames(const PageName& root, const ClassId& prompt_class,
                                      std::span<const int32_t> tokens) {
  PageNamer namer(root);
  namer.Append(prompt_class, tokens);
  return namer.names();
}

}  // namespace baton
