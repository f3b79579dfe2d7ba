#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace baton::router {

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

// One decoded character: its length in bytes, or an ill-formed or cut-off subpart.
struct Utf8Char {
  enum class Kind { kValid, kIllFormed, kIncomplete };
  Kind kind = Kind::kIncomplete;
  uint32_t code_point = 0;  // of a valid one
  size_t size =
      0;  // bytes taken; of an ill-formed one the maximal subpart (Unicode 3.9, at least 1)
};

// Decodes the character at the front of `bytes`, which is not empty. kIncomplete: all of `bytes` is
// the start of a character that more bytes could complete.
Utf8Char DecodeUtf8(std::string_view bytes);

// The same; for loops over long texts.
inline Utf8Char DecodeUtf8Inline(std::string_view bytes) {
  const uint8_t first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {.kind = Utf8Char::Kind::kValid, .code_point = first, .size = 1};
  // Behind these first bytes stand any two that go on.
  if (first > 0xE0 && first < 0xF0 && first != 0xED && bytes.size() >= 3) {
    const uint32_t second = static_cast<uint8_t>(bytes[1]);
    const uint32_t third = static_cast<uint8_t>(bytes[2]);
    if ((second & 0xC0) == 0x80 && (third & 0xC0) == 0x80) {
      return {.kind = Utf8Char::Kind::kValid,
              .code_point = (first & 0x0Fu) << 12 | (second & 0x3F) << 6 | (third & 0x3F),
              .size = 3};
    }
  }
  return DecodeUtf8(bytes);
}

// Bytes in, well-formed UTF-8 out; each maximal ill-formed subpart becomes one U+FFFD at once, an
// incomplete tail (at most 3 bytes) is held back (protocol.md 1.7). One thread per instance.
class Utf8Stream {
 public:
  // Appends what `bytes` completes to `out`.
  void Push(std::string_view bytes, std::string& out);
  // A held tail becomes one U+FFFD.
  void Finish(std::string& out);
  bool is_holding() const { return !held_.empty(); }

 private:
  std::string held_;
};

}  // namespace baton::router
