#pragma once

#include <span>
#include <string>

#include "router/text/tokenizer.h"
#include "router/text/utf8.h"

namespace baton::router {

// Token ids in, text out, as soon as it is certain (protocol.md 1.7). One per choice, one thread;
// the tokenizer outlives it.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // What this token completes; often empty in the middle of a character. A skipped special token
  // neither flushes nor breaks a held tail.
  std::string Push(TokenId id);
  // The held tail as one U+FFFD; call once, at the end.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  Utf8Stream stream_;
};

}  // namespace baton::router
