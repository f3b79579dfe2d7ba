#pragma once

#include <cstdint>

#include "common/ids.h"

namespace baton {

// SplitMix64's step (contracts.md 2.1): seeds and keys.
constexpr uint64_t Mix64(uint64_t seed) {
  uint64_t z = seed + 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

// Source of ids, secrets and seeds; never of a token's noise. One thread per instance.
class Rng {
 public:
  virtual ~Rng() = default;
  virtual uint64_t Next() = 0;
  // Uniform in [0, bound), bound > 0; the bias of a 64-bit modulus is accepted.
  uint64_t Below(uint64_t bound) { return Next() % bound; }
  // Uniform in [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  template <typename Id>
  Id DrawBytes() {
    Id id;
    for (size_t i = 0; i < id.bytes.size(); i += 8) {
      const uint64_t word = Next();
      for (size_t j = 0; j < 8 && i + j < id.bytes.size(); ++j)
        id.bytes[i + j] = static_cast<uint8_t>(word >> (8 * j));
    }
    return id;
  }
};

// Reproducible: SplitMix64 from a seed.
class SeededRng final : public Rng {
 public:
  explicit SeededRng(uint64_t seed) : state_(seed) {}
  uint64_t Next() override {
    const uint64_t out = Mix64(state_);
    state_ += 0x9E3779B97F4A7C15u;
    return out;
  }

 private:
  uint64_t state_;
};

// The system's entropy (getrandom).
class SystemRng final : public Rng {
 public:
  uint64_t Next() override;
};

}  // namespace baton
