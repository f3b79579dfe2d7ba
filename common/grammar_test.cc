#include "common/grammar.h"

#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "common/byte_alphabet.h"
#include "common/demo_vocabulary.h"
#include "common/rng.h"

namespace baton {
namespace {

using testing::HasSubstr;

class GrammarTest : public testing::Test {
 protected:
  GrammarTest() : words_(vocabulary_.mask_words()) {
    const auto json = nlohmann::json::parse(DemoTokenizerJson());
    for (const auto& [name, id] : json["model"]["vocab"].items())
      if (const auto bytes = BytesOfTokenName(name)) tokens_[*bytes] = id;
  }
  Matcher Make(std::string_view grammar) { return *Matcher::Create(vocabulary_, grammar); }
  std::string ErrorOf(std::string_view grammar) {
    const absl::Status status = CheckGrammar(vocabulary_, grammar);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  }
  // The longest token at each place: not what the tokenizer would give, but its tokens.
  std::vector<int32_t> Cut(std::string_view text) {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      size_t size = text.size();
      while (size > 0 && !tokens_.contains(text.substr(0, size))) --size;
      if (size == 0) break;
      ids.push_back(tokens_.find(text.substr(0, size))->second);
      text.remove_prefix(size);
    }
    return ids;
  }
  std::vector<int32_t> Allowed(Matcher& matcher) {
    std::vector<int32_t> ids;
    const absl::Status status = matcher.ComputeMask(words_);
    EXPECT_TRUE(status.ok()) << status;
    for (int v = 0; v < vocabulary_.size(); ++v)
      if ((words_[static_cast<size_t>(v) / 32] >> (v % 32) & 1) != 0) ids.push_back(v);
    return ids;
  }
  // How many of them the grammar takes from here.
  static size_t CountAllowed(const Matcher& matcher, const std::vector<int32_t>& tokens) {
    Matcher copy = *matcher.Clone();
    size_t count = 0;
    while (count < tokens.size() && copy.Consume(tokens[count]).ok()) ++count;
    return count;
  }
  bool Accepts(std::string_view grammar, std::string_view text) {
    Matcher matcher = Make(grammar);
    for (const int32_t token : Cut(text))
      if (!matcher.Consume(token).ok()) return false;
    return matcher.IsAccepting();
  }

  Vocabulary vocabulary_ = *Vocabulary::FromTokenizerJson(DemoTokenizerJson());
  std::map<std::string, int32_t, std::less<>> tokens_;  // by bytes
  std::vector<uint32_t> words_;
};

TEST_F(GrammarTest, KnowsItsSpecialTokens) {
  EXPECT_EQ(vocabulary_.eos(), 1);
  EXPECT_EQ(vocabulary_.FindSpecial("</think>"), 4071);
  EXPECT_EQ(vocabulary_.FindSpecial("the"), std::nullopt);
}

// Not only the one tokenization of what is forced (llguidance's canonical mode).
TEST_F(GrammarTest, MasksAllowEveryTokenThatFits) {
  Matcher matcher = Make(R"(start: "the answer is " /[0-9]+/)");
  const std::string text = "the answer is ";
  std::string done;
  while (done.size() < text.size()) {
    std::vector<int32_t> fits;
    for (const auto& [bytes, id] : tokens_) {
      const std::string_view rest = std::string_view(text).substr(done.size());
      const size_t common = std::min(rest.size(), bytes.size());
      const bool is_number = bytes.find_first_not_of("0123456789", common) == std::string::npos;
      if (rest.substr(0, common) == bytes.substr(0, common) && is_number) fits.push_back(id);
    }
    EXPECT_THAT(Allowed(matcher), testing::UnorderedElementsAreArray(fits)) << done;
    const std::string next = text.substr(done.size(), 1);
    ASSERT_TRUE(matcher.Consume(tokens_.at(next)).ok());
    done += next;
  }
}

TEST_F(GrammarTest, EndsWithEosAlone) {
  Matcher matcher = Make("start: /a{1,2}/");
  EXPECT_FALSE(matcher.IsAccepting());
  ASSERT_TRUE(matcher.Consume(tokens_.at("a")).ok());
  EXPECT_TRUE(matcher.IsAccepting());
  EXPECT_FALSE(matcher.IsStopped());
  EXPECT_THAT(Allowed(matcher), testing::UnorderedElementsAre(tokens_.at("a"), vocabulary_.eos()));
  ASSERT_TRUE(matcher.Consume(tokens_.at("a")).ok());
  EXPECT_TRUE(matcher.IsStopped());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(vocabulary_.eos()));
}

