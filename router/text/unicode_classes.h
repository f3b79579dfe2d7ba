#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "router/text/utf8.h"

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

// The class and size of the character at the front of a text.
struct ClassedChar {
  uint8_t bits = 0;
  size_t size = 0;  // in bytes; 0: the text is empty
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
  // The character at `offset`. A byte that begins no well-formed UTF-8 is one of no class.
  ClassedChar At(std::string_view text, size_t offset) const {
    if (offset >= text.size()) return {};
    const Utf8Char decoded = DecodeUtf8Inline(text.substr(offset));
    if (decoded.kind != Utf8Char::Kind::kValid) return {.bits = 0, .size = 1};
    return {.bits = Of(decoded.code_point), .size = decoded.size};
  }

 private:
  static constexpr uint32_t kShift = 7;
  static constexpr uint32_t kMask = (1u << kShift) - 1;
  std::vector<uint16_t> index_;  // block number per 128 code points
  std::vector<uint8_t> blocks_;  // distinct blocks
};

}  // namespace baton::router
