#include "router/text/tokenizer.h"

#include <algorithm>
#include <string>
#include <time.h>
#include <vector>

#include "absl/time/time.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "common/check.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

using ::testing::HasSubstr;

// How many cases the file's tests below see: a vector file that shrinks should be noticed.
struct EncodeFile {
  const char* name;
  size_t num_cases;
};

class EncodeVectors : public ::testing::TestWithParam<EncodeFile> {};

TEST_P(EncodeVectors, EncodeAndDecodeBack) {
  const Tokenizer& tokenizer = RealTokenizer();
  const JsonValue file = LoadVectors(std::string("tokenizer/") + GetParam().name);
  const std::vector<JsonValue>& cases = file.Find("cases")->items();
  EXPECT_EQ(cases.size(), GetParam().num_cases);
  for (const JsonValue& item : cases) {
    const std::string& text = item.Find("text")->text();
    const std::vector<TokenId> want = IdsOf(*item.Find("ids"));
    EXPECT_EQ(tokenizer.Encode(text, SpecialTokens::kRecognise), want) << item.Find("id")->text();
    EXPECT_EQ(tokenizer.Decode(want, false), text) << item.Find("id")->text();
    if (const JsonValue* plain = item.Find("ids_plain")) {
      EXPECT_EQ(tokenizer.Encode(text, SpecialTokens::kPlain), IdsOf(*plain))
          << item.Find("id")->text();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    AllFiles, EncodeVectors,
    ::testing::Values(EncodeFile{"encode_basic.json", 26}, EncodeFile{"encode_cjk.json", 31},
                      EncodeFile{"encode_code.json", 37}, EncodeFile{"encode_combining.json", 10},
                      EncodeFile{"encode_control.json", 7}, EncodeFile{"encode_digits.json", 24},
                      EncodeFile{"encode_emoji.json", 20}, EncodeFile{"encode_european.json", 18},
                      EncodeFile{"encode_fuzz.json", 46},
                      EncodeFile{"encode_fuzz_special.json", 11}, EncodeFile{"encode_long.json", 3},
                      EncodeFile{"encode_runs.json", 19}, EncodeFile{"encode_scripts.json", 15},
                      EncodeFile{"encode_special_mixed.json", 32},
                      EncodeFile{"encode_special_single.json", 51},
                      EncodeFile{"encode_whitespace.json", 38}),
    [](const auto& file) {
      std::string name = file.param.name;
      return name.substr(0, name.find('.'));
    });

TEST(Tokenizer, EncodesLiteralsInCallerTextAsPlainText) {
  const Tokenizer& tokenizer = RealTokenizer();
  EXPECT_EQ(tokenizer.Encode("<｜User｜>", SpecialTokens::kPlain).size(), 5u);
  EXPECT_EQ(tokenizer.Encode("<think>", SpecialTokens::kPlain).size(), 3u);
}

TEST(Tokenizer, JoinsAdjacentTextsBeforeSplitting) {
  const Tokenizer& tokenizer = RealTokenizer();
  const TokenId user = *tokenizer.IdOf("<｜User｜>");
  const std::vector<Segment> segments = {Segment::Text("wor"), Segment::Text("ld"),
                                         Segment::Special(user), Segment::Text("<think>")};
  std::vector<TokenId> want = tokenizer.Encode("world", SpecialTokens::kPlain);
  want.push_back(user);
  for (const TokenId id : tokenizer.Encode("<think>", SpecialTokens::kPlain)) want.push_back(id);
  EXPECT_EQ(tokenizer.EncodeSegments(segments), want);
  EXPECT_EQ(tokenizer.ToText(segments), "world<｜User｜><think>");
}

TEST(Tokenizer, CutsItsOwnLiterals) {
  const Tokenizer& tokenizer = RealTokenizer();
  const std::vector<Segment> want = {
      Segment::Text("a<"), Segment::Special(*tokenizer.IdOf("｜DSML｜")), Segment::Text("b")};
  EXPECT_EQ(tokenizer.Cut("a<｜DSML｜b"), want);
  EXPECT_TRUE(tokenizer.Cut("").empty());
}

TEST(Tokenizer, KnowsIdsNamesAndFlags) {
  const Tokenizer& tokenizer = RealTokenizer();
  EXPECT_EQ(tokenizer.vocab_size(), 129280);
  EXPECT_EQ(tokenizer.IdOf("</think>"), 128822);
  EXPECT_EQ(tokenizer.IdOf("no such token"), std::nullopt);
  EXPECT_TRUE(tokenizer.IsSpecial(1));
  EXPECT_FALSE(tokenizer.IsSpecial(128821));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_FALSE(tokenizer.IsSpecial(129280));
  EXPECT_EQ(tokenizer.Bytes(128825), "｜DSML｜");
  EXPECT_EQ(tokenizer.Bytes(1 << 30), "");
  EXPECT_EQ(tokenizer.warning(), "");
}

TEST(Tokenizer, SkipsSpecialTokensWhenAsked) {
  const Tokenizer& tokenizer = RealTokenizer();
  const std::vector<TokenId> ids = {0, 128821, 1};
  EXPECT_EQ(tokenizer.Decode(ids, true), "<think>");
  EXPECT_EQ(tokenizer.Decode(ids, false), "<｜begin▁of▁sentence｜><think><｜end▁of▁sentence｜>");
}

TEST(Tokenizer, KeepsEveryByteOfIllFormedText) {
  const Tokenizer& tokenizer = RealTokenizer();
  const std::string text = "a\xFF\xE4\xB8 b\xC0\x80\xED\xA0\x80";
  std::string bytes;
  for (const TokenId id : tokenizer.Encode(text, SpecialTokens::kRecognise))
    bytes += tokenizer.Bytes(id);
  EXPECT_EQ(bytes, text);
}

// A megabyte of one character: a quadratic step anywhere would take hours.
class LongRun : public ::testing::TestWithParam<std::string> {};

absl::Duration CpuTime() {
  timespec now{};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
  return absl::DurationFromTimespec(now);
}

// The shortest of some runs, of this thread's CPU time: what else the machine does adds little to
// it.
absl::Duration ShortestTime(const std::string& text, int runs) {
  absl::Duration shortest = absl::InfiniteDuration();
  for (int run = 0; run < runs; ++run) {
    const absl::Duration start = CpuTime();
    const std::vector<TokenId> ids = RealTokenizer().Encode(text, SpecialTokens::kRecognise);
    shortest = std::min(shortest, CpuTime() - start);
    EXPECT_EQ(RealTokenizer().Decode(ids, false), text);
  }
  return shortest;
}

TEST_P(LongRun, TakesLinearTime) {
  std::string eighth, whole;
  while (eighth.size() < (1u << 17)) eighth += GetParam();
  for (int i = 0; i < 8; ++i) whole += eighth;
  // Eight times the text: linear is 8, n log n 10, quadratic 64.
  const absl::Duration small = std::max(ShortestTime(eighth, 5), absl::Milliseconds(1));
  EXPECT_LT(ShortestTime(whole, 2) / small, 32.0);
}

INSTANTIATE_TEST_SUITE_P(Characters, LongRun,
                         ::testing::Values("a", " ", "\xCC\x81", "\n", " \n", "1", "漢", "<",
                                           "\x01", "<｜", "<｜place▁holder▁no▁79"));

std::string TinyFile(const std::string& model_extra, const std::string& merges,
                     const std::string& added) {
  std::string vocab;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool is_itself =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint32_t c = is_itself ? byte : next++;
    std::string key;
    if (c < 0x80) {
      key = static_cast<char>(c);
    } else {
      key = {static_cast<char>(0xC0 | (c >> 6)), static_cast<char>(0x80 | (c & 0x3F))};
    }
    AppendJsonString(key, vocab);
    vocab += ": " + std::to_string(byte) + ", ";
  }
  vocab += R"("ab": 256, "abab": 257)";
  const JsonValue real = *JsonValue::Parse(RealTokenizerJson());
  return R"({"added_tokens": [)" + added + R"(], "normalizer": null, "pre_tokenizer": )" +
         real.Find("pre_tokenizer")->Dump() + R"(, "model": {"type": "BPE", )" + model_extra +
         R"("vocab": {)" + vocab + R"(}, "merges": [)" + merges + "]}}";
}

std::string ErrorOf(const std::string& json) {
  const absl::StatusOr<Tokenizer> tokenizer = Tokenizer::Parse(json, "t.json");
  return tokenizer.ok() ? "" : std::string(tokenizer.status().message());
}

TEST(TokenizerFile, LoadsAnyFileOfThisStructure) {
  const std::string added =
      R"({"id": 300, "content": "<x>", "special": true, "normalized": false},)"
      R"({"id": 301, "content": "<x>y", "special": false, "normalized": true})";
  const absl::StatusOr<Tokenizer> tokenizer =
      Tokenizer::Parse(TinyFile("", R"("a b", ["ab", "ab"])", added), "t.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ(tokenizer->vocab_size(), 302);
  EXPECT_THAT(tokenizer->warning(), HasSubstr("t.json: sha256"));
  const std::vector<TokenId> want = {257, 'a', 300, 'y'};
  EXPECT_EQ(tokenizer->Encode("ababa<x>y", SpecialTokens::kRecognise), want);
}

TEST(TokenizerFile, NamesFileAndMemberInErrors) {
  EXPECT_THAT(ErrorOf("{"), HasSubstr("t.json: "));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("t.json: (root)"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("t.json: pre_tokenizer: missing"));
  EXPECT_THAT(ErrorOf(TinyFile(R"("byte_fallback": true, )", "", "")),
              HasSubstr("model.byte_fallback"));
  EXPECT_THAT(ErrorOf(TinyFile("", R"("a q")", "")), HasSubstr("model.merges[0]"));
  EXPECT_THAT(ErrorOf(TinyFile("", R"("a b", "a b")", "")), HasSubstr("same pair"));
  EXPECT_THAT(ErrorOf(TinyFile("", "", R"({"id": -1, "content": "x"})")),
              HasSubstr("added_tokens[0].id"));
  EXPECT_THAT(ErrorOf(TinyFile("", "", R"({"id": 300, "content": "x", "lstrip": true})")),
              HasSubstr("added_tokens[0].lstrip"));
  EXPECT_THAT(ErrorOf(TinyFile("", "", R"({"id": 97, "content": "x"})")),
              HasSubstr("added_tokens[0].id: 97 is another token's"));
  EXPECT_EQ(Tokenizer::Load("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerFile, RefusesAnotherPreTokenizer) {
  std::string json = TinyFile("", "", "");
  const size_t at = json.find("{1,3}");
  ASSERT_NE(at, std::string::npos);
  json.replace(at, 5, "{1,2}");
  EXPECT_THAT(ErrorOf(json), HasSubstr("pre_tokenizer.pretokenizers[0].pattern.Regex"));
}

}  // namespace
}  // namespace baton::router
