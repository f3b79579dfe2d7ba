#include "tests/fuzz/grammar_walk.h"

#include <fstream>
#include <iterator>
#include <string>

#include "common/check.h"
#include "common/rng.h"

namespace baton {
namespace {

std::vector<int32_t> Ids(const std::vector<uint32_t>& mask) {
  std::vector<int32_t> ids;
  for (size_t v = 0; v < 32 * mask.size(); ++v)
    if ((mask[v / 32] >> (v % 32) & 1) != 0) ids.push_back(static_cast<int32_t>(v));
  return ids;
}

}  // namespace

const Vocabulary& DemoVocabulary() {
  static const Vocabulary vocabulary = [] {
    std::ifstream file("models/demo/tokenizer.json", std::ios::binary);
    return *Vocabulary::FromTokenizerJson(
        std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()));
  }();
  return vocabulary;
}

std::vector<int32_t> WalkGrammar(std::string_view grammar, uint64_t choice, int most, bool& ends) {
  const Vocabulary& vocabulary = DemoVocabulary();
  Matcher matcher = *Matcher::Create(vocabulary, grammar);
  SeededRng rng(choice);
  std::vector<uint32_t> start(vocabulary.mask_words()), mask(vocabulary.mask_words());
  CHECK(matcher.ComputeMask(start).ok());
  mask = start;
  std::vector<int32_t> taken;
  ends = false;
  while (static_cast<int>(taken.size()) < most) {
    ends = matcher.IsAccepting();
    if (matcher.IsStopped()) break;
    const std::vector<int32_t> allowed = Ids(mask);
    if (allowed.empty()) return taken;  // a grammar of nothing
    const int32_t token = allowed[rng.Below(allowed.size())];
    CHECK((token == vocabulary.eos()) <= ends);
    if (token == vocabulary.eos()) break;
    const absl::Status consumed = matcher.Consume(token);
    if (absl::IsInvalidArgument(consumed)) return taken;  // beyond a limit
    CHECK(consumed.ok());
    taken.push_back(token);
    const absl::Status masked = matcher.ComputeMask(mask);
    if (absl::IsInvalidArgument(masked)) return taken;
    CHECK(masked.ok());
  }
  CHECK(matcher.Rollback(static_cast<int>(taken.size())).ok());
  CHECK(matcher.ComputeMask(mask).ok());
  CHECK(mask == start);
  return taken;
}

}  // namespace baton
