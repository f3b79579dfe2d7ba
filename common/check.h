#pragma once

namespace baton {

// Prints file, line, the claim and ends the process. A CHECK states a bug of ours, so it stays on
// in release.
[[noreturn]] void CheckFailed(const char* file, int line, const char* claim);

}  // namespace baton

#define CHECK(claim)                                                \
  do {                                                              \
    if (!(claim)) ::baton::CheckFailed(__FILE__, __LINE__, #claim); \
  } while (false)
