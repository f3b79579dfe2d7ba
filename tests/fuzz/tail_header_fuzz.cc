#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/check.h"
#include "kernels/tail_header.h"

namespace baton::kernels {
namespace {

const PageLayout& SmallLayout() {
  static const PageLayout layout({.head_dim = 512,
                                  .rope_dim = 64,
                                  .index_head_dim = 128,
                                  .window = 128,
                                  .hc_mult = 4,
                                  .hidden_size = 128,
                                  .num_layers = 2,
                                  .num_mtp_layers = 1,
                                  .csa_layers = {1},
                                  .hca_layers = {0}});
  return layout;
}

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
  (void)CheckTailHeader(*header, SmallLayout(), header->weights).ok();
  TailHeader ours = *header;
  ours.layout = SmallLayout().Id();
  (void)CheckTailHeader(ours, SmallLayout(), header->weights).ok();
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
