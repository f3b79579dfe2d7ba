#include "router/openai/call_replay.h"

#include <iterator>
#include <set>
#include <utility>

#include "common/check.h"

namespace baton::router {
namespace {

constexpr size_t kEntryOverhead = 256;  // list node, map node, vectors

}  // namespace

size_t CallReplay::bytes() const {
  const MutexLock lock(mutex_);
  return bytes_;
}

void CallReplay::Keep(const std::vector<std::string>& ids, std::vector<ParsedCall> calls,
                      SampledBlock block) {
  CHECK(!ids.empty() && ids.size() == calls.size());
  Kept kept = {
      .ids = ids, .calls = std::move(calls), .block = std::move(block), .at = clock_.Now()};
  kept.bytes =
      kEntryOverhead + kept.block.text.size() + sizeof(size_t) * kept.block.tokens_at.size();
  for (const ParsedCall& call : kept.calls)
    kept.bytes += kEntryOverhead + call.name.size() + call.arguments.size();
  if (kept.bytes > limits_.max_bytes / 4) return;
  const MutexLock lock(mutex_);
  if (const auto known = by_id_.find(ids.front()); known != by_id_.end()) Drop(known->second);
  bytes_ += kept.bytes;
  entries_.push_front(std::make_shared<const Kept>(std::move(kept)));
  by_id_[ids.front()] = entries_.begin();
  Trim();
}

void CallReplay::Drop(Entries::iterator entry) {
  bytes_ -= (*entry)->bytes;
  by_id_.erase((*entry)->ids.front());
  entries_.erase(entry);
}

void CallReplay::Trim() {
  const absl::Time oldest = clock_.Now() - limits_.max_age;
  while (!entries_.empty() && (bytes_ > limits_.max_bytes || entries_.back()->at < oldest)) {
    Drop(std::prev(entries_.end()));
  }
}

bool CallReplay::Matches(const Kept& kept, const ChatMessage& message) {
  if (kept.ids.size() != message.tool_calls.size()) return false;
  for (size_t i = 0; i < kept.ids.size(); ++i) {
    const ChatToolCall& call = message.tool_calls[i];
    if (call.id != kept.ids[i] || call.name != kept.calls[i].name) return false;
    if (call.arguments == kept.calls[i].arguments) continue;
    const auto got = JsonValue::Parse(call.arguments);
    const auto sampled = JsonValue::Parse(kept.calls[i].arguments);
    if (!got.ok() || !sampled.ok() || !JsonEqual(*got, *sampled)) return false;
  }
  return true;
}

std::shared_ptr<const CallReplay::Kept> CallReplay::Find(const std::string& first_id) {
  const MutexLock lock(mutex_);
  const auto found = by_id_.find(first_id);
  if (found == by_id_.end()) return nullptr;
  if ((*found->second)->at < clock_.Now() - limits_.max_age) {
    Drop(found->second);
    return nullptr;
  }
  entries_.splice(entries_.begin(), entries_, found->second);
  return *found->second;
}

// A block is looked at once: a history repeats no call, and one that does must not cost the work
// and the memory of many.
void CallReplay::Restore(std::vector<ChatMessage>& messages) {
  std::set<std::shared_ptr<const Kept>> seen;
  for (ChatMessage& message : messages) {
    if (message.tool_calls.empty()) continue;
    const std::shared_ptr<const Kept> kept = Find(message.tool_calls.front().id);
    if (kept == nullptr || !seen.insert(kept).second) continue;
    if (Matches(*kept, message)) message.sampled_calls = kept->block;
  }
}

}  // namespace baton::router
