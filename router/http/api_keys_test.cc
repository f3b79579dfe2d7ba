#include "router/http/api_keys.h"

#include <gtest/gtest.h>

namespace baton::router {
namespace {

constexpr char kFile[] =
    "# people\n"
    "alice  sk-alice-0001  requests_per_minute=60 tokens_per_minute=600\n"
    "\n"
    "ops.1 sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 admin\r\n";

std::string ErrorOf(std::string_view text) {
  const auto specs = ParseApiKeys(text, "keys");
  return specs.ok() ? "" : std::string(specs.status().message());
}

TEST(ApiKeys, AreFoundByTheKeyAndByItsHash) {
  const ManualClock clock;
  const auto specs = ParseApiKeys(kFile, "keys");
  ASSERT_TRUE(specs.ok()) << specs.status();
  const ApiKeys keys(*specs, clock);
  ASSERT_NE(keys.Find("sk-alice-0001"), nullptr);
  EXPECT_EQ(keys.Find("sk-alice-0001")->spec().name, "alice");
  EXPECT_EQ(keys.Find("sk-alice-0001")->spec().tokens_per_minute, 600);
  ASSERT_NE(keys.Find("test"), nullptr);  // the hash above is of "test"
  EXPECT_TRUE(keys.Find("test")->spec().is_admin);
  for (const char* wrong :
       {"", "sk-alice-0002", "sk-alice-00011", "SK-ALICE-0001",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"})
    EXPECT_EQ(keys.Find(wrong), nullptr) << wrong;
}

TEST(ApiKeys, ErrorsNameTheLineAndNotTheKey) {
  EXPECT_EQ(ErrorOf("a sk-secret-1\nb sk-secret-1\n"), "keys:2: the key of b is used twice");
  EXPECT_EQ(ErrorOf("a sk-secret-1\na sk-secret-2\n"), "keys:2: the name a is used twice");
  EXPECT_EQ(ErrorOf("a short\n"),
            "keys:1: the key has 5 bytes, want 8..256 visible ASCII characters");
  EXPECT_EQ(ErrorOf("a sha256:12\n"), "keys:1: sha256: wants 64 hexadecimal digits after it");
  EXPECT_EQ(ErrorOf("abc-secret-1\n"), "keys:1: the second word, the key, is missing");
  EXPECT_EQ(ErrorOf("sk-secret-1 alice-the-first\n"),
            "keys:1: the first word begins with sk-: the name comes first");
  EXPECT_NE(ErrorOf("none sk-secret-1\n"), "");
  EXPECT_NE(ErrorOf("a{b=\"c\"} sk-secret-1\n"), "");
  EXPECT_NE(ErrorOf("a sk-secret-1 requests_per_minute=0\n").find("requests_per_minute wants"),
            std::string::npos);
  EXPECT_NE(ErrorOf("a sk-secret-1 requests_per_minute\n").find("requests_per_minute wants"),
            std::string::npos);
  EXPECT_EQ(ErrorOf("a sk-secret rest-of-it\n"),
            "keys:1: a word behind the key is none of requests_per_minute=N, tokens_per_minute=N, "
            "admin");
  EXPECT_NE(ErrorOf("# nobody\n").find("no key"), std::string::npos);
  EXPECT_EQ(ReadApiKeys("/nowhere/keys").status().code(), absl::StatusCode::kNotFound);
}

TEST(KeyAccount, RequestsComeBackWithTime) {
  ManualClock clock;
  KeyAccount account({.name = "a", .requests_per_minute = 60}, clock);
  for (int i = 0; i < 60; ++i) EXPECT_FALSE(account.Admit(false)) << i;
  const auto refusal = account.Admit(false);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->message, "the key a may use 60 requests per minute");
  EXPECT_EQ(refusal->retry_after, absl::Seconds(1));
  clock.Advance(absl::Seconds(1));
  EXPECT_FALSE(account.Admit(false));
  EXPECT_TRUE(account.Admit(false));
  EXPECT_EQ(account.use().requests, 61u);
  EXPECT_EQ(account.use().refusals, 2u);
}

TEST(KeyAccount, TokensAreOwedUntilTheyArePaidOff) {
  ManualClock clock;
  KeyAccount account({.name = "a", .tokens_per_minute = 600}, clock);
  int64_t reserved = 0;
  EXPECT_FALSE(account.Admit(true));
  account.Charge(620, reserved);
  EXPECT_FALSE(account.Admit(false));  // what makes no tokens is not held up
  const auto refusal = account.Admit(true);
  ASSERT_TRUE(refusal);
  EXPECT_EQ(refusal->message, "the key a may use 600 tokens per minute");
  EXPECT_NEAR(absl::ToDoubleSeconds(refusal->retry_after), 2.1, 1e-6);
  clock.Advance(absl::Seconds(2.2));
  EXPECT_FALSE(account.Admit(true));
  clock.Advance(absl::Hours(1));
  account.Charge(600, reserved);  // no more than a minute's worth is saved up
  EXPECT_TRUE(account.Admit(true));
  EXPECT_EQ(account.use().tokens, 1220u);
}

TEST(KeyAccount, WhatIsReservedIsTakenUntilItIsGivenBack) {
  ManualClock clock;
  KeyAccount account({.name = "a", .tokens_per_minute = 600}, clock);
  int64_t first = std::get<int64_t>(account.Reserve(500));
  EXPECT_EQ(first, 500);
  int64_t second = std::get<int64_t>(account.Reserve(200));  // the last one let in
  const auto third = account.Reserve(1);
  ASSERT_TRUE(std::holds_alternative<KeyAccount::Refusal>(third));
  EXPECT_NEAR(absl::ToDoubleSeconds(std::get<KeyAccount::Refusal>(third).retry_after), 10.1, 1e-6);
  EXPECT_TRUE(account.Admit(true));
  account.Charge(100, first);  // covered
  EXPECT_EQ(first, 400);
  EXPECT_TRUE(account.Admit(true));
  account.Release(first);
  EXPECT_FALSE(account.Admit(true));
  account.Charge(250, second);  // 50 more than reserved
  EXPECT_EQ(second, 0);
  EXPECT_EQ(account.use().tokens, 350u);
  // 600 - 100 - 250 are left.
  EXPECT_EQ(std::get<int64_t>(account.Reserve(250)), 250);
  EXPECT_TRUE(std::holds_alternative<KeyAccount::Refusal>(account.Reserve(1)));
  clock.Advance(absl::Hours(1));
  EXPECT_EQ(std::get<int64_t>(account.Reserve(int64_t{1} << 50)), 600);  // a minute's
}

TEST(KeyAccount, WithoutLimitsAdmitsAll) {
  ManualClock clock;
  KeyAccount account({.name = "a"}, clock);
  int64_t reserved = 0;
  account.Charge(1'000'000'000, reserved);
  EXPECT_EQ(std::get<int64_t>(account.Reserve(1'000'000'000)), 0);
  for (int i = 0; i < 1000; ++i) EXPECT_FALSE(account.Admit(true));
}

}  // namespace
}  // namespace baton::router
