#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/check.h"
#include "kernels/tail_header.h"
#include "kernels/test_layout.h"

namespace baton::kernels {
namespace {

// Any bytes as a tail from the wire: refused with a reason, or a header and first tokens that
// encode to the very same bytes.
void ReadOne(std::span<const std::byte> wire) {
  const auto header = DecodeTailHeader(wire);
  if (!header.ok()) {
    CHECK(header.status().code() == absl::StatusCode::kDataLoss);
    return;
  }
  std::vector<std::byte> again(TailHeader::kBytes);
  EncodeTailHeader(*header, again);
  CHECK(std::ranges::equal(again, wire.first(TailHeader::kBytes)));
  // As received, and as by a sender of our layout.
  static const PageLayout layout = SmallLayout();
  (void)CheckTailHeader(*header, layout, header->weights).ok();
  TailHeader ours = *header;
  ours.layout = layout.Id();
  (void)CheckTailHeader(ours, layout, header->weights).ok();
  const auto tokens = DecodeFirstTokens(*header, wire);
  if (!tokens.ok()) return;
  CHECK(tokens->size() == header->num_sequences);
  auto from = wire.last(tokens->size() * kFirstTokenBytes);
  std::vector<std::byte> entry(kFirstTokenBytes);
  for (const TokenRecord& record : *tokens) {
    EncodeFirstToken(record, entry);
    CHECK(std::ranges::equal(entry, from.first(kFirstTokenBytes)));
    from = from.subspan(kFirstTokenBytes);
  }
}

}  // namespace
}  // namespace baton::kernels

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::kernels::ReadOne(std::as_bytes(std::span(data, size)));
  return 0;
}
