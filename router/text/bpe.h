#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "router/text/byte_trie.h"

namespace baton::router {

using TokenId = int32_t;

// Byte-level BPE over raw bytes (protocol.md 1.2, 1.3): the adjacent pair with the lowest merge
// rank is merged, leftmost on ties, until none applies. Immutable after Create; any thread.
//
// Where every merge ranks behind the merges that make its two parts, as training leaves them,
// merges happen in the order of their ranks. Then a sequence of tokens is what merging gives
// exactly if merging gives each two neighbours back, because whether a merge reaches across a
// border depends on the two tokens at the border only. So Encode looks for such a sequence: the
// longest token first, then shorter ones; a position from which none leads on is never tried again.
// Other vocabularies are merged pair by pair.
class BpeModel {
 public:
  // `tokens[id]` is a token's bytes; empty: no such token. `merges[rank]` holds two ids and their
  // product.
  struct Merge {
    TokenId left, right, product;
  };
  // kInvalidArgument when one of the 256 single bytes is no token or a pair is listed twice.
  static absl::StatusOr<BpeModel> Create(std::span<const std::string> tokens,
                                         std::span<const Merge> merges);

  // Appends the ids of one piece. O(n), O(n log n) where is_ordered() is false.
  void Encode(std::string_view piece, std::vector<TokenId>& ids) const;
  // The same by the definition: merging pair by pair, O(n log n).
  void EncodeByMerging(std::string_view piece, std::vector<TokenId>& ids) const;
  // Whether merges happen in the order of their ranks.
  bool is_ordered() const { return is_ordered_; }

 private:
  struct Slot {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    TokenId product = 0;
  };
  // How merging makes a token of its own bytes, if it does.
  struct Making {
    uint32_t at = kNotMade;         // 1 + the rank of the last merge; 0: a byte, which needs none
    TokenId left = -1, right = -1;  // what that merge joins
    TokenId shorter = -1;           // the longest proper prefix that is such a token too
  };
  static constexpr uint32_t kNotMade = ~uint32_t{0};
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const Slot* Find(TokenId left, TokenId right) const;
  absl::Status FillMerges(std::span<const Merge> merges);
  void FillMakings(std::span<const std::string> tokens, std::span<const Merge> merges);
  void FillTrie(std::span<const std::string> tokens);
  bool IsMade(TokenId id) const { return makings_[static_cast<size_t>(id)].at != kNotMade; }
  bool StayApart(TokenId left, TokenId right) const;
  bool PartsStayApart(TokenId left, TokenId right) const;

  TokenId byte_ids_[256] = {};
  std::vector<Slot> slots_;             // open addressing, size a power of two
  std::vector<uint64_t> merging_bits_;  // likewise: one per hash of a pair that merges
  bool is_ordered_ = true;
  std::vector<Making> makings_;  // by token
  std::vector<uint32_t> sizes_;  // of tokens in bytes
  ByteTrie trie_;                // tokens that merging makes of their own bytes
};

}  // namespace baton::router
