#include "router/front/page.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_format.h"

#include "common/hash.h"

namespace baton::router {
namespace {

std::string HashOf(std::string_view text) {
  const auto digest = Sha256Of(text);
  const std::string bytes(digest.begin(), digest.end());
  return absl::Base64Escape(bytes);
}

// The text of the one element of this name without attributes.
std::string_view ElementOf(std::string_view html, std::string_view name) {
  const std::string opening = absl::StrFormat("<%s>", name);
  const size_t begin = std::min(html.find(opening), html.size());
  if (begin == html.size()) return "";
  const std::string_view rest = html.substr(begin + opening.size());
  return rest.substr(0, rest.find(absl::StrFormat("</%s>", name)));
}

}  // namespace

std::string PagePolicy(std::string_view html) {
  return absl::StrFormat(
      "default-src 'none'; script-src 'sha256-%s'; style-src 'sha256-%s'; connect-src 'self'; "
      "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
      HashOf(ElementOf(html, "script")), HashOf(ElementOf(html, "style")));
}

void ServePage(const HttpRequest& request, const std::string& request_id, HttpExchange& exchange) {
  static const std::string policy = PagePolicy(kPageHtml);
  static const std::string tag = absl::StrFormat("\"%s\"", HashOf(kPageHtml));
  HttpHeaders headers = {
      {"Cache-Control", "no-cache"}, {"ETag", tag}, {"x-request-id", request_id}};
  if (request.Header("if-none-match").find(tag) != std::string_view::npos)
    return exchange.Respond(304, std::move(headers), "");
  headers.emplace_back("Content-Type", "text/html; charset=utf-8");
  headers.emplace_back("Content-Security-Policy", policy);
  headers.emplace_back("X-Content-Type-Options", "nosniff");
  headers.emplace_back("Referrer-Policy", "no-referrer");
  exchange.Respond(200, std::move(headers), std::string(kPageHtml));
}

}  // namespace baton::router
