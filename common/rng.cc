#include "common/rng.h"

#include <sys/random.h>

#include "common/check.h"

namespace baton {

uint64_t SystemRng::Next() {
  uint64_t word = 0;
  CHECK(getrandom(&word, sizeof(word), 0) == sizeof(word));
  return word;
}

}  // namespace baton
