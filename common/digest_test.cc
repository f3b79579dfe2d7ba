#include "common/digest.h"

#include <cstring>
#include <gtest/gtest.h>
#include <set>
#include <vector>

#include "common/rng.h"

namespace baton {
namespace {

std::vector<std::byte> Counting(size_t size, size_t step, size_t start) {
  std::vector<std::byte> bytes(size);
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::byte>(step * i + start);
  return bytes;
}

Secret CountingSecret() {
  Secret secret;
  for (size_t i = 0; i < secret.bytes.size(); ++i) secret.bytes[i] = static_cast<uint8_t>(i);
  return secret;
}

uint64_t Word(const Digest128& digest, size_t index) {
  uint64_t word = 0;
  std::memcpy(&word, digest.bytes.data() + 8 * index, sizeof(word));
  return word;
}

TEST(NhDigest, GivesTheVectorOfTheContract) {
  for (const auto path : {NhDigest::Path::kScalar, NhDigest::Path::kBest}) {
    const Digest128 digest =
        NhDigest(CountingSecret(), path).Of(Counting(128, 1, 0), Counting(3000, 7, 3));
    EXPECT_EQ(Word(digest, 0), 0xa22909dca0e09ffcu);
    EXPECT_EQ(Word(digest, 1), 0x993fc7b95dc203c0u);
  }
}

TEST(NhDigest, FastAndScalarPathAgreeForEverySizeAndAlignment) {
  SeededRng rng(7);
  const Secret secret = rng.DrawBytes<Secret>();
  const NhDigest fast(secret), scalar(secret, NhDigest::Path::kScalar);
  std::vector<std::byte> bytes(9000);
  for (auto& b : bytes) b = static_cast<std::byte>(rng.Next());
  for (size_t size : {0u, 1u, 3u, 1023u, 1024u, 1025u, 4096u, 8000u}) {
    for (size_t shift : {0u, 1u, 5u, 31u}) {
      const std::span<const std::byte> data(bytes.data() + shift, size);
      EXPECT_EQ(fast.Of(data.first(std::min<size_t>(size, 120)), data),
                scalar.Of(data.first(std::min<size_t>(size, 120)), data));
    }
  }
}

TEST(NhDigest, ChangesWithEverySingleBitOfAPage) {
  const NhDigest digest(CountingSecret());
  const std::vector<std::byte> header = Counting(120, 3, 1);
  std::vector<std::byte> page = Counting(2560, 5, 9);
  const Digest128 expected = digest.Of(header, page);
  for (size_t bit = 0; bit < 8 * page.size(); ++bit) {
    page[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_NE(digest.Of(header, page), expected) << "bit " << bit;
    page[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
}

TEST(NhDigest, ChangesWithEverySwapOfTwoChunks) {
  const NhDigest digest(CountingSecret());
  SeededRng rng(3);
  std::vector<std::byte> page(12 * NhDigest::kChunkBytes);
  for (auto& b : page) b = static_cast<std::byte>(rng.Next());
  const Digest128 expected = digest.Of({}, page);
  for (size_t i = 0; i < 12; ++i) {
    for (size_t j = i + 1; j < 12; ++j) {
      std::vector<std::byte> swapped = page;
      std::swap_ranges(swapped.begin() + static_cast<ptrdiff_t>(i * 1024),
                       swapped.begin() + static_cast<ptrdiff_t>(i * 1024 + 1024),
                       swapped.begin() + static_cast<ptrdiff_t>(j * 1024));
      EXPECT_NE(digest.Of({}, swapped), expected);
    }
  }
}

TEST(NhDigest, DependsOnHeaderAndSecret) {
  SeededRng rng(5);
  const std::vector<std::byte> page = Counting(4096, 1, 0);
  std::set<std::string> seen;
  for (int i = 0; i < 100; ++i) seen.insert(NhDigest(rng.DrawBytes<Secret>()).Of({}, page).Hex());
  EXPECT_EQ(seen.size(), 100u);
  const NhDigest digest(CountingSecret());
  EXPECT_NE(digest.Of(Counting(120, 1, 0), page), digest.Of(Counting(120, 1, 1), page));
}

}  // namespace
}  // namespace baton
