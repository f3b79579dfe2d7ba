#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/check.h"
#include "kvtransfer/frame.h"

// Any bytes: either refused with a reason, or a frame that encodes to the very same bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using baton::kvtransfer::Frame;
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto decoded = baton::kvtransfer::DecodeFrame(bytes);
  if (const auto* frame = std::get_if<Frame>(&decoded)) {
    const auto again = baton::kvtransfer::EncodeFrame(*frame);
    CHECK(std::ranges::equal(again.view(), bytes));
  }
  return 0;
}
