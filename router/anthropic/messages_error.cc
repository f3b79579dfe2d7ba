#include "router/anthropic/messages_error.h"

#include <string_view>

#include "absl/strings/str_format.h"

#include "router/text/json_value.h"

namespace baton::router {
namespace {

std::string_view TypeOf(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
    case 405:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 504:
      return "timeout_error";
    case 529:
      return "overloaded_error";
    default:
      return status >= 500 ? "api_error" : "invalid_request_error";
  }
}

}  // namespace

int MessagesStatus(const ApiError& error) {
  const bool is_full = error.http_status == 429 && error.type != kRateLimitType;
  return is_full || error.http_status == 503 ? 529 : error.http_status;
}

std::string MessagesErrorJson(const ApiError& error, const std::string& request_id) {
  std::string message, id;
  AppendJsonString(error.message, message);
  AppendJsonString(request_id, id);
  return absl::StrFormat(
      "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":%s},\"request_id\":%s}",
      TypeOf(MessagesStatus(error)), message, id);
}

}  // namespace baton::router
