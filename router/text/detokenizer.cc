#include "router/text/detokenizer.h"

namespace baton::router {

std::string Detokenizer::Push(TokenId id) {
  std::string text;
  if (!skip_special_ || !tokenizer_.IsSpecial(id)) stream_.Push(tokenizer_.Bytes(id), text);
  return text;
}

std::string Detokenizer::Finish() {
  std::string text;
  stream_.Finish(text);
  return text;
}

}  // namespace baton::router
