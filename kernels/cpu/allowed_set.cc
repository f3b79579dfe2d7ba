#include "kernels/cpu/allowed_set.h"

#include <algorithm>
#include <functional>

namespace baton::kernels::cpu {
namespace {

using Keys = std::vector<uint64_t>;

Keys::iterator At(Keys& keys, size_t index) {
  return keys.begin() + static_cast<std::ptrdiff_t>(index);
}

uint64_t MassBetween(const Keys& keys, size_t first, size_t last) {
  uint64_t sum = 0;
  for (size_t i = first; i < last; ++i) sum += MassOf(keys[i]);
  return sum;
}

// The first k in rank order.
void KeepTopK(size_t k, Keys& keys) {
  if (keys.size() <= k) return;
  std::nth_element(keys.begin(), At(keys, k), keys.end(), std::greater<>());
  keys.resize(k);
}

// The shortest prefix in rank order with cumulative mass >= need = max(1, ceil(p * W / 2^32)).
// Halves the range that holds the prefix's end, so that the expected time is linear.
void KeepTopP(uint64_t p, Keys& keys) {
  constexpr size_t kSorted = 64;
  const uint64_t total = MassBetween(keys, 0, keys.size());
  const auto product = static_cast<unsigned __int128>(p) * total;
  const auto ceiling = static_cast<uint64_t>((product + ((uint64_t{1} << 32) - 1)) >> 32);
  const uint64_t need = std::max<uint64_t>(1, ceiling);
  size_t first = 0;  // the prefix ends in [first, last)
  size_t last = keys.size();
  uint64_t before = 0;  // mass of keys[0 .. first)
  while (last - first > kSorted) {
    const size_t middle = first + (last - first) / 2;
    std::nth_element(At(keys, first), At(keys, middle), At(keys, last), std::greater<>());
    const uint64_t half = MassBetween(keys, first, middle);
    if (before + half >= need) {
      last = middle;
    } else {
      before += half;
      first = middle;
    }
  }
  std::sort(At(keys, first), At(keys, last), std::greater<>());
  while (first < last && before < need) before += MassOf(keys[first++]);
  keys.resize(first);
}

void KeepMinP(uint64_t min_p, Keys& keys) {
  std::erase_if(keys, [min_p](uint64_t key) { return MassOf(key) < min_p; });
}

}  // namespace

void KeepAllowed(const SamplingSpec& spec, Keys& keys) {
  if (spec.top_k > 0) KeepTopK(static_cast<size_t>(spec.top_k), keys);
  if (spec.top_p < kTopPOff) KeepTopP(spec.top_p, keys);
  if (spec.min_p > 0) KeepMinP(spec.min_p, keys);
}

}  // namespace baton::kernels::cpu
