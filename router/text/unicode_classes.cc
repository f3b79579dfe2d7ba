#include "router/text/unicode_classes.h"

#include <map>
#include <unicode/uchar.h>

namespace baton::router {
namespace {

constexpr uint32_t kNumCodePoints = 0x110000;

uint8_t ClassOf(uint32_t code_point) {
  const UChar32 c = static_cast<UChar32>(code_point);
  const uint32_t category = U_GET_GC_MASK(c);
  unsigned bits = 0;
  if (category & U_GC_L_MASK) bits |= kLetter;
  if (category & U_GC_M_MASK) bits |= kMark;
  if (category & U_GC_N_MASK) bits |= kNumber;
  if (category & (U_GC_P_MASK | U_GC_S_MASK)) bits |= kPunctuation;
  // White_Space: all separators and these controls. u_charType alone needs none of ICU's data
  // files.
  const bool is_control = (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x85;
  if ((category & U_GC_Z_MASK) || is_control) bits |= kSpace;
  if (code_point == '\r' || code_point == '\n') bits |= kNewline;
  if (code_point >= 0x4E00 && code_point <= 0x9FA5) bits |= kIdeograph;
  if (code_point >= 0x3040 && code_point <= 0x30FF) bits |= kIdeograph;
  const uint32_t lower = code_point | 0x20;
  if (code_point < 0x80 && lower >= 'a' && lower <= 'z') bits |= kAsciiLetter;
  return static_cast<uint8_t>(bits);
}

}  // namespace

UnicodeClasses::UnicodeClasses() {
  constexpr uint32_t kBlock = 1u << kShift;
  std::map<std::vector<uint8_t>, uint16_t> known;
  std::vector<uint8_t> block(kBlock);
  for (uint32_t base = 0; base < kNumCodePoints; base += kBlock) {
    for (uint32_t i = 0; i < kBlock; ++i) block[i] = ClassOf(base + i);
    const auto [place, is_new] = known.emplace(block, static_cast<uint16_t>(known.size()));
    if (is_new) blocks_.insert(blocks_.end(), block.begin(), block.end());
    index_.push_back(place->second);
  }
}

}  // namespace baton::router
