#include "router/openai/ebnf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace baton::router {
namespace {

std::string Lark(std::string_view text) {
  const absl::StatusOr<std::string> lark = EbnfToLark(text);
  return lark.ok() ? *lark : std::string(lark.status().message());
}

TEST(Ebnf, WritesRegularRulesAsTerminals) {
  EXPECT_EQ(Lark("root ::= \"a\" [0-9]+ | item{2,3} # c\nitem ::= [^/\\]x-]? .\n"),
            "start: R0\n"
            "R0: \"a\" /[0-9]/+ | R1{2,3} \n"
            "R1: /[^\\/\\u{5d}x-]/? /(?s:.)/ \n");
}

TEST(Ebnf, WritesRecursiveRulesAsRules) {
  EXPECT_EQ(Lark("root ::= \"(\" root \")\" | digit\ndigit ::= [0-9]"),
            "start: r0\nr0: \"(\" r0 \")\" | R1 \nR1: /[0-9]/ \n");
}

TEST(Ebnf, ReadsRulesOverSeveralLinesAndEmptyAlternatives) {
  EXPECT_EQ(Lark("root ::= (\n  \"a\" |\n  \"b\" )\n | x-y\nx-y ::= | \"\\x41\\u4e2d\\n\\\"\""),
            "start: R0\nR0: (\"a\" | \"b\" ) | R1 \nR1: \"\" | \"A中\\n\\\"\" \n");
}

TEST(Ebnf, SaysWhatIsWrongAndWhere) {
  const auto wrong = [](std::string_view text) { return Lark(text); };
  EXPECT_EQ(wrong("root = \"a\""), "EBNF line 1: expected NAME ::=");
  EXPECT_EQ(wrong("\nroot ::= \"a"), "EBNF line 2: a string is not closed");
  EXPECT_EQ(wrong("root ::= x"), "EBNF line 1: the rule x is not defined");
  EXPECT_EQ(wrong("x ::= \"a\""), "EBNF: there is no rule named root");
  EXPECT_EQ(wrong("root ::= [a"), "EBNF line 1: '[' without ']'");
  EXPECT_EQ(wrong("root ::= []"), "EBNF line 1: '[]' allows nothing");
  EXPECT_EQ(wrong("root ::= (\"a\""), "EBNF line 1: a parenthesis is not closed");
  EXPECT_EQ(wrong("root ::= \"a\")"), "EBNF line 1: expected NAME ::=");
  EXPECT_EQ(wrong("root ::= \"a\"{x}"), "EBNF line 1: a repetition must be {m}, {m,} or {m,n}");
  EXPECT_EQ(wrong("root ::= \"a\"\nroot ::= \"b\""), "EBNF line 2: the rule root is defined twice");
  EXPECT_EQ(wrong("root ::= \"\\q\""), "EBNF line 1: unknown escape");
  for (const char* open :
       {"root ::= \"\\", "root ::= [\\", "root ::= [a\\x4", "root ::= \"\\U0001"})
    EXPECT_THAT(std::string(wrong(std::string_view(open))), testing::HasSubstr("escape")) << open;
  EXPECT_EQ(wrong("root ::= \"\\ud800\""), "EBNF line 1: an escape is no character");
  EXPECT_EQ(wrong("root ::= \"\\xg0\""), "EBNF line 1: an escape lacks hexadecimal digits");
  EXPECT_EQ(wrong("root ::= ,"), "EBNF line 1: a character that begins no element");
  EXPECT_EQ(wrong("root ::= " + std::string(100, '(')), "EBNF line 1: more than 64 parentheses");
  EXPECT_EQ(wrong("root ::= \x01"), "EBNF: a control character");
}

}  // namespace
}  // namespace baton::router
