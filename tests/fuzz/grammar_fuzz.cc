#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "common/demo_vocabulary.h"
#include "tests/fuzz/grammar_walk.h"

// Any bytes as a grammar: refused, or a matcher whose masks only allow what it then takes, and that
// comes back to where it was.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kMaxTokens = 24;
  const std::string_view grammar(reinterpret_cast<const char*>(data), size);
  const absl::Status status = baton::CheckGrammar(baton::DemoVocabulary(), grammar);
  CHECK(status.message().size() <= baton::kMaxGrammarMessage);
  bool ends = false;
  if (status.ok()) (void)baton::WalkGrammar(grammar, size, kMaxTokens, ends);
  return 0;
}
