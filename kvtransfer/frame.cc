#include "kvtransfer/frame.h"

#include <cstring>
#include <optional>

namespace baton::kvtransfer {
namespace {

constexpr uint32_t kMagic = 0x314e5442u;
constexpr uint8_t kVersion = 1;
constexpr std::array<size_t, 7> kBytesOfType = {0, kAnnounceBytes, 72, 72, 72, 80, 80};

// Appends little-endian fields.
class Writer {
 public:
  explicit Writer(FrameBytes& out) : out_(out) {}
  template <typename T>
  void Int(T value) {
    for (size_t i = 0; i < sizeof(T); ++i)
      out_.data[out_.size++] = static_cast<std::byte>(static_cast<uint64_t>(value) >> (8 * i));
  }
  template <typename Id>
  void Bytes(const Id& id) {
    std::memcpy(out_.data.data() + out_.size, id.bytes.data(), id.bytes.size());
    out_.size += id.bytes.size();
  }

 private:
  FrameBytes& out_;
};

// Reads what Writer wrote; the caller has checked the length.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}
  template <typename T>
  T Int() {
    uint64_t value = 0;
    for (size_t i = 0; i < sizeof(T); ++i)
      value |= static_cast<uint64_t>(bytes_[at_ + i]) << (8 * i);
    at_ += sizeof(T);
    return static_cast<T>(value);
  }
  template <typename Id>
  Id Bytes() {
    Id id;
    std::memcpy(id.bytes.data(), bytes_.data() + at_, id.bytes.size());
    at_ += id.bytes.size();
    return id;
  }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

struct BodyWriter {
  Writer& w;
  void operator()(const AnnounceBody& b) const {
    w.Int(b.block);
    w.Int(b.shard);
    w.Int(b.num_shards);
    w.Int(b.bytes);
    w.Bytes(b.layout);
    w.Bytes(b.name);
    w.Bytes(b.digest);
  }
  void operator()(const AckBody& b) const {
    w.Int(b.block);
    w.Int(b.shard);
    w.Int(uint16_t{0});
  }
  void operator()(const RefuseBody& b) const {
    w.Int(b.block);
    w.Int(b.shard);
    w.Int(static_cast<uint16_t>(b.reason));
  }
  void operator()(const AbortBody& b) const {
    w.Int(static_cast<uint32_t>(b.reason));
    w.Int(uint32_t{0});
  }
  void operator()(const PingBody& b) const {
    w.Int(b.nonce);
    w.Int(b.micros);
  }
  void operator()(const PongBody& b) const {
    w.Int(b.nonce);
    w.Int(b.micros);
  }
};

std::optional<FrameError> ReadAnnounce(Reader& r, Frame& frame) {
  AnnounceBody body;
  body.block = r.Int<uint32_t>();
  body.shard = r.Int<uint16_t>();
  body.num_shards = r.Int<uint16_t>();
  body.bytes = r.Int<uint64_t>();
  body.layout = r.Bytes<LayoutId>();
  body.name = r.Bytes<PageName>();
  body.digest = r.Bytes<Digest128>();
  frame.body = body;
  if (body.shard >= body.num_shards || body.bytes == 0) return FrameError::kField;
  return std::nullopt;
}

std::optional<FrameError> ReadBlockAnswer(FrameType type, Reader& r, Frame& frame) {
  const uint32_t block = r.Int<uint32_t>();
  const uint16_t shard = r.Int<uint16_t>();
  const uint16_t last = r.Int<uint16_t>();
  if (type == FrameType::kAck) {
    frame.body = AckBody{.block = block, .shard = shard};
    if (last != 0) return FrameError::kReserved;
    return std::nullopt;
  }
  frame.body = RefuseBody{.block = block, .shard = shard, .reason = RefuseReason{last}};
  if (last < 1 || last > static_cast<uint16_t>(RefuseReason::kDataLoss)) return FrameError::kField;
  return std::nullopt;
}

std::optional<FrameError> ReadBody(FrameType type, Reader& r, Frame& frame) {
  switch (type) {
    case FrameType::kAnnounce:
      return ReadAnnounce(r, frame);
    case FrameType::kAck:
    case FrameType::kRefuse:
      return ReadBlockAnswer(type, r, frame);
    case FrameType::kAbort:
      frame.body = AbortBody{.reason = AbortReason{r.Int<uint32_t>()}};
      if (r.Int<uint32_t>() != 0) return FrameError::kReserved;
      return std::nullopt;
    case FrameType::kPing: {
      const uint64_t nonce = r.Int<uint64_t>();
      frame.body = PingBody{.nonce = nonce, .micros = r.Int<uint64_t>()};
      return std::nullopt;
    }
    case FrameType::kPong: {
      const uint64_t nonce = r.Int<uint64_t>();
      frame.body = PongBody{.nonce = nonce, .micros = r.Int<uint64_t>()};
      return std::nullopt;
    }
  }
  return FrameError::kType;
}

bool IsBeat(FrameType type) { return type == FrameType::kPing || type == FrameType::kPong; }

}  // namespace

FrameType TypeOf(const Frame& frame) { return static_cast<FrameType>(frame.body.index() + 1); }

FrameBytes EncodeFrame(const Frame& frame) {
  FrameBytes out;
  Writer w(out);
  w.Int(kMagic);
  w.Int(static_cast<uint8_t>(TypeOf(frame)));
  w.Int(kVersion);
  w.Int(uint16_t{0});  // flags
  w.Bytes(frame.head.transfer);
  w.Int(frame.head.attempt);
  w.Int(uint32_t{0});
  w.Int(frame.head.sender.value);
  w.Int(frame.head.receiver.value);
  w.Bytes(frame.head.secret);
  std::visit(BodyWriter{w}, frame.body);
  return out;
}

std::variant<Frame, FrameError> DecodeFrame(std::span<const std::byte> bytes) {
  if (bytes.size() < kFrameHeadBytes) return FrameError::kShort;
  Reader r(bytes);
  if (r.Int<uint32_t>() != kMagic) return FrameError::kMagic;
  const uint8_t type_byte = r.Int<uint8_t>();
  if (r.Int<uint8_t>() != kVersion) return FrameError::kVersion;
  if (type_byte < 1 || type_byte >= kBytesOfType.size()) return FrameError::kType;
  const FrameType type{type_byte};
  if (bytes.size() != kBytesOfType[type_byte]) return FrameError::kLength;
  const uint16_t flags = r.Int<uint16_t>();
  Frame frame;
  frame.head.transfer = r.Bytes<TransferId>();
  frame.head.attempt = r.Int<uint32_t>();
  const uint32_t zero = r.Int<uint32_t>();
  if (flags != 0 || zero != 0) return FrameError::kReserved;
  frame.head.sender = Incarnation{r.Int<uint64_t>()};
  frame.head.receiver = Incarnation{r.Int<uint64_t>()};
  frame.head.secret = r.Bytes<Secret>();
  const FrameHead& head = frame.head;
  const bool is_unbound = head.transfer.IsZero() && head.attempt == 0 && head.secret.IsZero();
  if (IsBeat(type) && !is_unbound) return FrameError::kReserved;
  if (!IsBeat(type) && head.attempt == 0) return FrameError::kField;
  if (const auto error = ReadBody(type, r, frame)) return *error;
  return frame;
}

std::string_view FrameErrorName(FrameError error) {
  static constexpr std::string_view kNames[kNumFrameErrors] = {
      "short", "magic", "version", "type", "length", "reserved", "field"};
  return kNames[static_cast<size_t>(error)];
}

std::string_view RefuseReasonName(RefuseReason reason) {
  static constexpr std::string_view kNames[] = {"none",     "stale",  "unknown",  "full",
                                                "draining", "layout", "data_loss"};
  return kNames[static_cast<size_t>(reason)];
}

}  // namespace baton::kvtransfer
