#pragma once

#include <string>
#include <utility>
#include <variant>

#include "common/check.h"

namespace baton::router {

// The `type` of a 429 for a key's limit, not for the server's.
inline constexpr char kRateLimitType[] = "rate_limit_error";

// What a client is told (protocol.md 5.3). `type` is the OpenAI form's; other surfaces map
// `http_status`.
struct ApiError {
  int http_status = 400;
  std::string type = "BadRequestError";
  std::string message;
  std::string param;  // dotted path; empty: null
  bool operator==(const ApiError&) const = default;
};

// 400 with the path of the offending member.
inline ApiError BadRequest(std::string message, std::string param) {
  return {.http_status = 400,
          .type = "BadRequestError",
          .message = std::move(message),
          .param = std::move(param)};
}

// A value or the error to send.
template <typename T>
class ApiResult {
 public:
  ApiResult(T value) : state_(std::move(value)) {}         // NOLINT: implicit like StatusOr
  ApiResult(ApiError error) : state_(std::move(error)) {}  // NOLINT
  bool ok() const { return std::holds_alternative<T>(state_); }
  T& operator*() {
    CHECK(ok());
    return std::get<T>(state_);
  }
  const T& operator*() const {
    CHECK(ok());
    return std::get<T>(state_);
  }
  T* operator->() { return &**this; }
  const T* operator->() const { return &**this; }
  const ApiError& error() const {
    CHECK(!ok());
    return std::get<ApiError>(state_);
  }

 private:
  std::variant<T, ApiError> state_;
};

}  // namespace baton::router
