#include "kernels/tail_header.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"

namespace baton::kernels {
namespace {

constexpr uint16_t kVersion = 1;
constexpr uint16_t kBoundaryFlag = 1;
constexpr uint16_t kNoDrafterStateFlag = 2;

// Sequential little-endian writer and reader over one fixed-size record.
class Writer {
 public:
  explicit Writer(std::span<std::byte> out) : out_(out) {}
  template <typename T>
  void Put(const T& value) {
    std::memcpy(out_.data() + offset_, &value, sizeof(T));
    offset_ += sizeof(T);
  }

 private:
  std::span<std::byte> out_;
  size_t offset_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> in) : in_(in) {}
  template <typename T>
  T Get() {
    T value;
    std::memcpy(&value, in_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return value;
  }
  bool RestIsZero() const {
    return std::all_of(in_.begin() + static_cast<std::ptrdiff_t>(offset_), in_.end(),
                       [](std::byte b) { return b == std::byte{0}; });
  }

 private:
  std::span<const std::byte> in_;
  size_t offset_ = 0;
};

absl::Status WrongField(const char* field, uint64_t value, uint64_t limit) {
  return absl::DataLossError(
      absl::StrFormat("tail header: %s is %d, expected %d", field, value, limit));
}

absl::Status CheckFields(const TailHeader& header, uint16_t flags, size_t wire_bytes) {
  if ((flags & ~(kBoundaryFlag | kNoDrafterStateFlag)) != 0)
    return WrongField("flags", flags, flags & (kBoundaryFlag | kNoDrafterStateFlag));
  if (header.num_tokens == 0)
    return absl::DataLossError("tail header: num_tokens is 0, at least 1");
  if (header.is_boundary && header.num_sequences != 0)
    return WrongField("num_sequences of a boundary tail", header.num_sequences, 0);
  if (header.total_bytes != wire_bytes)
    return WrongField("total_bytes", header.total_bytes, wire_bytes);
  return absl::OkStatus();
}

}  // namespace

void EncodeTailHeader(const TailHeader& header, std::span<std::byte> wire) {
  CHECK(wire.size() >= TailHeader::kBytes);
  std::fill_n(wire.begin(), TailHeader::kBytes, std::byte{0});
  const int flags = (header.is_boundary ? kBoundaryFlag : 0) |
                    (header.has_no_drafter_state ? kNoDrafterStateFlag : 0);
  Writer out(wire);
  out.Put(TailHeader::kMagic);
  out.Put(kVersion);
  out.Put(static_cast<uint16_t>(flags));
  out.Put(header.num_tokens);
  out.Put(header.layout.bytes);
  out.Put(header.weights.bytes);
  out.Put(header.prompt_class.bytes);
  out.Put(header.num_sequences);
  out.Put(header.total_bytes);
  out.Put(header.last_full_page.bytes);
}

absl::StatusOr<TailHeader> DecodeTailHeader(std::span<const std::byte> wire) {
  if (wire.size() < TailHeader::kBytes)
    return WrongField("size in bytes", wire.size(), TailHeader::kBytes);
  Reader in(wire.first(TailHeader::kBytes));
  const auto magic = in.Get<uint32_t>();
  if (magic != TailHeader::kMagic) return WrongField("magic", magic, TailHeader::kMagic);
  const auto version = in.Get<uint16_t>();
  if (version != kVersion) return WrongField("version", version, kVersion);
  const auto flags = in.Get<uint16_t>();
  TailHeader header;
  header.is_boundary = (flags & kBoundaryFlag) != 0;
  header.has_no_drafter_state = (flags & kNoDrafterStateFlag) != 0;
  header.num_tokens = in.Get<uint64_t>();
  header.layout.bytes = in.Get<decltype(header.layout.bytes)>();
  header.weights.bytes = in.Get<decltype(header.weights.bytes)>();
  header.prompt_class.bytes = in.Get<decltype(header.prompt_class.bytes)>();
  header.num_sequences = in.Get<uint32_t>();
  header.total_bytes = in.Get<uint32_t>();
  header.last_full_page.bytes = in.Get<decltype(header.last_full_page.bytes)>();
  if (!in.RestIsZero()) return absl::DataLossError("tail header: padding is not zero");
  RETURN_IF_ERROR(CheckFields(header, flags, wire.size()));
  return header;
}

absl::Status CheckTailHeader(const TailHeader& header, const PageLayout& pages,
                             const WeightsId& weights) {
  if (header.layout != pages.Id()) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "tail header: layout_id is %s, expected %s", header.layout.Hex(), pages.Id().Hex()));
  }
  if (header.weights != weights) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "tail header: weights_id is %s, expected %s", header.weights.Hex(), weights.Hex()));
  }
  const uint64_t expected =
      MakeTailLayout(pages, header.num_tokens, header.num_sequences).total_bytes;
  if (header.total_bytes != expected)
    return WrongField("total_bytes", header.total_bytes, expected);
  return absl::OkStatus();
}

