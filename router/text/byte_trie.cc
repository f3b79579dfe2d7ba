#include "router/text/byte_trie.h"

#include <algorithm>

#include "common/check.h"

namespace baton::router {

// Places the nodes level by level, each family in the first block of 256 nodes that has room for it
// among the last few blocks: earlier ones are nearly full.
class ByteTrieBuilder {
 public:
  ByteTrieBuilder(std::vector<ByteTrie::Node>& nodes, std::span<const ByteTrie::Key> keys)
      : nodes_(nodes), keys_(keys) {}

  void Build() {
    AddBlock();
    is_taken_[0] = true;  // the root
    std::vector<Range> level = {{.node = 0, .first = 0, .last = keys_.size()}};
    for (size_t depth = 0; !level.empty(); ++depth) {
      std::vector<Range> next;
      for (const Range& range : level) PlaceChildren(range, depth, next);
      level = std::move(next);
    }
  }

 private:
  static constexpr uint32_t kBlock = 256;
  static constexpr uint32_t kOpenBlocks = 16;

  struct Range {  // a node and the keys under it, [first, last)
    uint32_t node;
    size_t first, last;
  };
  struct Child {
    uint8_t label;
    size_t first, last;
  };

  void AddBlock() {
    nodes_.resize(nodes_.size() + kBlock);
    is_taken_.resize(nodes_.size());
    num_free_.push_back(kBlock);
  }

  void PlaceChildren(const Range& range, size_t depth, std::vector<Range>& next) {
    std::vector<Child>& children = children_;
    children.clear();
    size_t at = range.first;
    if (at < range.last && keys_[at].first.size() == depth) {
      nodes_[range.node].value = keys_[at].second;
      ++at;
    }
    for (; at < range.last; ++at) {
      const uint8_t label = static_cast<uint8_t>(keys_[at].first[depth]);
      if (children.empty() || children.back().label != label)
        children.push_back({.label = label, .first = at, .last = at});
      children.back().last = at + 1;
    }
    if (children.empty()) return;
    const uint32_t base = FindBase(children);
    nodes_[range.node].base = base;
    for (const Child& child : children) {
      const uint32_t node = base ^ child.label;
      nodes_[node].parent = range.node;
      is_taken_[node] = true;
      --num_free_[node / kBlock];
      next.push_back({.node = node, .first = child.first, .last = child.last});
    }
  }

  uint32_t FindBase(const std::vector<Child>& children) {
    const uint32_t num_blocks = static_cast<uint32_t>(num_free_.size());
    for (uint32_t block = num_blocks - std::min(num_blocks, kOpenBlocks); block < num_blocks;
         ++block) {
      if (num_free_[block] < children.size()) continue;
      for (uint32_t i = 0; i < kBlock; ++i) {
        const uint32_t base = block * kBlock + i;
        const bool has_room = std::none_of(children.begin(), children.end(), [&](const Child& c) {
          return is_taken_[base ^ c.label];
        });
        if (has_room) return base;
      }
    }
    CHECK(nodes_.size() < ByteTrie::kNone - kBlock);
    AddBlock();
    return num_blocks * kBlock;
  }

  std::vector<ByteTrie::Node>& nodes_;
  const std::span<const ByteTrie::Key> keys_;
  std::vector<bool> is_taken_;
  std::vector<uint32_t> num_free_;  // nodes per block
  std::vector<Child> children_;
};

ByteTrie::ByteTrie(std::span<const Key> keys) { ByteTrieBuilder(nodes_, keys).Build(); }

}  // namespace baton::router
