#include "common/digest.h"

#include <bit>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "common/check.h"
#include "common/philox.h"

namespace baton {
namespace {

static_assert(std::endian::native == std::endian::little, "digest words are read in place");

constexpr uint32_t kLevel1Tag = 0x6e683101u;
constexpr uint32_t kLevel2Tag = 0x6e683202u;
constexpr size_t kChunkWords = NhDigest::kChunkBytes / 4;

std::array<uint64_t, 2> ChunkScalar(const std::byte* chunk, const uint32_t* key) {
  std::array<uint64_t, 2> sums{};
  for (size_t i = 0; i < kChunkWords; i += 2) {
    uint32_t word[2];
    std::memcpy(word, chunk + 4 * i, sizeof(word));
    for (size_t lane = 0; lane < 2; ++lane) {
      const uint32_t* k = key + kChunkWords * lane + i;
      sums[lane] += uint64_t{word[0] + k[0]} * uint64_t{word[1] + k[1]};
    }
  }
  return sums;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t SumOfLanes(__m256i v) {
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return static_cast<uint64_t>(_mm_extract_epi64(half, 0)) +
         static_cast<uint64_t>(_mm_extract_epi64(half, 1));
}

// Eight words a turn: the even 32-bit words of an addition times the odd ones are four 64-bit
// products.
__attribute__((target("avx2"))) std::array<uint64_t, 2> ChunkAvx2(const std::byte* chunk,
                                                                  const uint32_t* key) {
  __m256i sum0 = _mm256_setzero_si256();
  __m256i sum1 = _mm256_setzero_si256();
  for (size_t i = 0; i < kChunkWords; i += 8) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(chunk + 4 * i));
    const __m256i key0 = _mm256_load_si256(reinterpret_cast<const __m256i*>(key + i));
    const __m256i key1 = _mm256_load_si256(reinterpret_cast<const __m256i*>(key + kChunkWords + i));
    const __m256i a = _mm256_add_epi32(words, key0);
    const __m256i b = _mm256_add_epi32(words, key1);
    sum0 = _mm256_add_epi64(sum0, _mm256_mul_epu32(a, _mm256_srli_epi64(a, 32)));
    sum1 = _mm256_add_epi64(sum1, _mm256_mul_epu32(b, _mm256_srli_epi64(b, 32)));
  }
  return {SumOfLanes(sum0), SumOfLanes(sum1)};
}
#endif

}  // namespace

NhDigest::NhDigest(const Secret& secret, Path path) : chunk_function_(&ChunkScalar) {
  std::memcpy(secret_.data(), secret.bytes.data(), sizeof(secret_));
  for (uint32_t i = 0; i < kKeyWords / 4; ++i) {
    const auto words =
        Philox4x32({secret_[0], secret_[1]}, {i, kLevel1Tag, secret_[2], secret_[3]});
    std::memcpy(&key_[4 * i], words.data(), sizeof(words));
  }
#if defined(__x86_64__)
  if (path == Path::kBest && __builtin_cpu_supports("avx2")) chunk_function_ = &ChunkAvx2;
#else
  (void)path;
#endif
}

void NhDigest::Fold(uint32_t chunk_index, const Lanes& lanes, Lanes& sums) const {
  const auto a =
      Philox4x32({secret_[0], secret_[1]}, {chunk_index, kLevel2Tag, secret_[2], secret_[3]});
  for (size_t lane = 0; lane < 2; ++lane) {
    const uint32_t low = static_cast<uint32_t>(lanes[lane]) + a[2 * lane];
    const uint32_t high = static_cast<uint32_t>(lanes[lane] >> 32) + a[2 * lane + 1];
    sums[lane] += uint64_t{low} * uint64_t{high};
  }
}

Digest128 NhDigest::Of(std::span<const std::byte> header, std::span<const std::byte> data) const {
  CHECK(header.size() <= kMaxHeaderBytes);
  Lanes sums{};
  std::array<std::byte, kChunkBytes> padded{};
  if (!header.empty()) std::memcpy(padded.data(), header.data(), header.size());
  Fold(0, chunk_function_(padded.data(), key_.data()), sums);
  const size_t full_chunks = data.size() / kChunkBytes;
  for (size_t j = 0; j < full_chunks; ++j)
    Fold(static_cast<uint32_t>(j + 1), chunk_function_(data.data() + j * kChunkBytes, key_.data()),
         sums);
  const size_t rest = data.size() - full_chunks * kChunkBytes;
  if (rest != 0) {
    padded.fill(std::byte{0});
    std::memcpy(padded.data(), data.data() + full_chunks * kChunkBytes, rest);
    Fold(static_cast<uint32_t>(full_chunks + 1), chunk_function_(padded.data(), key_.data()), sums);
  }
  Digest128 digest;
  std::memcpy(digest.bytes.data(), sums.data(), sizeof(sums));
  return digest;
}

}  // namespace baton
