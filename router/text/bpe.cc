#include "router/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <optional>
#include <queue>

#include "absl/strings/str_format.h"

#include "common/status.h"

namespace baton::router {
namespace {

constexpr size_t kMaxShort = 32;  // bytes up to which a scan per merge beats a heap
constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr size_t kSlotsPerEntry = 2;

uint64_t PairOf(TokenId left, TokenId right) {
  return (uint64_t{static_cast<uint32_t>(left)} << 32) | static_cast<uint32_t>(right);
}

size_t HashPair(uint64_t pair) {
  const uint64_t product = (pair ^ (pair >> 29)) * 0x9E3779B97F4A7C15u;
  return static_cast<size_t>(product >> 20);
}

size_t TableSize(size_t num_entries) { return std::bit_ceil(kSlotsPerEntry * num_entries + 1); }

// A pair that could be merged, in MergeLong's heap.
struct Candidate {
  uint32_t rank;
  uint32_t at;  // index of the left symbol
  TokenId left, right, product;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : at > other.at;
  }
};

// A symbol of MergeLong's list; a symbol swallowed by its left neighbour has id -1.
struct Symbol {
  TokenId id;
  uint32_t previous, next;
};
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

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
  model.FillWhole(tokens);
  return model;
}

absl::Status BpeModel::FillMerges(std::span<const Merge> merges) {
  slots_.resize(TableSize(merges.size()));
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
  }
  return absl::OkStatus();
}

void BpeModel::FillWhole(std::span<const std::string> tokens) {
  whole_.resize(TableSize(tokens.size()));
  std::vector<TokenId> ids;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string& bytes = tokens[id];
    if (bytes.empty()) continue;
    ids.clear();
    if (bytes.size() <= kMaxShort) {
      MergeShort(bytes, ids);
    } else {
      MergeLong(bytes, ids);
    }
    if (ids.size() != 1 || ids[0] != static_cast<TokenId>(id)) continue;
    size_t at = std::hash<std::string_view>{}(bytes) & (whole_.size() - 1);
    while (whole_[at].size > 0) at = (at + 1) & (whole_.size() - 1);
    whole_[at] = {.offset = static_cast<uint32_t>(whole_bytes_.size()),
                  .size = static_cast<uint32_t>(bytes.size()),
                  .id = static_cast<TokenId>(id)};
    whole_bytes_ += bytes;
    max_whole_size_ = std::max(max_whole_size_, bytes.size());
  }
}

const BpeModel::WholeSlot* BpeModel::FindWhole(std::string_view piece) const {
  if (piece.size() > max_whole_size_) return nullptr;
  size_t at = std::hash<std::string_view>{}(piece) & (whole_.size() - 1);
  for (; whole_[at].size > 0; at = (at + 1) & (whole_.size() - 1)) {
    const WholeSlot& slot = whole_[at];
    if (piece == std::string_view(whole_bytes_).substr(slot.offset, slot.size)) return &slot;
  }
  return nullptr;
}

const BpeModel::Slot* BpeModel::Find(TokenId left, TokenId right) const {
  const uint64_t pair = PairOf(left, right);
  size_t at = HashPair(pair) & (slots_.size() - 1);
  for (; slots_[at].pair != kNoPair; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].pair == pair) return &slots_[at];
  }
  return nullptr;
}

void BpeModel::Encode(std::string_view piece, std::vector<TokenId>& ids) const {
  if (piece.empty()) return;
  if (const WholeSlot* whole = FindWhole(piece)) {
    ids.push_back(whole->id);
  } else if (piece.size() <= kMaxShort) {
    MergeShort(piece, ids);
  } else {
    MergeLong(piece, ids);
  }
}

void BpeModel::MergeShort(std::string_view piece, std::vector<TokenId>& ids) const {
  TokenId symbols[kMaxShort];
  const Slot* merges[kMaxShort] = {};  // of symbol i with symbol i + 1
  size_t count = piece.size();
  for (size_t i = 0; i < count; ++i) symbols[i] = byte_ids_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i + 1 < count; ++i) merges[i] = Find(symbols[i], symbols[i + 1]);
  while (true) {
    size_t best = 0;
    uint32_t best_rank = kNoRank;
    for (size_t i = 0; i + 1 < count; ++i) {
      if (merges[i] == nullptr || merges[i]->rank >= best_rank) continue;
      best = i;
      best_rank = merges[i]->rank;
    }
    if (best_rank == kNoRank) break;
    symbols[best] = merges[best]->product;
    --count;
    std::copy(symbols + best + 2, symbols + count + 1, symbols + best + 1);
    std::copy(merges + best + 2, merges + count + 1, merges + best + 1);
    if (best + 1 < count) merges[best] = Find(symbols[best], symbols[best + 1]);
    if (best > 0) merges[best - 1] = Find(symbols[best - 1], symbols[best]);
  }
  ids.insert(ids.end(), symbols, symbols + count);
}

void BpeModel::MergeLong(std::string_view piece, std::vector<TokenId>& ids) const {
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
