#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "router/text/bpe.h"

namespace baton::router {

// Finds the literals of added tokens, leftmost-longest, the `normalized: false` set first and the
// other set in what remains (protocol.md 1.4). Immutable once filled; any thread.
class AddedTokens {
 public:
  struct Match {
    size_t begin, end;
    TokenId id;
  };

  // `literal` is not empty.
  void Add(std::string_view literal, TokenId id, bool is_normalized);
  // All matches in `text`, ascending and disjoint.
  std::vector<Match> FindAll(std::string_view text) const;

 private:
  // A trie with edges in a list per node: the literals share long prefixes, so nodes have few
  // children.
  struct Node {
    std::vector<std::pair<uint8_t, uint32_t>> children;
    TokenId id = -1;
  };
  struct Trie {
    std::vector<Node> nodes = std::vector<Node>(1);
    std::array<bool, 256> first = {};  // bytes a literal can start with
  };
  static std::optional<Match> LongestAt(const Trie& trie, std::string_view text, size_t begin);
  static void FindIn(const Trie& trie, std::string_view text, size_t base, std::vector<Match>& out);

  Trie exact_;
  Trie normalized_;
};

}  // namespace baton::router
