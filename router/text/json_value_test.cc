#include "router/text/json_value.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace baton::router {
namespace {

using ::testing::HasSubstr;

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

TEST(JsonValue, SaysInShortAndWellFormedTextWhatIsWrong) {
  EXPECT_EQ(RoundTrip("\"a\xE7\x8C\""),
            "syntax error while parsing value - invalid string: ill-formed UTF-8 byte; last read: "
            "'\"a\xEF\xBF\xBD\"' at byte 5");
  const std::string message = RoundTrip("\"" + std::string(10000, 'x') + "\xFF\"");
  EXPECT_THAT(message, HasSubstr("ill-formed UTF-8 byte; last read: '\"xxx"));
  EXPECT_THAT(message, HasSubstr("x... at byte 10002"));
  EXPECT_LT(message.size(), 300u);
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
  EXPECT_THAT(RoundTrip("1e999"), HasSubstr("at byte"));
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
