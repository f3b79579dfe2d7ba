#pragma once

#include <array>
#include <cstdint>

namespace baton {

// Philox4x32-10 (Salmon et al. 2011): the counter-based generator of sampling noise and digest
// keys. Pure.
constexpr std::array<uint32_t, 4> Philox4x32(std::array<uint32_t, 2> key,
                                             std::array<uint32_t, 4> counter) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<uint32_t>(product0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

static_assert(Philox4x32({0, 0}, {0, 0, 0, 0}) ==
              std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});

}  // namespace baton
