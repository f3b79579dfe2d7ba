#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace baton::router {

// Which part of the program answers.
enum class Surface : uint8_t { kOpenAi, kAnthropic, kOperator };

// One method of one path: what is served (protocol.md 5.1). /openapi.json is made from this table.
struct Route {
  std::string_view method;  // GET, which is HEAD as well, or POST
  std::string_view path;    // a last part "{id}" is any non-empty text
  Surface surface = Surface::kOpenAi;
  std::string_view summary{};
  std::string_view request{};  // schema of the body, a name of openapi.h; empty: none
  std::string_view answer{};   // media type
  bool is_open = false;        // served without a key (5.2)
  bool is_admin = false;       // served to operators only
  bool is_generation = false;  // makes tokens, which a key pays for
};

std::span<const Route> Routes();

struct FoundRoute {
  const Route* route = nullptr;  // null: none of this method
  bool is_path_known = false;    // with this or another method
  bool is_admin = false;         // of the path
};
// `path` as received: a part "{id}" may be percent-encoded.
FoundRoute FindRoute(std::string_view method, std::string_view path);

// The path with its "%XX" decoded, but for those of control characters; unchanged if that is no
// UTF-8.
std::string DecodePath(const std::string& path);

// The methods of a known path, for the header Allow: "GET, HEAD", "POST" or all of them.
std::string_view MethodsOf(std::string_view path);

// Paths of services that this model has not: a 404 of their own (5.1). Empty: not one of them.
std::string_view UnsupportedService(std::string_view path);

}  // namespace baton::router
