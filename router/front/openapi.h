#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace baton::router {

enum class FieldUse : uint8_t {
  kRead,
  kIgnored,  // accepted, for clients that send it
  kRefused,  // 400 by name
};

// One member of a request's body.
struct Field {
  std::string_view name;
  std::string_view schema;  // members of its JSON schema, without braces
  std::string_view description;
  FieldUse use = FieldUse::kRead;
  bool is_required = false;
};

// The members of a request, by the names of Route::request; empty for an unknown name. docs/api.md
// says more about each.
std::vector<Field> RequestFields(std::string_view request);

// Names of all requests' schemas.
std::span<const std::string_view> RequestNames();

// The OpenAPI 3.1 document of everything in Routes().
std::string OpenApiDocument(std::string_view version);

}  // namespace baton::router
