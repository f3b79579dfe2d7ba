#include "common/check.h"

#include <cstdio>
#include <cstdlib>

namespace baton {

void CheckFailed(const char* file, int line, const char* claim) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, claim);
  std::abort();
}

}  // namespace baton
