#include "router/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <optional>
#include <queue>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"

namespace baton::router {
namespace {

constexpr size_t kSlotsPerEntry = 2;
// Most pairs that are asked for do not merge: the bits, which fit into a core's second cache,
// answer 15 of 16 of these.
constexpr size_t kBitsPerEntry = 16;
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

uint64_t PairOf(TokenId left, TokenId right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

size_t HashPair(uint64_t pair) {
  const uint64_t product = (pair ^ (pair >> 29)) * 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(product >> 20);
}

size_t TableSize(size_t num_entries) { return std::bit_ceil(kSlotsPerEntry * num_entries + 1); }

// A pair that could be merged, in the heap.
struct Candidate {
  uint32_t rank;
  uint32_t at;  // index of the left symbol
  TokenId left, right, product;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

// A symbol of the list that is merged; one swallowed by its left neighbour has id -1.
struct Symbol {
  TokenId id;
  uint32_t previous, next;
};

// Positions of a piece from which no sequence of tokens leads to its end.
class DeadEnds {
 public:
  explicit DeadEnds(size_t size) : size_(size) {}
  void Add(size_t at) {
    if (bits_.empty()) bits_.resize(size_ / 64 + 1);
    bits_[at / 64] |= uint64_t{1} << (at % 64);
  }
  bool Has(size_t at) const { return !bits_.empty() && (bits_[at / 64] >> (at % 64) & 1) != 0; }

 private:
  const size_t size_;
  std::vector<uint64_t> bits_;  // empty: there is none
};

}  // namespace

absl::StatusOr<BpeModel> BpeModel::Create(std::span<const std::string> tokens,
                                          std::span<const Merge> merges) {
  BpeModel model;
  std::fill(std::begin(model.byte_ids_), std::end(model.byte_ids_), -1);
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].size() == 1) {
      model.byte_ids_[static_cast<uint8_t>(tokens[id][0])] = static_cast<TokenId>(id);
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (model.byte_ids_[byte] < 0) {
      return absl::InvalidArgumentError(absl::StrFormat("vocab: byte 0x%02x is no token", byte));
    }
  }
  RETURN_IF_ERROR(model.FillMerges(merges));
  model.FillMakings(tokens, merges);
  model.FillTrie(tokens);
  return model;
}

absl::Status BpeModel::FillMerges(std::span<const Merge> merges) {
  slots_.resize(TableSize(merges.size()));
  merging_bits_.resize(std::bit_ceil(kBitsPerEntry * merges.size() / 64 + 1));
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const Merge& merge = merges[rank];
    const uint64_t pair = PairOf(merge.left, merge.right);
    size_t at = HashPair(pair) & (slots_.size() - 1);
    for (; slots_[at].pair != kNoPair; at = (at + 1) & (slots_.size() - 1)) {
      if (slots_[at].pair != pair) continue;
      return absl::InvalidArgumentError(
          absl::StrFormat("merges: entries %d and %d are the same pair", slots_[at].rank, rank));
    }
    slots_[at] = {.pair = pair, .rank = static_cast<uint32_t>(rank), .product = merge.product};
    const size_t bit = HashPair(pair) & (64 * merging_bits_.size() - 1);
    merging_bits_[bit / 64] |= uint64_t{1} << (bit % 64);
  }
  return absl::OkStatus();
}

void BpeModel::FillMakings(std::span<const std::string> tokens, std::span<const Merge> merges) {
  std::vector<size_t> last_made(tokens.size());  // 1 + the highest rank of a merge that makes it
  for (size_t rank = 0; rank < merges.size(); ++rank)
    last_made[static_cast<size_t>(merges[rank].product)] = rank + 1;
  makings_.resize(tokens.size());
  for (const TokenId id : byte_ids_) makings_[static_cast<size_t>(id)].at = 0;
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right, product] = merges[rank];
    is_ordered_ = is_ordered_ && last_made[static_cast<size_t>(left)] <= rank &&
                  last_made[static_cast<size_t>(right)] <= rank;
    if (!is_ordered_) return;
    if (!IsMade(left) || !IsMade(right) || !PartsStayApart(left, right)) continue;
    makings_[static_cast<size_t>(product)] = {
        .at = static_cast<uint32_t>(rank + 1), .left = left, .right = right};
  }
}

void BpeModel::FillTrie(std::span<const std::string> tokens) {
  if (!is_ordered_) return;
  std::vector<ByteTrie::Key> keys;
  sizes_.resize(tokens.size());
  for (size_t id = 0; id < tokens.size(); ++id) {
    sizes_[id] = static_cast<uint32_t>(tokens[id].size());
    if (IsMade(static_cast<TokenId>(id))) keys.emplace_back(tokens[id], static_cast<TokenId>(id));
  }
  std::sort(keys.begin(), keys.end());
  trie_ = ByteTrie(keys);
  for (const auto& [bytes, id] : keys) {
    makings_[static_cast<size_t>(id)].shorter =
        trie_.Longest(bytes.substr(0, bytes.size() - 1)).value;
  }
}

