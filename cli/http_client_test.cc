#include "cli/http_client.h"

#include <gtest/gtest.h>

#include "cli/http_connection.h"

namespace baton::cli {
namespace {

std::string Parsed(const std::string& text) {
  const auto url = ParseUrl(text);
  if (!url.ok()) return std::string(url.status().message());
  return (url->is_tls ? "tls " : "") + url->host + " " + url->port + " " + url->path;
}

TEST(ParseUrl, TakesBothSchemesAndTheirPorts) {
  EXPECT_EQ(Parsed("http://a.example"), "a.example 80 ");
  EXPECT_EQ(Parsed("https://a.example/base/"), "tls a.example 443 /base");
  EXPECT_EQ(Parsed("localhost:8000"), "localhost 8000 ");
  EXPECT_EQ(Parsed("https://127.0.0.1:8443/v1"), "tls 127.0.0.1 8443 /v1");
  EXPECT_EQ(Parsed("http://[::1]:8000"), "::1 8000 ");
  EXPECT_EQ(Parsed("https://[::1]"), "tls ::1 443 ");
}

TEST(ParseUrl, SaysWhatIsWrong) {
  EXPECT_EQ(Parsed("ftp://a"), "ftp://a: only http:// and https:// are spoken");
  for (const char* text :
       {"", "http://", "http://:80", "a:", "a:b", "http://]", "[::1", "http://a:1:2"})
    EXPECT_NE(Parsed(text).find("want http://host:port"), std::string::npos) << text;
}

TEST(RequestText, NamesTheHostAndItsBody) {
  const HttpUrl url = {.host = "a.example", .port = "80", .path = "/v1/x"};
  EXPECT_EQ(
      RequestText(
          {.url = url, .method = "POST", .body = "{}", .api_key = "key", .keeps_connection = true}),
      "POST /v1/x HTTP/1.1\r\nHost: a.example:80\r\nUser-Agent: baton\r\n"
      "Authorization: Bearer key\r\nContent-Type: application/json\r\n"
      "Content-Length: 2\r\n\r\n{}");
  const HttpUrl bare = {.host = "::1", .port = "8000", .path = ""};
  EXPECT_EQ(RequestText({.url = bare, .method = "GET", .body = {}, .api_key = {}}),
            "GET / HTTP/1.1\r\nHost: [::1]:8000\r\nUser-Agent: baton\r\nConnection: close\r\n\r\n");
}

}  // namespace
}  // namespace baton::cli
