#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "common/ids.h"

namespace baton {

// The 128-bit NH digest of pages and tails (contracts.md 3.5): integer sums only, so every order
// and every machine gives the same bits. It guards against accidents and stale data; it is not an
// authenticator. Immutable after construction, so any thread may share one.
class NhDigest {
 public:
  enum class Path { kBest, kScalar };  // kBest: AVX2 where the machine has it

  static constexpr size_t kChunkBytes = 1024;
  static constexpr size_t kMaxHeaderBytes = kChunkBytes;

  explicit NhDigest(const Secret& secret, Path path = Path::kBest);

  // `header` (at most kMaxHeaderBytes) is chunk 0, `data` the chunks from 1; both are padded with
  // zeros.
  Digest128 Of(std::span<const std::byte> header, std::span<const std::byte> data) const;

 private:
  static constexpr size_t kKeyWords = 512;  // two lanes of 256
  using Lanes = std::array<uint64_t, 2>;    // level-1 sums h_0, h_1
  using ChunkFunction = Lanes (*)(const std::byte* chunk, const uint32_t* key);

  // Level 2 of chunk j, added to `sums`.
  void Fold(uint32_t chunk_index, const Lanes& lanes, Lanes& sums) const;

  std::array<uint32_t, 4> secret_;
  alignas(32) std::array<uint32_t, kKeyWords> key_;
  ChunkFunction chunk_function_;
};

}  // namespace baton
