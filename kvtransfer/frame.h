#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <variant>

#include "common/ids.h"
#include "kvtransfer/transport.h"

// The frames of the KV plane (contracts.md 4.1): a 64-byte prefix and a body by type,
// little-endian, no padding.
namespace baton::kvtransfer {

enum class FrameType : uint8_t {
  kAnnounce = 1,
  kAck = 2,
  kRefuse = 3,
  kAbort = 4,
  kPing = 5,
  kPong = 6
};

// Values of an Abort frame. A receiver treats unknown ones like kFailed.
enum class AbortReason : uint32_t { kCancelled = 1, kFailed = 2, kShutdown = 3 };

// The prefix. Beats carry zeros for transfer, attempt and secret.
struct FrameHead {
  TransferId transfer{};
  Attempt attempt = 0;
  Incarnation sender{};  // of the frame, not of the pages
  Incarnation receiver{};
  Secret secret{};
  bool operator==(const FrameHead&) const = default;
};

struct AnnounceBody {
  uint32_t block = 0;  // page index within the sequence, or kTailBlock
  uint16_t shard = 0;
  uint16_t num_shards = 1;
  uint64_t bytes = 0;
  LayoutId layout{};
  PageName name{};     // zero: unnamed
  Digest128 digest{};  // zero while the digest is being taken over this very frame
  bool operator==(const AnnounceBody&) const = default;
};
struct AckBody {
  uint32_t block = 0;
  uint16_t shard = 0;
  bool operator==(const AckBody&) const = default;
};
struct RefuseBody {
  uint32_t block = 0;
  uint16_t shard = 0;
  RefuseReason reason = RefuseReason::kUnknown;
  bool operator==(const RefuseBody&) const = default;
};
struct AbortBody {
  AbortReason reason = AbortReason::kCancelled;
  bool operator==(const AbortBody&) const = default;
};
struct PingBody {
  uint64_t nonce = 0;
  uint64_t micros = 0;  // the pinger's monotonic clock
  bool operator==(const PingBody&) const = default;
};
struct PongBody {  // repeats the ping's values
  uint64_t nonce = 0;
  uint64_t micros = 0;
  bool operator==(const PongBody&) const = default;
};

struct Frame {
  FrameHead head;
  std::variant<AnnounceBody, AckBody, RefuseBody, AbortBody, PingBody, PongBody> body;
  bool operator==(const Frame&) const = default;
};

inline constexpr size_t kFrameHeadBytes = 64;
inline constexpr size_t kAnnounceBytes = 120;
inline constexpr size_t kMaxFrameBytes = kAnnounceBytes;

FrameType TypeOf(const Frame& frame);

// An encoded frame, by value.
struct FrameBytes {
  std::array<std::byte, kMaxFrameBytes> data{};
  size_t size = 0;
  std::span<const std::byte> view() const { return {data.data(), size}; }
};
FrameBytes EncodeFrame(const Frame& frame);

// Why bytes are no frame; each is a label of the metric of dropped frames.
enum class FrameError : uint8_t {
  kShort,  // less than the prefix
  kMagic,
  kVersion,
  kType,
  kLength,    // not the bytes of its type
  kReserved,  // a field that must be zero is not
  kField,     // a value out of range: attempt 0, no bytes, shard >= num_shards, unknown reason
};
inline constexpr size_t kNumFrameErrors = 7;
std::string_view FrameErrorName(FrameError error);

// Accepts exactly what EncodeFrame can produce, so a decoded frame is valid by type. Any input, any
// thread.
std::variant<Frame, FrameError> DecodeFrame(std::span<const std::byte> bytes);

std::string_view RefuseReasonName(RefuseReason reason);

}  // namespace baton::kvtransfer
