#include "router/text/pretokenizer.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::router {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string> Pieces(const std::string& text) {
  const Pretokenizer pretokenizer;
  std::vector<size_t> ends;
  pretokenizer.Split(text, ends);
  std::vector<std::string> pieces;
  size_t begin = 0;
  for (const size_t end : ends) {
    pieces.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  EXPECT_EQ(begin, text.size());
  return pieces;
}

TEST(Pretokenizer, CutsNumbersInThrees) {
  EXPECT_THAT(Pieces("1234567"), ElementsAre("123", "456", "7"));
  EXPECT_THAT(Pieces("a½²x"), ElementsAre("a", "½²", "x"));
}

TEST(Pretokenizer, LooksAheadOnlyWithinItsPiece) {
  EXPECT_THAT(Pieces("  12"), ElementsAre("  ", "12"));
  EXPECT_THAT(Pieces("  ab"), ElementsAre(" ", " ab"));
}

TEST(Pretokenizer, GluesOneMarkToAsciiLetters) {
  EXPECT_THAT(Pieces("x.Word_name"), ElementsAre("x", ".Word", "_name"));
  EXPECT_THAT(Pieces("<divé"), ElementsAre("<div", "é"));
  EXPECT_THAT(Pieces(" ?!\n\nx"), ElementsAre(" ?!\n\n", "x"));
}

TEST(Pretokenizer, CutsIdeographsFromOtherLetters) {
  EXPECT_THAT(Pieces("abc漢字かな・x"), ElementsAre("abc", "漢字かな", "・", "x"));
  EXPECT_THAT(Pieces(" 한글"), ElementsAre(" 한글"));
}

TEST(Pretokenizer, KeepsWhiteSpaceUpToTheLastNewline) {
  EXPECT_THAT(Pieces("a \n \n  b"), ElementsAre("a", " \n \n", " ", " b"));
  EXPECT_THAT(Pieces("\t\tb"), ElementsAre("\t", "\tb"));
  EXPECT_THAT(Pieces("a  "), ElementsAre("a", "  "));
}

TEST(Pretokenizer, MakesOnePieceOfAnUnmatchedStretch) {
  using std::string_literals::operator""s;
  EXPECT_THAT(Pieces("\0\0\0a"s), ElementsAre("\0\0"s, "\0a"s));
  EXPECT_THAT(Pieces("\xFF\xFE"), ElementsAre("\xFF\xFE"));
  EXPECT_THAT(Pieces(""), IsEmpty());
}

TEST(UnicodeClasses, KnowsTheClassesOfThePatterns) {
  const UnicodeClasses classes;
  EXPECT_EQ(classes.Of('a'), kLetter | kAsciiLetter);
  EXPECT_EQ(classes.Of('\n'), kSpace | kNewline);
  EXPECT_EQ(classes.Of(0x0301), kMark);
  EXPECT_EQ(classes.Of(0x2167), kNumber);
  EXPECT_EQ(classes.Of(0x1F600), kPunctuation);
  EXPECT_EQ(classes.Of(0x3000), kSpace);
  EXPECT_EQ(classes.Of(0x4E00), kLetter | kIdeograph);
  EXPECT_EQ(classes.Of(0x9FA6), kLetter);
  EXPECT_EQ(classes.Of(0xFEFF), 0);
  EXPECT_EQ(classes.Of(0x200B), 0);
  EXPECT_EQ(classes.Of(0x1C), 0);
  EXPECT_EQ(classes.Of(0x10FFFF), 0);
}

}  // namespace
}  // namespace baton::router
