#include "tests/fuzz/grammar_walk.h"

#include "common/check.h"
#include "common/demo_vocabulary.h"
#include "common/rng.h"

namespace baton {
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
    const std::vector<int32_t> allowed = AllowedIds(mask);
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
