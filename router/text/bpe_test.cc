#include "router/text/bpe.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"

namespace baton::router {
namespace {

// All bytes, and merges over "a" and "b" drawn at random; some products have two ways to be made.
struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<BpeModel::Merge> merges;
};

Vocabulary RandomVocabulary(Rng& rng, size_t num_merges) {
  Vocabulary out;
  for (int byte = 0; byte < 256; ++byte)
    out.tokens.push_back(std::string(1, static_cast<char>(byte)));
  std::vector<TokenId> usable = {'a', 'b'};
  std::map<std::string, TokenId> ids = {{"a", 'a'}, {"b", 'b'}};
  std::map<std::pair<TokenId, TokenId>, bool> used;
  while (out.merges.size() < num_merges) {
    const TokenId left = usable[rng.Below(usable.size())];
    const TokenId right = usable[rng.Below(usable.size())];
    if (!used.emplace(std::pair(left, right), true).second) continue;
    const std::string product =
        out.tokens[static_cast<size_t>(left)] + out.tokens[static_cast<size_t>(right)];
    const auto [place, is_new] = ids.emplace(product, static_cast<TokenId>(out.tokens.size()));
    if (is_new) {
      out.tokens.push_back(product);
      usable.push_back(place->second);
    }
    out.merges.push_back({.left = left, .right = right, .product = place->second});
  }
  return out;
}

// The definition: rank by rank the leftmost lowest pair, in quadratic time.
std::vector<TokenId> Reference(const Vocabulary& vocabulary, const std::string& piece) {
  std::vector<TokenId> ids;
  for (const char c : piece) ids.push_back(static_cast<uint8_t>(c));
  while (true) {
    size_t best_rank = vocabulary.merges.size(), best = 0;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        const BpeModel::Merge& merge = vocabulary.merges[rank];
        if (merge.left != ids[i] || merge.right != ids[i + 1]) continue;
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == vocabulary.merges.size()) return ids;
    ids[best] = vocabulary.merges[best_rank].product;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(BpeModel, AgreesWithTheDefinition) {
  SeededRng rng(7);
  for (int round = 0; round < 20; ++round) {
    const Vocabulary vocabulary = RandomVocabulary(rng, 1 + rng.Below(25));
    const absl::StatusOr<BpeModel> model = BpeModel::Create(vocabulary.tokens, vocabulary.merges);
    ASSERT_TRUE(model.ok()) << model.status();
    for (int i = 0; i < 60; ++i) {
      std::string piece;
      for (uint64_t left = rng.Below(80); left > 0; --left) piece += "aaaabbbbc"[rng.Below(9)];
      std::vector<TokenId> ids;
      model->Encode(piece, ids);
      EXPECT_EQ(ids, Reference(vocabulary, piece)) << "round " << round << " piece " << piece;
    }
  }
}

TEST(BpeModel, RefusesAVocabularyWithoutAByte) {
  Vocabulary vocabulary = {.tokens = {"a"}, .merges = {}};
  const absl::StatusOr<BpeModel> model = BpeModel::Create(vocabulary.tokens, vocabulary.merges);
  EXPECT_EQ(model.status().message(), "vocab: byte 0x00 is no token");
}

}  // namespace
}  // namespace baton::router
