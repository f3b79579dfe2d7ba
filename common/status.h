#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// The two flow macros (docs/style: errors are absl::Status, never exceptions).
#define RETURN_IF_ERROR(expr)                                         \
  do {                                                                \
    if (absl::Status status_ = (expr); !status_.ok()) return status_; \
  } while (false)

#define BATON_CONCAT_INNER(a, b) a##b
#define BATON_CONCAT(a, b) BATON_CONCAT_INNER(a, b)

#define ASSIGN_OR_RETURN(lhs, expr) \
  ASSIGN_OR_RETURN_INNER(BATON_CONCAT(status_or_, __LINE__), lhs, expr)
#define ASSIGN_OR_RETURN_INNER(holder, lhs, expr) \
  auto holder = (expr);                           \
  if (!holder.ok()) return holder.status();       \
  lhs = std::move(*holder)
