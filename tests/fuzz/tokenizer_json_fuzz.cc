#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/check.h"
#include "common/grammar.h"
#include "router/text/tokenizer.h"

// Any bytes as a tokenizer.json: refused, or a tokenizer that keeps every byte of what it encodes,
// and a vocabulary of the same ids.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using baton::router::SpecialTokens;
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto vocabulary = baton::Vocabulary::FromTokenizerJson(json);
  const auto tokenizer = baton::router::Tokenizer::Parse(json, "fuzz");
  if (!tokenizer.ok()) return 0;
  if (vocabulary.ok()) CHECK(vocabulary->size() == tokenizer->vocab_size());
  for (const SpecialTokens mode : {SpecialTokens::kPlain, SpecialTokens::kRecognise}) {
    std::string bytes;
    for (const auto id : tokenizer->Encode(json, mode)) bytes += tokenizer->Bytes(id);
    CHECK(bytes == json);
  }
  return 0;
}
