#include "router/front/page.h"

#include <gtest/gtest.h>

#include "absl/strings/escaping.h"

#include "common/hash.h"
#include "router/openai/api_fakes.h"

namespace baton::router {
namespace {

std::unique_ptr<FakeExchange> Get(std::map<std::string, std::string> headers = {}) {
  HttpRequest request;
  request.method = "GET";
  request.path = "/";
  request.headers = std::move(headers);
  auto exchange = std::make_unique<FakeExchange>();
  ServePage(request, "r1", *exchange);
  return exchange;
}

size_t CountOf(std::string_view text, std::string_view part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string_view::npos; at = text.find(part, at + 1))
    ++count;
  return count;
}

TEST(Page, IsServedWithHeadersThatLetNothingElseRun) {
  const auto page = Get();
  EXPECT_EQ(page->status, 200);
  EXPECT_EQ(page->body, kPageHtml);
  EXPECT_EQ(page->body.rfind("<!doctype html>", 0), 0u);
  EXPECT_EQ(page->Header("Content-Type"), "text/html; charset=utf-8");
  EXPECT_EQ(page->Header("X-Content-Type-Options"), "nosniff");
  EXPECT_EQ(page->Header("Referrer-Policy"), "no-referrer");
  EXPECT_EQ(page->Header("x-request-id"), "r1");
  const std::string policy(page->Header("Content-Security-Policy"));
  EXPECT_EQ(policy, PagePolicy(kPageHtml));
  EXPECT_EQ(policy.rfind("default-src 'none'; ", 0), 0u);
  EXPECT_EQ(policy.find("unsafe"), std::string::npos);
  EXPECT_NE(policy.find("connect-src 'self'"), std::string::npos);
  EXPECT_NE(policy.find("frame-ancestors 'none'"), std::string::npos);
}

TEST(Page, PolicyNamesItsOneScriptAndStyleByTheirHashes) {
  const auto hash = [](std::string_view text) {
    const auto digest = Sha256Of(text);
    return "'sha256-" + absl::Base64Escape(std::string(digest.begin(), digest.end())) + "'";
  };
  const std::string policy =
      PagePolicy("<html><style>b{}</style><p><script>let a;\n</script></html>");
  EXPECT_NE(policy.find("script-src " + hash("let a;\n") + ";"), std::string::npos) << policy;
  EXPECT_NE(policy.find("style-src " + hash("b{}") + ";"), std::string::npos) << policy;
  EXPECT_EQ(CountOf(kPageHtml, "<script"), 1u);
  EXPECT_EQ(CountOf(kPageHtml, "<style"), 1u);
}

TEST(Page, IsNotSentAgainToWhoHasIt) {
  const std::string tag(Get()->Header("ETag"));
  ASSERT_GT(tag.size(), 40u);
  EXPECT_EQ(Get()->Header("Cache-Control"), "no-cache");
  const auto again = Get({{"if-none-match", "\"old\", W/" + tag}});
  EXPECT_EQ(again->status, 304);
  EXPECT_EQ(again->body, "");
  EXPECT_EQ(again->Header("ETag"), tag);
  EXPECT_EQ(Get({{"if-none-match", "\"old\""}})->status, 200);
}

TEST(Page, NamesNoOtherHostAndWritesNoMarkup) {
  for (const char* part :
       {"http:", "https:", "src=", "url(", "@import", "//cdn", "innerHTML", "outerHTML",
        "insertAdjacentHTML", "document.write", "eval(", "onclick=\"", "style=\"", "import("})
    EXPECT_EQ(kPageHtml.find(part), std::string_view::npos) << part;
  EXPECT_EQ(CountOf(kPageHtml, "href="), 1u);  // the empty icon
  EXPECT_NE(kPageHtml.find("href=\"data:,\""), std::string_view::npos);
  EXPECT_LT(kPageHtml.size(), 40'000u);
}

}  // namespace
}  // namespace baton::router
