#include "router/front/cors.h"

#include <algorithm>

namespace baton::router {
namespace {

constexpr size_t kMaxAskedBytes = 4096;
// Where a page's list of headers is not one: what our endpoints read.
constexpr char kUsualHeaders[] =
    "authorization, content-type, x-api-key, x-request-id, anthropic-version, anthropic-beta";

// Header names, separated by commas.
bool IsHeaderList(std::string_view text) {
  const auto is_fine = [](unsigned char c) {
    return isalnum(c) != 0 || c == '-' || c == '_' || c == ',' || c == ' ';
  };
  return !text.empty() && text.size() <= kMaxAskedBytes &&
         std::all_of(text.begin(), text.end(), is_fine);
}

}  // namespace

bool CorsPolicy::Has(std::string_view origin) const {
  return std::find(origins_.begin(), origins_.end(), origin) != origins_.end();
}

HttpHeaders CorsPolicy::AnswerHeaders(std::string_view origin) const {
  if (!is_on()) return {};
  const bool takes_all = Has("*");
  HttpHeaders headers;
  // Also where nothing is allowed: a cache must not give this answer to another origin.
  if (!takes_all) headers.emplace_back("Vary", "Origin");
  if (!Allows(origin)) return headers;
  headers.emplace_back("Access-Control-Allow-Origin", takes_all ? "*" : std::string(origin));
  headers.emplace_back("Access-Control-Expose-Headers",
                       "x-request-id, request-id, x-baton-exact, retry-after");
  return headers;
}

HttpHeaders CorsPolicy::PreflightHeaders(std::string_view origin, std::string_view asked) const {
  HttpHeaders headers = AnswerHeaders(origin);
  if (!Allows(origin)) return headers;
  headers.emplace_back("Access-Control-Allow-Methods", "GET, POST, OPTIONS");
  headers.emplace_back("Access-Control-Allow-Headers",
                       IsHeaderList(asked) ? std::string(asked) : kUsualHeaders);
  headers.emplace_back("Access-Control-Max-Age", "600");
  return headers;
}

}  // namespace baton::router
