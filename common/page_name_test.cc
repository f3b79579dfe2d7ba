#include "common/page_name.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

// Vectors printed by tests/golden/page_names.py.
namespace baton {
namespace {

WeightsId CountingWeights() {
  WeightsId id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(i);
  return id;
}

const WeightsId kWeights = CountingWeights();
const LayoutId kLayout = *LayoutId::FromHexText("82bdcbab59d1e78b");
const ClassId kPrefill = *ClassId::FromHexText("49568d2f47f8263e");
const ClassId kDecode = *ClassId::FromHexText("0102030405060708");
constexpr char kFirstName[] = "a5a8eb4437dc4cc8f710a73862d62959";
constexpr char kSecondName[] = "2c51e4f4992174f6a78bbb19c874eae1";
constexpr char kThirdName[] = "8f0227933bb9c505d3b37bc8d4a537fc";

// Tokens at positions first .. first + count - 1 of the vectors' sequence.
std::vector<int32_t> Tokens(int first, int count) {
  std::vector<int32_t> tokens;
  for (int t = first; t < first + count; ++t) tokens.push_back((7 * t + 3) % 129280);
  return tokens;
}

TEST(PageName, RootDependsOnTheSalt) {
  EXPECT_EQ(RootName(kWeights, kLayout, "").Hex(), "3f2e249a6a50b5bf64ac3deab1a3eae8");
  EXPECT_EQ(RootName(kWeights, kLayout, "tenant-7").Hex(), "e768d56a2edd951428cccc93135daa16");
}

TEST(PageName, ChainMatchesItsVectors) {
  const PageName root = RootName(kWeights, kLayout, "");
  const ClassRun whole[] = {{256, kPrefill}};
  const PageName first = NextName(root, whole, Tokens(0, 256));
  EXPECT_EQ(first.Hex(), kFirstName);
  const ClassRun split[] = {{100, kPrefill}, {156, kDecode}};
  EXPECT_EQ(NextName(first, split, Tokens(256, 256)).Hex(), kSecondName);
}

TEST(PageNamer, GivesTheSameNamesWhateverThePieces) {
  for (int piece : {1, 7, 100, 255, 256, 1000}) {
    PageNamer namer(RootName(kWeights, kLayout, ""));
    const auto append = [&namer, piece](int first, int count, const ClassId& id) {
      for (int done = 0; done < count; done += piece)
        namer.Append(id, Tokens(first + done, std::min(piece, count - done)));
    };
    append(0, 356, kPrefill);
    append(356, 157, kDecode);
    append(513, 1, kPrefill);
    append(514, 300, kDecode);
    ASSERT_EQ(namer.names().size(), 3u) << piece;
    EXPECT_EQ(namer.names()[0].Hex(), kFirstName);
    EXPECT_EQ(namer.names()[1].Hex(), kSecondName);
    EXPECT_EQ(namer.names()[2].Hex(), kThirdName);
    EXPECT_EQ(namer.open_tokens(), 814 - 768);
  }
}

TEST(PageNamer, NamesOnlyFullPages) {
  const PageName root = RootName(kWeights, kLayout, "");
  EXPECT_TRUE(PromptPageNames(root, kPrefill, Tokens(0, 255)).empty());
  const auto names = PromptPageNames(root, kPrefill, Tokens(0, 511));
  ASSERT_EQ(names.size(), 1u);
  EXPECT_EQ(names[0].Hex(), kFirstName);
}

TEST(PageNamer, AnotherClassGivesOtherNames) {
  const PageName root = RootName(kWeights, kLayout, "");
  EXPECT_NE(PromptPageNames(root, kPrefill, Tokens(0, 256)),
            PromptPageNames(root, kDecode, Tokens(0, 256)));
}

}  // namespace
}  // namespace baton
