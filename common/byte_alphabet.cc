#include "common/byte_alphabet.h"

#include <array>
#include <cstdint>

namespace baton {
namespace {

constexpr int kNoByte = -1;
constexpr uint32_t kNumCharacters = 0x100 + 68;  // those that are themselves, and 68 from U+0100 on

// By code point.
constexpr std::array<int16_t, kNumCharacters> MakeMap() {
  std::array<int16_t, kNumCharacters> map{};
  for (int16_t& byte : map) byte = kNoByte;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    map[is_itself ? byte : next++] = static_cast<int16_t>(byte);
  }
  return map;
}

constexpr std::array<int16_t, kNumCharacters> kMap = MakeMap();

}  // namespace

std::optional<std::string> BytesOfTokenName(std::string_view name) {
  std::string bytes;
  for (size_t i = 0; i < name.size(); ++i) {
    uint32_t code_point = static_cast<uint8_t>(name[i]);
    if (code_point >= 0x80) {  // all of the alphabet is one or two bytes of UTF-8
      if (code_point < 0xC2 || code_point > 0xDF || i + 1 == name.size()) return std::nullopt;
      const uint32_t second = static_cast<uint8_t>(name[++i]);
      if ((second & 0xC0) != 0x80) return std::nullopt;
      code_point = (code_point & 0x1F) << 6 | (second & 0x3F);
    }
    if (code_point >= kNumCharacters || kMap[code_point] == kNoByte) return std::nullopt;
    bytes += static_cast<char>(kMap[code_point]);
  }
  return bytes;
}

}  // namespace baton