TEST_F(GrammarTest, RollbackRestoresTheMask) {
  Matcher matcher = Make(R"(start: %json {"type":"object","properties":{"n":{"type":"integer"}},
                            "required":["n"],"additionalProperties":false})");
  const std::vector<int32_t> before = Allowed(matcher);
  const std::vector<int32_t> ids = Cut("{\"n\":12}");
  EXPECT_EQ(CountAllowed(matcher, ids), ids.size());
  for (const int32_t id : ids) ASSERT_TRUE(matcher.Consume(id).ok());
  EXPECT_TRUE(matcher.IsStopped());
  ASSERT_TRUE(matcher.Rollback(static_cast<int>(ids.size())).ok());
  EXPECT_EQ(Allowed(matcher), before);
  EXPECT_EQ(CountAllowed(matcher, Cut("{\"n\":x}")), Cut("{\"n\":").size());
  EXPECT_FALSE(matcher.Consume(tokens_.at("x")).ok());
}

// A regex whose states double with every place it looks back.
constexpr char kDoubling[] = "start: /(a|b)*a(a|b){24}/";

absl::Status WalkDoubling(Matcher& matcher, int32_t a, int32_t b, std::vector<uint32_t>& words) {
  SeededRng rng(5);
  for (int i = 0; i < 100'000; ++i) {
    if (absl::Status status = matcher.ComputeMask(words); !status.ok()) return status;
    absl::Status status = matcher.Consume(rng.Below(2) == 0 ? a : b);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

TEST_F(GrammarTest, EndsAMatcherAtItsLimitAndNoOther) {
  const Vocabulary small = *Vocabulary::FromTokenizerJson(DemoTokenizerJson(), 0, size_t{2} << 20);
  Matcher matcher = *Matcher::Create(small, kDoubling);
  const Matcher start = *matcher.Clone();
  EXPECT_LT(start.StateBytes(), 100'000u);
  const int32_t a = tokens_.at("a"), b = tokens_.at("b");
  const absl::Status status = WalkDoubling(matcher, a, b, words_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the limit is 2097152"));
  EXPECT_EQ(matcher.ComputeMask(words_), status) << "final";
  EXPECT_EQ(matcher.Consume(a), status);
  EXPECT_LT(matcher.StateBytes(), size_t{4} << 20);

  Matcher other = *start.Clone();
  EXPECT_THAT(Allowed(other), testing::Contains(a));
  EXPECT_TRUE(other.Consume(a).ok());
}

TEST_F(GrammarTest, BoundsTheStatesOfALexer) {
  Matcher matcher = Make(kDoubling);
  const absl::Status status = WalkDoubling(matcher, tokens_.at("a"), tokens_.at("b"), words_);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("too many states"));
  EXPECT_LT(matcher.StateBytes(), kMaxMatcherBytes);
}

// What drafts left behind is gone with them.
TEST_F(GrammarTest, RollbackGivesBackWhatTokensTook) {
  Matcher matcher = Make("start: /[0-9]/*");
  const int32_t seven = tokens_.at("7");
  const auto round = [&] {
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(matcher.Consume(seven).ok());
    ASSERT_TRUE(matcher.Rollback(50).ok());
  };
  round();
  const size_t before = matcher.StateBytes();
  round();
  EXPECT_EQ(matcher.StateBytes(), before);
  for (int i = 0; i < 50; ++i) ASSERT_TRUE(matcher.Consume(seven).ok());
  EXPECT_GT(matcher.StateBytes(), before + 50 * 24);
}

TEST_F(GrammarTest, FollowsSchemasRegexesAndSpecialTokens) {
  constexpr std::string_view kSchema =
      R"(start: %json {"type":"object","properties":{"s":{"enum":["x","yy"]}},"required":["s"]})";
  EXPECT_TRUE(Accepts(kSchema, R"({"s": "yy"})"));
  EXPECT_FALSE(Accepts(kSchema, R"({"s": "z"})"));
  EXPECT_FALSE(Accepts(kSchema, R"({})"));
  EXPECT_TRUE(Accepts("start: /[0-9]{3}-[a-z]+/", "123-abc"));
  EXPECT_FALSE(Accepts("start: /[0-9]{3}-[a-z]+/", "12-abc"));
  const int32_t dsml = *vocabulary_.FindSpecial("｜DSML｜");
  Matcher matcher = Make(absl::StrFormat("start: \"<\" <[%d]> \"x\"", dsml));
  ASSERT_TRUE(matcher.Consume(tokens_.at("<")).ok());
  EXPECT_THAT(Allowed(matcher), testing::ElementsAre(dsml));
}

TEST_F(GrammarTest, RefusesByName) {
  EXPECT_THAT(ErrorOf(R"(start: %json {"type":"object","not":{"type":"string"}})"),
              HasSubstr("not"));
  EXPECT_THAT(ErrorOf(R"(start: %json {"type":"strin"})"), HasSubstr("strin"));
  EXPECT_THAT(ErrorOf(R"(start: %json {"type":"array","uniqueItems":true})"),
              HasSubstr("uniqueItems"));
  EXPECT_THAT(ErrorOf("start: /a(/"), HasSubstr("regex"));
  EXPECT_THAT(ErrorOf("start: missing"), HasSubstr("missing"));
  ErrorOf("");
  ErrorOf("start: \"\xff\"");
}

TEST_F(GrammarTest, BoundsSizeDepthAndMessages) {
  EXPECT_THAT(ErrorOf(std::string(kMaxGrammarBytes + 1, ' ')), HasSubstr("the limit is 262144"));
  std::string deep = "start: ";
  for (int i = 0; i <= kMaxGrammarDepth; ++i) deep += '(';
  EXPECT_THAT(ErrorOf(deep), HasSubstr("129 levels deep, the limit is 128"));
  EXPECT_LE(ErrorOf("start: " + std::string(50'000, 'x')).size(), 1100u);
}

TEST_F(GrammarTest, BoundsTheProperties) {
  const auto members = [](int first, int end, const char* value) {
    std::string list;
    for (int i = first; i < end; ++i)
      absl::StrAppendFormat(&list, "%s\"p%d\"%s", i == first ? "" : ", ", i, value);
    return list;
  };
  const std::string half = members(0, 2500, ": {\"const\": 1}");
  const std::string rest = members(2500, 5001, ": {}");
  const std::string two = "start: one two\none: %json {\"properties\": {" + half +
                          "}}\ntwo: %json {\"patternProperties\" : {" + rest + "}}\n";
  EXPECT_THAT(ErrorOf(two), HasSubstr("grammar has 5001 properties, the limit is 5000"));
  for (const char* start :
       {"start: </think> %json {\"properties\": {", "start: %json {\"\\u0070roperties\": {"})
    EXPECT_THAT(ErrorOf(start + half + ", " + rest + "}}\n"), HasSubstr("5001 properties"));
  EXPECT_THAT(ErrorOf("start: /\"/ %json {\"required\": [" + members(0, 5001, "") + "]}"),
              HasSubstr("5001 properties"));
  EXPECT_TRUE(Accepts("start: %json {\"properties\": {\"properties\": {\"enum\": [" +
                          members(0, 5001, "") + R"(]}}, "additionalProperties": false})",
                      R"({"properties": "p5000"})"));
}

// What special tokens are to the back end are bytes beside all text, which a complement allows.
TEST_F(GrammarTest, RefusesComplements) {
  for (const char* grammar :
       {"start: ~\"a\"\n", "start: T\nT: /[a-z]+/ & ~ /ab/\n", "start: \"//\" </think> ~(\"a\")\n"})
    EXPECT_THAT(ErrorOf(grammar), HasSubstr("complements (~)")) << grammar;
  const std::string other = "start: \"a~\" ~ 2 /[~\\/]~/ T // ~\"x\"\n# ~ x\nT: \"~\\\"~\"\n";
  EXPECT_TRUE(Accepts(other, "a~a~~~~\"~"));
  EXPECT_TRUE(Accepts("start: %json {\"const\": \"~a /~\"}\n", "\"~a /~\""));
}

// A reader that recursed along them on a thread's usual stack ended the process.
TEST_F(GrammarTest, BoundsChains) {
  const auto rules = [](int n, const char* name, const char* rest) {
    std::string chain = absl::StrFormat("start: %s0\n", name);
    for (int i = 0; i < n; ++i)
      absl::StrAppendFormat(&chain, "%s%d: \"a\" %s%d%s\n", name, i, name, i + 1, rest);
    return chain + absl::StrFormat("%s%d: \"b\"\n", name, n);
  };
  const auto references = [](int n) {
    std::string defs;
    for (int i = 0; i < n; ++i)
      absl::StrAppendFormat(&defs, R"("d%d": {"allOf": [{"$ref": "#/$defs/d%d"}]}, )", i, i + 1);
    return absl::StrFormat(R"(start: %%json {"$defs": {%s"d%d": {"type": "integer"}}, )"
                           R"("$ref": "#/$defs/d0"})",
                           defs, n);
  };
  for (const int n : {500, 1900}) {
    CheckGrammar(vocabulary_, rules(n, "r", "")).IgnoreError();
    CheckGrammar(vocabulary_, rules(n, "T", " | \"c\"")).IgnoreError();
    CheckGrammar(vocabulary_, references(n)).IgnoreError();
  }
  EXPECT_THAT(ErrorOf(rules(4000, "r", "")), HasSubstr("the limit is 2000"));
  EXPECT_THAT(ErrorOf(rules(4000, "T", " | \"c\"")), HasSubstr("the limit is 2000"));
  EXPECT_THAT(ErrorOf(references(4000)), HasSubstr("the limit is 2000"));
}

TEST(Vocabulary, RefusesWhatItCannotRead) {
  const auto error = [](std::string_view json, int size = 0) {
    const auto vocabulary = Vocabulary::FromTokenizerJson(json, size);
    return vocabulary.ok() ? "" : std::string(vocabulary.status().message());
  };
  EXPECT_THAT(error("{"), HasSubstr("is not a JSON object"));
  EXPECT_THAT(error("{}"), HasSubstr("model is missing"));
  EXPECT_THAT(error(R"({"model":{"vocab":{"a":-1}}})"), HasSubstr("id of \"a\""));
  EXPECT_THAT(error(R"({"model":{"vocab":{"a":0}},"added_tokens":[{"id":1}]})"),
              HasSubstr("no id or no content"));
  EXPECT_THAT(error(R"({"model":{"vocab":{"a":0}},"added_tokens":[]})"), HasSubstr("end▁of"));
  EXPECT_THAT(error(DemoTokenizerJson(), 100), HasSubstr("the model's vocabulary is 100"));
  EXPECT_EQ(error(DemoTokenizerJson(), 5000), "");
}

}  // namespace
}  // namespace baton
