#include <cstddef>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "common/check.h"
#include "common/grammar.h"

// Any bytes as a grammar: refused, or a matcher whose masks only allow what it then takes, and that
// comes back to where it was.
namespace baton {
namespace {

constexpr int kMaxTokens = 24;
constexpr size_t kMaxMessage = 1200;

const Vocabulary& DemoVocabulary() {
  static const Vocabulary vocabulary = [] {
    std::ifstream file("models/demo/tokenizer.json", std::ios::binary);
    return *Vocabulary::FromTokenizerJson(
        std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()));
  }();
  return vocabulary;
}

std::vector<int32_t> Ids(const std::vector<uint32_t>& mask) {
  std::vector<int32_t> ids;
  for (size_t v = 0; v < 32 * mask.size(); ++v)
    if ((mask[v / 32] >> (v % 32) & 1) != 0) ids.push_back(static_cast<int32_t>(v));
  return ids;
}

void Walk(std::string_view grammar) {
  const Vocabulary& vocabulary = DemoVocabulary();
  Matcher matcher = *Matcher::Create(vocabulary, grammar);
  std::vector<uint32_t> start(vocabulary.mask_words()), mask(vocabulary.mask_words());
  CHECK(matcher.ComputeMask(start).ok());
  mask = start;
  int taken = 0;
  while (taken < kMaxTokens && !matcher.IsStopped()) {
    const std::vector<int32_t> allowed = Ids(mask);
    if (allowed.empty()) return;  // a grammar of nothing
    const int32_t token = allowed[static_cast<size_t>(taken * 7919) % allowed.size()];
    CHECK((token == vocabulary.eos()) <= matcher.IsAccepting());
    if (token == vocabulary.eos()) break;
    const absl::Status consumed = matcher.Consume(token);
    if (absl::IsInvalidArgument(consumed)) return;  // beyond a limit
    CHECK(consumed.ok());                           // the mask allows it
    ++taken;
    if (!matcher.ComputeMask(mask).ok()) return;
  }
  CHECK(matcher.Rollback(taken).ok());
  CHECK(matcher.ComputeMask(mask).ok());
  CHECK(mask == start);
}

}  // namespace
}  // namespace baton

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view grammar(reinterpret_cast<const char*>(data), size);
  const absl::Status status = baton::CheckGrammar(baton::DemoVocabulary(), grammar);
  if (status.ok()) baton::Walk(grammar);
  CHECK(status.message().size() <= baton::kMaxMessage);
  return 0;
}
