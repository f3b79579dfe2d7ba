#include "router/text/detokenizer.h"

#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "router/text/test_data.h"

namespace baton::router {
namespace {

TEST(Detokenizer, EmitsTheDeltasOfTheVectors) {
  const JsonValue file = LoadVectors("tokenizer/stream_decode.json");
  const std::vector<JsonValue>& cases = file.Find("cases")->items();
  EXPECT_EQ(cases.size(), 40u);
  for (const JsonValue& item : cases) {
    const std::string& label = item.Find("label")->text();
    const std::vector<TokenId> ids = IdsOf(*item.Find("ids"));
    const std::vector<JsonValue>& deltas = item.Find("deltas")->items();
    const bool skips = item.Find("skip_special_tokens")->boolean();
    ASSERT_EQ(ids.size(), deltas.size()) << label;
    Detokenizer detokenizer(RealTokenizer(), skips);
    std::string text;
    for (size_t i = 0; i < ids.size(); ++i) {
      const std::string delta = detokenizer.Push(ids[i]);
      EXPECT_EQ(delta, deltas[i].text()) << label << " token " << i;
      text += delta;
    }
    const std::string tail = detokenizer.Finish();
    EXPECT_EQ(tail, item.Find("flush")->text()) << label;
    EXPECT_EQ(text + tail, item.Find("text")->text()) << label;
    EXPECT_EQ(RealTokenizer().Decode(ids, skips), text + tail) << label;
  }
}

TEST(Utf8Stream, ReplacesEachMaximalSubpartOnce) {
  const std::string r(kReplacement);
  const std::pair<std::string, std::string> cases[] = {
      {"\xC0\x80", r + r},         {"\xE4\xB8 x", r + " x"},
      {"\xED\xA0\x80", r + r + r}, {"\xF0\x9F\x98\xF0\x9F\x98\x80", r + "😀"},
      {"\xF5\x80", r + r},         {"\xF4\x90\x80\x80", r + r + r + r},
      {"a\xE2\x82", "a" + r},
  };
  for (const auto& [bytes, want] : cases) {
    for (size_t cut = 0; cut <= bytes.size(); ++cut) {
      Utf8Stream stream;
      std::string text;
      stream.Push(std::string_view(bytes).substr(0, cut), text);
      stream.Push(std::string_view(bytes).substr(cut), text);
      stream.Finish(text);
      EXPECT_EQ(text, want) << "cut at " << cut;
    }
  }
}

}  // namespace
}  // namespace baton::router
