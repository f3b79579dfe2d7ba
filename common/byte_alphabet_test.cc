#include "common/byte_alphabet.h"

#include <set>

#include "gtest/gtest.h"

namespace baton {
namespace {

std::string Utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6), static_cast<char>(0x80 | (code_point & 0x3F))};
}

TEST(ByteAlphabet, HasOneCharacterForEveryByte) {
  std::set<std::string> bytes;
  for (uint32_t c = 0; c < 0x400; ++c) {
    const std::optional<std::string> byte = BytesOfTokenName(Utf8(c));
    if (!byte) continue;
    EXPECT_EQ(byte->size(), 1u) << c;
    EXPECT_TRUE(bytes.insert(*byte).second) << c;
  }
  EXPECT_EQ(bytes.size(), 256u);
}

TEST(ByteAlphabet, ReadsNames) {
  EXPECT_EQ(BytesOfTokenName("Ġthe"), " the");
  EXPECT_EQ(BytesOfTokenName("Ċ"), "\n");
  EXPECT_EQ(BytesOfTokenName("ä½ł"), "\xe4\xbd\xa0");
  EXPECT_EQ(BytesOfTokenName(""), "");
}

TEST(ByteAlphabet, HasNoBytesForOtherCharacters) {
  EXPECT_FALSE(BytesOfTokenName("<｜end▁of▁sentence｜>"));
  EXPECT_FALSE(BytesOfTokenName("a b"));
  EXPECT_FALSE(BytesOfTokenName("a\xc4"));
  EXPECT_FALSE(
      BytesOfTokenName("\xc4"
                       "a"));
}

}  // namespace
}  // namespace baton
