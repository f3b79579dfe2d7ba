#pragma once

#include <cstdint>
#include <vector>

namespace baton::router {

// Bits of a code point's class, as the pre-tokenizer's patterns use them (protocol.md 1.3).
enum CharClass : uint8_t {
  kLetter = 1,         // \p{L}
  kMark = 2,           // \p{M}
  kNumber = 4,         // \p{N}
  kPunctuation = 8,    // \p{P} or \p{S}
  kSpace = 16,         // White_Space
  kNewline = 32,       // CR or LF
  kIdeograph = 64,     // U+4E00-9FA5, U+3040-30FF: pass P2
  kAsciiLetter = 128,  // A-Z a-z
};

// Classes of all code points in a two-stage table (about 60 KB), taken from ICU once, when built.
// Immutable afterwards; any thread.
class UnicodeClasses {
 public:
  UnicodeClasses();
  // `code_point` < 0x110000.
  uint8_t Of(uint32_t code_point) const {
    return blocks_[(static_cast<uint32_t>(index_[code_point >> kShift]) << kShift) |
                   (code_point & kMask)];
  }

 private:
  static constexpr uint32_t kShift = 7;
  static constexpr uint32_t kMask = (1u << kShift) - 1;
  std::vector<uint16_t> index_;  // block number per 128 code points
  std::vector<uint8_t> blocks_;  // distinct blocks
};

}  // namespace baton::router