const BpeModel::Slot* BpeModel::Find(TokenId left, TokenId right) const {
  const uint64_t pair = PairOf(left, right);
  const size_t hash = HashPair(pair);
  const size_t bit = hash & (64 * merging_bits_.size() - 1);
  if ((merging_bits_[bit / 64] >> (bit % 64) & 1) == 0) return nullptr;
  size_t at = hash & (slots_.size() - 1);
  for (; slots_[at].pair != kNoPair; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
  }
  return nullptr;
}

// Whether merging the bytes of both gives both back.
bool BpeModel::StayApart(TokenId left, TokenId right) const {
  return Find(left, right) == nullptr && PartsStayApart(left, right);
}

// Whether no merge reaches across the border before both are made. Goes back in time: what stands
// at either side of the border is unmade, the later made first, and in between a pair must not
// merge before its parts become what they become. Of equal pairs in a row the leftmost merges: an
// equal merge inside `left` comes first, one inside `right` does not.
bool BpeModel::PartsStayApart(TokenId left, TokenId right) const {
  uint32_t end = kNone;  // when a part of the current pair is gone
  while (true) {
    const Making& of_left = makings_[static_cast<size_t>(left)];
    const Making& of_right = makings_[static_cast<size_t>(right)];
    if (of_left.at > of_right.at) {
      end = std::min(end, of_left.at);
      left = of_left.right;
    } else if (of_right.at > 0) {
      end = std::min(end, of_right.at + 1);
      right = of_right.left;
    } else {
      return true;
    }
    const Slot* slot = Find(left, right);
    if (slot != nullptr && slot->rank + 1 < end) return false;
  }
}

void BpeModel::Encode(std::string_view piece, std::vector<TokenId>& ids) const {
  if (!is_ordered_) return EncodeByMerging(piece, ids);
  const size_t first = ids.size();
  DeadEnds dead(piece.size());
  size_t at = 0;
  ByteTrie::Match next = trie_.Longest(piece);
  while (at < piece.size()) {
    const TokenId previous = ids.size() > first ? ids.back() : -1;
    while (next.value >= 0 &&
           (dead.Has(at + next.size) || (previous >= 0 && !StayApart(previous, next.value)))) {
      next.value = makings_[static_cast<size_t>(next.value)].shorter;
      if (next.value >= 0) next.size = sizes_[static_cast<size_t>(next.value)];
    }
    if (next.value >= 0) {
      ids.push_back(next.value);
      at += next.size;
      next = trie_.Longest(piece.substr(at));
      continue;
    }
    CHECK(previous >= 0);  // there is a sequence for every text
    dead.Add(at);
    ids.pop_back();
    at -= sizes_[static_cast<size_t>(previous)];
    next.value = makings_[static_cast<size_t>(previous)].shorter;
    if (next.value >= 0) next.size = sizes_[static_cast<size_t>(next.value)];
  }
}

void BpeModel::EncodeByMerging(std::string_view piece, std::vector<TokenId>& ids) const {
  if (piece.empty()) return;
  const uint32_t size = static_cast<uint32_t>(piece.size());
  std::vector<Symbol> symbols(size);
  std::vector<Candidate> first;
  for (uint32_t i = 0; i < size; ++i) {
    symbols[i] = {.id = byte_ids_[static_cast<uint8_t>(piece[i])],
                  .previous = i == 0 ? kNone : i - 1,
                  .next = i + 1 == size ? kNone : i + 1};
  }
  const auto candidate = [&](uint32_t at) -> std::optional<Candidate> {
    const TokenId left = symbols[at].id;
    const TokenId right = symbols[symbols[at].next].id;
    const Slot* slot = Find(left, right);
    if (slot == nullptr) return std::nullopt;
    return Candidate{slot->rank, at, left, right, slot->product};
  };
  for (uint32_t i = 0; i + 1 < size; ++i) {
    if (const auto found = candidate(i)) first.push_back(*found);
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> heap(std::greater<>(),
                                                                              std::move(first));
  while (!heap.empty()) {
    const Candidate top = heap.top();
    heap.pop();
    Symbol& left = symbols[top.at];
    // An entry is stale once one of its symbols was merged into something else.
    if (left.id != top.left || left.next == kNone || symbols[left.next].id != top.right) continue;
    Symbol& right = symbols[left.next];
    left.id = top.product;
    left.next = right.next;
    right.id = -1;
    if (left.next != kNone) {
      symbols[left.next].previous = top.at;
      if (const auto found = candidate(top.at)) heap.push(*found);
    }
    if (left.previous != kNone) {
      if (const auto found = candidate(left.previous)) heap.push(*found);
    }
  }
  for (uint32_t at = 0; at != kNone; at = symbols[at].next) ids.push_back(symbols[at].id);
}

}  // namespace baton::router
