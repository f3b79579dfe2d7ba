#pragma once

#include <array>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace baton {

// Lowercase hex of `size` bytes, first byte first.
std::string ToHex(const uint8_t* bytes, size_t size);
// The inverse: exactly `size` bytes from 2 * size hex digits, or false.
bool FromHex(std::string_view hex, uint8_t* bytes, size_t size);

// An integer id that mixes with no other id.
template <typename Tag, typename Rep = uint64_t>
struct StrongId {
  Rep value = 0;
  auto operator<=>(const StrongId&) const = default;
};

// An id that travels and lies in files as bytes, first byte first (contracts.md 1.1).
template <typename Tag, size_t kSize>
struct BytesId {
  std::array<uint8_t, kSize> bytes{};
  auto operator<=>(const BytesId&) const = default;
  bool IsZero() const { return bytes == std::array<uint8_t, kSize>{}; }
  std::string Hex() const { return ToHex(bytes.data(), kSize); }
  static std::optional<BytesId> FromHexText(std::string_view hex) {
    BytesId id;
    if (!FromHex(hex, id.bytes.data(), kSize)) return std::nullopt;
    return id;
  }
};

using TransferId = BytesId<struct TransferIdTag, 16>;  // random, drawn by the router per placement
using Secret = BytesId<struct SecretTag, 16>;          // drawn by the receiver per landing
using PageName = BytesId<struct PageNameTag, 16>;      // zero: unnamed
using WeightsId = BytesId<struct WeightsIdTag, 16>;
using Digest128 = BytesId<struct DigestTag, 16>;
using ClassId = BytesId<struct ClassIdTag, 8>;
using LayoutId = BytesId<struct LayoutIdTag, 8>;

using Attempt = uint32_t;  // from 1
using Incarnation = StrongId<struct IncarnationTag, uint64_t>;
using SequenceHandle =
    StrongId<struct SequenceHandleTag, uint32_t>;             // router's, unique within a session
using SequenceId = StrongId<struct SequenceIdTag, uint64_t>;  // engine's, unique within a process
using SessionId = StrongId<struct SessionIdTag, uint64_t>;    // worker's, one router's stream
using WorkerId = StrongId<struct WorkerIdTag, uint32_t>;      // router's index of a known worker
using PageId = int32_t;                                       // index into a worker's pool

inline constexpr uint32_t kTailBlock = 0xFFFFFFFFu;  // the block number of a tail (contracts.md 4)
inline constexpr int kPageTokens = 256;

}  // namespace baton

template <typename Tag, typename Rep>
struct std::hash<baton::StrongId<Tag, Rep>> {
  size_t operator()(const baton::StrongId<Tag, Rep>& id) const {
    return std::hash<Rep>{}(id.value);
  }
};

template <typename Tag, size_t kSize>
struct std::hash<baton::BytesId<Tag, kSize>> {
  // The ids are hashes or random numbers already: their first eight bytes will do.
  size_t operator()(const baton::BytesId<Tag, kSize>& id) const {
    size_t h = 0;
    for (size_t i = 0; i < 8; ++i) h = (h << 8) | id.bytes[i];
    return h;
  }
};
