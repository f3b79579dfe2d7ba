#include "router/text/bpe.h"

#include <cstdint>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"

#include "common/byte_alphabet.h"
#include "common/rng.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

// All bytes, and merges over "a" and "b" drawn at random; some products have two ways to be made,
// not always before they are used.
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
  int num_ordered = 0;
  for (int round = 0; round < 60; ++round) {
    const Vocabulary vocabulary = RandomVocabulary(rng, 1 + rng.Below(25));
    const absl::StatusOr<BpeModel> model = BpeModel::Create(vocabulary.tokens, vocabulary.merges);
    ASSERT_TRUE(model.ok()) << model.status();
    num_ordered += model->is_ordered();
    for (int i = 0; i < 60; ++i) {
      std::string piece;
      for (uint64_t left = rng.Below(80); left > 0; --left) piece += "aaaabbbbc"[rng.Below(9)];
      std::vector<TokenId> ids;
      model->Encode(piece, ids);
      EXPECT_EQ(ids, Reference(vocabulary, piece)) << "round " << round << " piece " << piece;
      ids.clear();
      model->EncodeByMerging(piece, ids);
      EXPECT_EQ(ids, Reference(vocabulary, piece)) << "round " << round << " piece " << piece;
    }
  }
  EXPECT_GT(num_ordered, 10);
  EXPECT_LT(num_ordered, 60);
}

// The model of the real tokenizer, and the bytes of its tokens.
struct RealBpe {
  std::vector<std::string> tokens;
  BpeModel model;
};

RealBpe LoadRealBpe() {
  const JsonValue file = *JsonValue::Parse(RealTokenizerJson());
  const JsonValue& model = *file.Find("model");
  std::vector<std::string> tokens(model.Find("vocab")->members().size());
  std::map<std::string, TokenId> ids;
  for (const auto& [name, value] : model.Find("vocab")->members()) {
    const TokenId id = static_cast<TokenId>(*value.AsInt64());
    ids[name] = id;
    tokens[static_cast<size_t>(id)] = BytesOfTokenName(name).value_or(name);
  }
  std::vector<BpeModel::Merge> merges;
  for (const JsonValue& entry : model.Find("merges")->items()) {
    const std::string left = entry.text().substr(0, entry.text().find(' '));
    const std::string right = entry.text().substr(left.size() + 1);
    merges.push_back(
        {.left = ids.at(left), .right = ids.at(right), .product = ids.at(left + right)});
  }
  BpeModel bpe = *BpeModel::Create(tokens, merges);
  return {.tokens = std::move(tokens), .model = std::move(bpe)};
}

void AppendUtf8(uint32_t c, std::string& out) {
  if (c < 0x80) {
    out += static_cast<char>(c);
    return;
  }
  const uint32_t tail = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  out += static_cast<char>((0xF00u >> tail & 0xFF) | c >> 6 * tail);
  for (uint32_t i = tail; i-- > 0;) out += static_cast<char>(0x80 | (c >> 6 * i & 0x3F));
}

// A stretch of a kind: whole tokens, characters of one script, any bytes, or one thing repeated.
void AppendStretch(const RealBpe& real, Rng& rng, std::string& piece) {
  constexpr std::pair<uint32_t, uint32_t> kRanges[] = {
      {0x20, 0x7E},     {0x4E00, 0x9FA5},   {0x3040, 0x30FF},  {0x1F600, 0x1F64F},
      {0x300, 0x36F},   {0xAC00, 0xD7A3},   {0x400, 0x45F},    {0x900, 0x97F},
      {0xFF00, 0xFF5E}, {0x20000, 0x2A6DF}, {0x1F3FB, 0x1F3FF}};
  const uint64_t kind = rng.Below(4 + std::size(kRanges));
  const std::string& token = real.tokens[rng.Below(real.tokens.size())];
  const std::string part = token.substr(0, 1 + rng.Below(token.size()));
  for (uint64_t left = 1 + rng.Below(12); left > 0; --left) {
    if (kind == 0) {
      piece += real.tokens[rng.Below(real.tokens.size())];
    } else if (kind == 1) {
      piece += static_cast<char>(rng.Below(256));
    } else if (kind == 2) {
      piece += part;
    } else if (kind == 3) {
      piece += "\xE2\x80\x8D\xEF\xB8\x8F\xCC\x81 \n\t=-a"[rng.Below(14)];
    } else {
      const auto [low, high] = kRanges[kind - 4];
      AppendUtf8(low + static_cast<uint32_t>(rng.Below(high - low + 1)), piece);
    }
  }
}

TEST(BpeModel, AgreesWithMergingOnTheRealVocabulary) {
  const RealBpe real = LoadRealBpe();
  ASSERT_TRUE(real.model.is_ordered());
  SeededRng rng(11);
  std::vector<TokenId> found, merged;
  for (int round = 0; round < 20'000; ++round) {
    std::string piece;
    for (uint64_t left = 1 + rng.Below(6); left > 0; --left) AppendStretch(real, rng, piece);
    found.clear();
    merged.clear();
    real.model.Encode(piece, found);
    real.model.EncodeByMerging(piece, merged);
    ASSERT_EQ(found, merged) << "round " << round << " piece " << piece;
  }
  for (const std::string& token : real.tokens) {  // the longest match is not always the answer
    found.clear();
    merged.clear();
    real.model.Encode(token, found);
    real.model.EncodeByMerging(token, merged);
    ASSERT_EQ(found, merged) << token;
  }
}

TEST(BpeModel, RefusesAVocabularyWithoutAByte) {
  Vocabulary vocabulary = {.tokens = {"a"}, .merges = {}};
  const absl::StatusOr<BpeModel> model = BpeModel::Create(vocabulary.tokens, vocabulary.merges);
  EXPECT_EQ(model.status().message(), "vocab: byte 0x00 is no token");
}

}  // namespace
}  // namespace baton::router
