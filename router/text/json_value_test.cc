#include "router/text/json_value.h"

#include <string>
#include <string_view>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

#include "common/rng.h"

namespace baton::router {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string RoundTrip(const std::string& text) {
  const absl::StatusOr<JsonValue> value = JsonValue::Parse(text);
  return value.ok() ? value->Dump() : std::string(value.status().message());
}

TEST(JsonValue, DumpsLikePython) {
  EXPECT_EQ(RoundTrip(R"({"b":1,"a":[true,null,"x/é"],"c":{}})"),
            R"({"b": 1, "a": [true, null, "x/é"], "c": {}})");
  EXPECT_EQ(RoundTrip(R"("\u0001\b\f\n\r\t\"\\\u007f\u2028")"),
            "\"\\u0001\\b\\f\\n\\r\\t\\\"\\\\\x7F\xE2\x80\xA8\"");
}

TEST(JsonValue, KeepsFirstPlaceAndLastValueOfADuplicateKey) {
  EXPECT_EQ(RoundTrip(R"({"a":1,"b":2,"a":3})"), R"({"a": 3, "b": 2})");
  std::string many = "{";
  for (int i = 0; i < 40; ++i) many += "\"k" + std::to_string(i) + "\":0,";
  const absl::StatusOr<JsonValue> value = JsonValue::Parse(many + "\"k3\":1,\"k30\":2}");
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(value->members().size(), 40u);
  EXPECT_EQ(value->members()[3].second.text(), "1");
  EXPECT_EQ(value->members()[30].second.text(), "2");
}

TEST(JsonValue, SpellsNumbersLikePython) {
  const std::pair<const char*, const char*> cases[] = {
      {"0", "0"},
      {"-0", "0"},
      {"-0.0", "-0.0"},
      {"1.0", "1.0"},
      {"1e2", "100.0"},
      {"1e16", "1e+16"},
      {"1e15", "1000000000000000.0"},
      {"0.0001", "0.0001"},
      {"0.00001", "1e-05"},
      {"1.5e300", "1.5e+300"},
      {"1e-7", "1e-07"},
      {"0.1", "0.1"},
      {"123456.789", "123456.789"},
      {"123456789012345678901234567890", "123456789012345678901234567890"},
      {"-18446744073709551616", "-18446744073709551616"},
      {"0e999", "0.0"},
      {"1e-999", "0.0"},
      {"1e-99999999999999999999", "0.0"},
      {"0.1000000000000000055511151231257827021181583404541015625", "0.1"},
  };
  for (const auto& [in, out] : cases) EXPECT_EQ(RoundTrip(in), out) << in;
}

TEST(JsonValue, ReadsIntegersExactly) {
  EXPECT_EQ(JsonValue::Parse("1.0")->AsInt64(), 1);
  EXPECT_EQ(JsonValue::Parse("-9223372036854775808")->AsInt64(), INT64_MIN);
  EXPECT_EQ(JsonValue::Parse("9223372036854775808")->AsInt64(), std::nullopt);
  EXPECT_EQ(JsonValue::Parse("1.5")->AsInt64(), std::nullopt);
  EXPECT_EQ(JsonValue::Parse("1e30")->AsInt64(), std::nullopt);
  EXPECT_EQ(JsonValue::Parse("\"1\"")->AsInt64(), std::nullopt);
  EXPECT_EQ(JsonValue::Parse("2")->AsDouble(), 2.0);
  EXPECT_EQ(JsonValue::Parse("true")->AsDouble(), std::nullopt);
}

TEST(JsonValue, SaysWhereTheSyntaxIsWrong) {
  EXPECT_THAT(RoundTrip("{\"messages\": ["), HasSubstr("at byte 15"));
  EXPECT_THAT(RoundTrip("\"\xFF\""), HasSubstr("at byte 2"));
  EXPECT_THAT(RoundTrip(""), HasSubstr("at byte 1"));
  EXPECT_THAT(RoundTrip("[1] x"), HasSubstr("at byte 5"));
  EXPECT_THAT(RoundTrip(std::string("[1]\0x", 5)), HasSubstr("at byte 4"));
  EXPECT_THAT(RoundTrip("1e999"), HasSubstr("number out of range at byte"));
  EXPECT_THAT(RoundTrip("[1, 1" + std::string(400, '0') + ".0]"), HasSubstr("number out of range"));
  for (const char* digits : {"-", "01", "-01", "--1", "1-", "+1"})
    EXPECT_THAT(RoundTrip(digits + std::string(400, '0')), HasSubstr("at byte")) << digits;
  EXPECT_EQ(RoundTrip("\xEF\xBB\xBF[1]"), "a byte order mark at byte 1");
  EXPECT_THAT(std::string(JsonValue::ParseDocument("\xEF\xBB\xBF[x]").status().message()),
              HasSubstr("at byte 5"));
  for (const char* text :
       {"1, 2", "1], [2", "]", "[", "1]", "[1", ",", "[1,]", "[1] ]", "\"a\\", "\"a"})
    EXPECT_THAT(RoundTrip(text), HasSubstr("at byte")) << text;
}

TEST(JsonValue, RefusesZeroBytes) {
  for (const std::string before :
       {"1", "1.5", "[1", "true", "null", "\"x", "\"x\"", "[", "{\"a\"", ""})
    EXPECT_THAT(RoundTrip(before + '\0'), HasSubstr("at byte")) << before;
  EXPECT_EQ(RoundTrip(std::string("[1]\0", 4)), "unexpected character at byte 4");
}

TEST(JsonValue, SaysWhatIsWrongWithoutTheClientsBytes) {
  EXPECT_THAT(RoundTrip("\"a\xE7\x8C\""), HasSubstr("ill-formed UTF-8 byte at byte 5"));
  const std::string secret(10000, 's');
  for (const char* end : {"\x1F\"", "\xFF\"", "\\q\"", "\\ud800\"", "", "\" \"x\""}) {
    const std::string message = RoundTrip("\"" + secret + end);
    EXPECT_LT(message.size(), 200u) << message;
    EXPECT_THAT(message, HasSubstr("at byte 1000"));
    EXPECT_THAT(message, Not(HasSubstr("sss"))) << message;
  }
}

TEST(JsonValue, LimitsTheNumberOfValues) {
  std::string text = "[0";
  for (size_t i = 2; i < JsonValue::kMaxValues; ++i) text += ",0";
  EXPECT_TRUE(JsonValue::Parse(text + "]").ok());
  EXPECT_THAT(RoundTrip(text + ",0]"), HasSubstr("more than 2097152 values"));
}

TEST(JsonValue, LimitsDepth) {
  const std::string ok(JsonValue::kMaxDepth, '[');
  EXPECT_EQ(RoundTrip(ok + std::string(JsonValue::kMaxDepth, ']')),
            ok + std::string(JsonValue::kMaxDepth, ']'));
  EXPECT_THAT(RoundTrip(std::string(100000, '[')),
              HasSubstr("more than 256 levels deep at byte 257"));
  EXPECT_THAT(RoundTrip("[\"\\\"[[\", " + std::string(100000, '[')), HasSubstr("at byte 265"));
}

TEST(JsonValue, FindsMembers) {
  const JsonValue value = *JsonValue::Parse(R"({"a": null, "b": "x"})");
  EXPECT_NE(value.Find("a"), nullptr);
  EXPECT_EQ(value.FindNonNull("a"), nullptr);
  EXPECT_EQ(value.FindNonNull("b")->text(), "x");
  EXPECT_EQ(value.Find("c"), nullptr);
  EXPECT_EQ(value.Find("b")->Find("c"), nullptr);
}

// Texts around which other texts are drawn: every kind of value, escape and character length.
constexpr std::string_view kSeeds[] = {
    R"({"messages": [{"role": "user", "content": "a\n\t\"b\"\\ \u00e9\ud83d\ude00/"}], "n": 1})",
    R"([0, -0, -1.5e-3, 12345678901234567890123, 1E+2, true, false, null, "", [], {}])",
    "{\"\xE4\xB8\xAD\xE6\x96\x87\xEF\xBC\x8C\": \"\xC3\xA9\xF0\x9F\x98\x80 and plain words in a "
    "row\"}",
    R"({"a": {"a": {"b": [[["x"]]]}}, "a": 2})",
};