void EncodeFirstToken(const TokenRecord& record, std::span<std::byte> entry) {
  CHECK(entry.size() == kFirstTokenBytes);
  CHECK(record.top.size() <= static_cast<size_t>(kMaxTopLogprobs));
  std::fill(entry.begin(), entry.end(), std::byte{0});
  Writer out(entry);
  out.Put(static_cast<uint32_t>(record.token));
  out.Put(record.logprob);
  out.Put(static_cast<uint32_t>(record.top.size()));
  out.Put(uint32_t{0});
  for (const TokenLogprob& top : record.top) {
    out.Put(static_cast<uint32_t>(top.token));
    out.Put(top.logprob);
  }
}

absl::StatusOr<TokenRecord> DecodeFirstToken(std::span<const std::byte> entry) {
  if (entry.size() != kFirstTokenBytes) {
    return absl::DataLossError(absl::StrFormat("first token: entry has %d bytes, expected %d",
                                               entry.size(), kFirstTokenBytes));
  }
  constexpr uint32_t kMaxToken = std::numeric_limits<int32_t>::max();
  Reader in(entry);
  const auto token = in.Get<uint32_t>();
  TokenRecord record{.token = static_cast<int32_t>(token), .logprob = in.Get<float>(), .top = {}};
  const auto count = in.Get<uint32_t>();
  if (token > kMaxToken) {
    return absl::DataLossError(
        absl::StrFormat("first token: token is %d, limit %d", token, kMaxToken));
  }
  if (count > static_cast<uint32_t>(kMaxTopLogprobs)) {
    return absl::DataLossError(
        absl::StrFormat("first token: count is %d, limit %d", count, kMaxTopLogprobs));
  }
  if (in.Get<uint32_t>() != 0) return absl::DataLossError("first token: zero field is not zero");
  record.top.resize(count);
  for (TokenLogprob& top : record.top) {
    const auto id = in.Get<uint32_t>();
    if (id > kMaxToken) {
      return absl::DataLossError(
          absl::StrFormat("first token: top token is %d, limit %d", id, kMaxToken));
    }
    top = {.token = static_cast<int32_t>(id), .logprob = in.Get<float>()};
  }
  if (!in.RestIsZero()) return absl::DataLossError("first token: unused entries are not zero");
  return record;
}

absl::StatusOr<std::vector<TokenRecord>> DecodeFirstTokens(const TailHeader& header,
                                                           std::span<const std::byte> wire) {
  const uint64_t section_bytes = header.num_sequences * kFirstTokenBytes;
  if (wire.size() < TailHeader::kBytes + section_bytes)
    return WrongField("num_sequences", header.num_sequences, wire.size() / kFirstTokenBytes);
  const std::span<const std::byte> section = wire.last(section_bytes);
  std::vector<TokenRecord> records;
  records.reserve(header.num_sequences);
  for (uint32_t choice = 0; choice < header.num_sequences; ++choice) {
    const auto entry = section.subspan(choice * kFirstTokenBytes, kFirstTokenBytes);
    ASSIGN_OR_RETURN(TokenRecord record, DecodeFirstToken(entry));
    records.push_back(std::move(record));
  }
  return records;
}

}  // namespace baton::kernels
