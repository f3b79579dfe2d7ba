#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace baton::router {

// Finds the longest of many keys at the front of a text: a trie in a double array, one look-up per
// byte. Immutable after the constructor; any thread.
class ByteTrie {
 public:
  using Key = std::pair<std::string_view, int32_t>;  // bytes, not empty, and its value, not < 0

  ByteTrie() : ByteTrie(std::span<const Key>()) {}
  // `keys` ascend and differ; their bytes are not needed afterwards.
  explicit ByteTrie(std::span<const Key> keys);

  struct Match {
    int32_t value = -1;  // -1: none
    uint32_t size = 0;
  };
  // The longest key that `text` starts with.
  Match Longest(std::string_view text) const {
    Match best;
    uint32_t at = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const uint32_t next = nodes_[at].base ^ static_cast<uint8_t>(text[i]);
      if (nodes_[next].parent != at) break;
      at = next;
      if (nodes_[at].value >= 0)
        best = {.value = nodes_[at].value, .size = static_cast<uint32_t>(i + 1)};
    }
    return best;
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  // The child of node n by byte b is base of n ^ b, if its parent is n: siblings lie in one block
  // of 256 nodes.
  struct Node {
    uint32_t base = 0;
    uint32_t parent = kNone;  // kNone: the root or a free node
    int32_t value = -1;
  };
  friend class ByteTrieBuilder;

  std::vector<Node> nodes_;
};

}  // namespace baton::router
