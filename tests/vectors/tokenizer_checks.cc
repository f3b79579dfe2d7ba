#include "absl/strings/str_format.h"

#include "router/text/detokenizer.h"
#include "tests/vectors/vector_file.h"

// tokenizer/encode_*.json and tokenizer/stream_decode.json.
namespace baton::vectors {

using router::SpecialTokens;
using router::TokenId;
using router::Tokenizer;

namespace {

Failure CheckEncodeCase(const JsonValue& item, const Tokenizer& tokenizer) {
  const std::string text = TextOf(item, "text");
  const std::vector<TokenId> ids = IdsOf(item.Find("ids"));
  if (auto failure = CompareIds("ids", tokenizer.Encode(text, SpecialTokens::kRecognise), ids))
    return failure;
  if (auto failure = Compare("decoded text", tokenizer.Decode(ids, false), text)) return failure;
  const JsonValue* plain = item.Find("ids_plain");
  if (plain == nullptr) return std::nullopt;
  return CompareIds("ids_plain", tokenizer.Encode(text, SpecialTokens::kPlain), IdsOf(plain));
}

Failure CheckStreamCase(const JsonValue& item, const Tokenizer& tokenizer) {
  const std::vector<TokenId> ids = IdsOf(item.Find("ids"));
  const JsonValue* deltas = item.Find("deltas");
  if (deltas == nullptr || deltas->items().size() != ids.size())
    return "the file has not one delta per id";
  const bool skips = FlagOf(item, "skip_special_tokens");
  router::Detokenizer stream(tokenizer, skips);
  std::string text;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string delta = stream.Push(ids[i]);
    const std::string what = absl::StrFormat("delta %d", i);
    if (auto failure = Compare(what, delta, deltas->items()[i].text())) return failure;
    text += delta;
  }
  const std::string tail = stream.Finish();
  if (auto failure = Compare("flush", tail, TextOf(item, "flush"))) return failure;
  if (auto failure = Compare("text", text + tail, TextOf(item, "text"))) return failure;
  return Compare("decoded text", tokenizer.Decode(ids, skips), text + tail);
}

}  // namespace

FileResult CheckEncode(const JsonValue& file, const Tokenizer& tokenizer) {
  return CheckCases(file, [&](const JsonValue& item) { return CheckEncodeCase(item, tokenizer); });
}

FileResult CheckStreamDecode(const JsonValue& file, const Tokenizer& tokenizer) {
  return CheckCases(file, [&](const JsonValue& item) { return CheckStreamCase(item, tokenizer); });
}

}  // namespace baton::vectors