std::string DrawText(Rng& rng) {
  constexpr std::string_view kPieces[] = {"\"",
                                          "\\",
                                          "\\u",
                                          "\\ud8",
                                          "{",
                                          "}",
                                          "[",
                                          "]",
                                          ":",
                                          ",",
                                          "-",
                                          ".",
                                          "e",
                                          "0",
                                          "9",
                                          "\xE4",
                                          "\xB8",
                                          "\xF0",
                                          "\xED\xA0\x80",
                                          "\n",
                                          "\x1F",
                                          "\x7F",
                                          " ",
                                          "true",
                                          "nul",
                                          "1e999",
                                          "], [",
                                          std::string_view("\0", 1)};
  std::string text(kSeeds[rng.Below(std::size(kSeeds))]);
  for (uint64_t edits = rng.Below(4); edits > 0; --edits) {
    const size_t at = rng.Below(text.size() + 1);
    text.replace(at, rng.Below(3), kPieces[rng.Below(std::size(kPieces))]);
  }
  return text;
}

TEST(JsonValue, AgreesWithAnotherParser) {
  SeededRng rng(3);
  int num_good = 0;
  for (int round = 0; round < 50'000; ++round) {
    const std::string text = DrawText(rng);
    const absl::StatusOr<JsonValue> value = JsonValue::Parse(text);
    // Which takes a zero byte for the end.
    const bool is_good = nlohmann::json::accept(text) && text.find('\0') == text.npos;
    ASSERT_EQ(value.ok(), is_good) << text;
    if (!value.ok()) continue;
    ++num_good;
    ASSERT_EQ(nlohmann::json::parse(value->Dump()), nlohmann::json::parse(text)) << text;
  }
  EXPECT_GT(num_good, 10'000);
}

TEST(JsonValue, KeepsIntegersOfAnyLength) {
  for (const size_t size : {308u, 309u, 310u, 5'000u}) {
    const std::string digits = "9" + std::string(size, '7');
    EXPECT_EQ(RoundTrip("[" + digits + " , -" + digits + "]"), "[" + digits + ", -" + digits + "]");
    EXPECT_EQ(JsonValue::Parse(digits)->AsInt64(), std::nullopt);
    EXPECT_GE(*JsonValue::Parse(digits)->AsDouble(), 1e308);
  }
}

TEST(JsonValue, TakesADocumentsByteOrderMarkAndStringsOfAnyLength) {
  EXPECT_EQ(JsonValue::ParseDocument("\xEF\xBB\xBF[1]")->Dump(), "[1]");
  EXPECT_EQ(JsonValue::ParseDocument("[1]")->Dump(), "[1]");
  for (size_t size = 0; size < 40; ++size) {
    for (const std::string end : {"\\n", "\xC3\xA9", "\xE4\xB8\xAD", "\\u0041", "\x7F"}) {
      const std::string text = std::string(size, 'x') + end + std::string(size % 11, 'y');
      const absl::StatusOr<JsonValue> value = JsonValue::Parse("\"" + text + "\"");
      ASSERT_TRUE(value.ok()) << text;
      EXPECT_EQ(value->text(), nlohmann::json::parse("\"" + text + "\"").get<std::string>());
    }
    EXPECT_THAT(RoundTrip("\"" + std::string(size, 'x') + "\x1F\""),
                HasSubstr("must be escaped to \\u001F at byte " + std::to_string(size + 2)));
  }
}

bool AreEqual(const std::string& a, const std::string& b) {
  const JsonValue x = *JsonValue::Parse(a), y = *JsonValue::Parse(b);
  EXPECT_EQ(JsonEqual(x, y), JsonEqual(y, x)) << a << " " << b;
  return JsonEqual(x, y);
}

TEST(JsonEqual, ComparesNumbersAsPythonDoes) {
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{
           {"1", "1.0"},
           {"1", "1e0"},
           {"0", "-0.0"},
           {"-0", "0"},
           {"0.5", "5e-1"},
           {"9007199254740992", "9007199254740992.0"},
           {"18446744073709551616", "1.8446744073709552e19"},
           {"100000000000000000000000", "100000000000000000000000"}})
    EXPECT_TRUE(AreEqual(a, b)) << a << " " << b;
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{
           {"1", "true"},
           {"0", "null"},
           {"1", "\"1\""},
           {"1", "1.5"},
           {"9007199254740993", "9007199254740992.0"},
           {"9007199254740993", "9007199254740992"},
           {"9223372036854775807", "9223372036854775808.0"},
           {"100000000000000000000001", "1e23"},
           {"1", "2"},
           {"-1", "1.0"}})
    EXPECT_FALSE(AreEqual(a, b)) << a << " " << b;
}

}  // namespace
}  // namespace baton::router
