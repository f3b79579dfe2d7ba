#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

#include "common/ids.h"
#include "common/sampling_spec.h"
#include "proto/session.pb.h"
#include "proto/wire.h"

// Pieces that both directions of wire.cc share. Private to proto/.
namespace baton::wire {

inline constexpr uint32_t kMaxContext = 1u << 20;
inline constexpr int kMaxSequences = 128;
inline constexpr int kMaxTokenId = 1 << 24;
inline constexpr size_t kMaxName = 1024;    // of ids, addresses, salts
inline constexpr size_t kMaxText = 65'536;  // of messages

template <typename Id>
absl::Status ReadId(const std::string& bytes, std::string_view field, Id& out) {
  if (bytes.size() != out.bytes.size())
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes, want %d", field, bytes.size(), out.bytes.size()));
  std::copy(bytes.begin(), bytes.end(), out.bytes.begin());
  return absl::OkStatus();
}

template <typename Id>
std::string WriteId(const Id& id) {
  return std::string(id.bytes.begin(), id.bytes.end());
}

absl::Status CheckRange(std::string_view field, uint64_t value, uint64_t least, uint64_t most);
absl::Status CheckSize(std::string_view field, size_t size, size_t most);
absl::Status ReadCode(uint32_t value, std::string_view field, absl::StatusCode& out);

absl::Status ReadTokenIds(const google::protobuf::RepeatedField<uint32_t>& ids,
                          std::string_view field, std::vector<int32_t>& out);
void WriteTokenIds(const std::vector<int32_t>& ids, google::protobuf::RepeatedField<uint32_t>& out);

absl::Status ReadBitmap(const pb::Bitmap& bitmap, std::string_view field, std::vector<bool>& out);
void WriteBitmap(const std::vector<bool>& bits, pb::Bitmap& out);

absl::Status ReadLanding(const pb::Landing& landing, Landing& out);
void WriteLanding(const Landing& landing, pb::Landing& out);

absl::Status ReadSampling(const pb::Sampling& sampling, SamplingSpec& out);
void WriteSampling(const SamplingSpec& sampling, pb::Sampling& out);

absl::Status ReadFinish(const pb::Finish& finish, FinishRules& out);
void WriteFinish(const FinishRules& finish, pb::Finish& out);

absl::Status ReadMasks(const pb::Masks& masks, MaskRules& out);
void WriteMasks(const MaskRules& masks, pb::Masks& out);

absl::Status ReadTokenColumns(const pb::TokenColumns& columns, std::string_view field,
                              std::vector<TokenRecord>& out);
// Appends; leaves the logprob columns empty when no record has any.
void WriteTokenColumns(const std::vector<const TokenRecord*>& records, pb::TokenColumns& out);
void WriteTokenColumns(const std::vector<TokenRecord>& records, pb::TokenColumns& out);

absl::Status ReadBeat(const pb::Beat& beat, Beat& out);
void WriteBeat(const Beat& beat, pb::Beat& out);

}  // namespace baton::wire
