#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::router {

using TokenId = int32_t;

// Byte-level BPE over raw bytes (protocol.md 1.2, 1.3): the adjacent pair with the lowest merge
// rank is merged, leftmost on ties, until none applies. Immutable after Create; any thread.
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

  // Appends the ids of one piece. O(n) for a piece that is one token, else O(n log n).
  void Encode(std::string_view piece, std::vector<TokenId>& ids) const;

 private:
  struct Slot {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    TokenId product = 0;
  };
  struct WholeSlot {
    uint32_t offset = 0;  // into whole_bytes_
    uint32_t size = 0;    // 0: empty slot
    TokenId id = 0;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const Slot* Find(TokenId left, TokenId right) const;
  void MergeShort(std::string_view piece, std::vector<TokenId>& ids) const;
  void MergeLong(std::string_view piece, std::vector<TokenId>& ids) const;
  absl::Status FillMerges(std::span<const Merge> merges);
  void FillWhole(std::span<const std::string> tokens);
  const WholeSlot* FindWhole(std::string_view piece) const;

  TokenId byte_ids_[256] = {};
  std::vector<Slot> slots_;       // open addressing, size a power of two
  std::vector<WholeSlot> whole_;  // tokens whose own bytes encode to themselves, likewise
  std::string whole_bytes_;
  size_t max_whole_size_ = 0;
};

}  // namespace baton::router
