#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/ids.h"
#include "common/sampling_spec.h"
#include "kernels/page_layout.h"

// The header and section 7 (first tokens) of a wire tail, contracts.md 3.4. Pure, any thread.
namespace baton::kernels {

// Writes the 128 bytes of a header to the start of `wire` (at least 128 bytes).
void EncodeTailHeader(const TailHeader& header, std::span<std::byte> wire);

// Reads a header. kDataLoss names the field that no version-1 sender writes: magic, version, flags,
// num_tokens, num_sequences, total_bytes (must equal the size of `wire`) or padding.
absl::StatusOr<TailHeader> DecodeTailHeader(std::span<const std::byte> wire);

// Whether a tail fits this worker: kFailedPrecondition for another layout or other weights,
// kDataLoss if total_bytes is not what the layout says for that position and number of sequences.
absl::Status CheckTailHeader(const TailHeader& header, const PageLayout& pages,
                             const WeightsId& weights);

// Writes one entry of section 7, 176 bytes. At most kMaxTopLogprobs top entries.
void EncodeFirstToken(const TokenRecord& record, std::span<std::byte> entry);

// Reads one entry; kDataLoss names a count above 20, a token above 2^31 - 1, or non-zero padding.
absl::StatusOr<TokenRecord> DecodeFirstToken(std::span<const std::byte> entry);

// All entries of a tail whose header has been checked, in order of choice.
absl::StatusOr<std::vector<TokenRecord>> DecodeFirstTokens(const TailHeader& header,
                                                           std::span<const std::byte> wire);

}  // namespace baton::kernels
