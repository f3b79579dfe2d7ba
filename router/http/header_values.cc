#include "router/http/header_values.h"

#include <algorithm>
#include <cctype>

#include "common/ids.h"
#include "common/rng.h"

namespace baton::router {

bool IsRequestId(std::string_view text) {
  const auto is_fine = [](unsigned char c) {
    return isalnum(c) != 0 || c == '.' || c == '_' || c == ':' || c == '-';
  };
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), is_fine);
}

std::string TakeOrDrawId(std::string_view given) {
  if (IsRequestId(given)) return std::string(given);
  SystemRng rng;
  return rng.DrawBytes<TransferId>().Hex();
}

bool IsJsonType(std::string_view content_type) {
  std::string type(content_type.substr(0, std::min(content_type.find(';'), content_type.size())));
  while (!type.empty() && (type.back() == ' ' || type.back() == '\t')) type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return static_cast<char>(tolower(c)); });
  return type == "application/json";
}

}  // namespace baton::router
