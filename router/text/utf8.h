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
