#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/sampling_spec.h"

struct LlgMatcher;
struct LlgTokenizer;

// Grammars over a tokenizer's tokens: the only door to llguidance (third_party/llg_c). A grammar is
// text in llguidance's Lark dialect; JSON schemas (`%json {...}`), regexes and special tokens
// (`<[128825]>`) are written inside it.
namespace baton {

inline constexpr int kMaxGrammarDepth = 128;   // brackets inside one another, outside strings
inline constexpr int kMaxGrammarLinks = 2000;  // rules, terminals and "$ref"s
// Of its JSON schemas together, as OpenAI has it: compiling optional ones takes time by the square
// of their number, 3,000 about 1.4 s.
inline constexpr int kMaxGrammarProperties = 5000;
// Of one text's way through a grammar: what its lexer has built so far, and the parser's rows.
// Twice what 100,000 tokens of JSON by a schema take; one step adds at most 55 MiB.
inline constexpr size_t kMaxMatcherBytes = size_t{64} << 20;

// The bytes of a tokenizer's tokens. Immutable; any thread. Reading a vocabulary of 129,280 tokens
// takes about 0.4 s.
class Vocabulary {
 public:
  // `json` is the text of a tokenizer.json: byte-level BPE; all its added tokens are special, which
  // a grammar names by id. Ids without a token, up to `vocab_size`, are never allowed. `vocab_size`
  // 0: the largest id + 1. kInvalidArgument names what is wrong with the text.
  // Matchers of this vocabulary are bounded by `max_matcher_bytes`.
  static absl::StatusOr<Vocabulary> FromTokenizerJson(std::string_view json, int vocab_size = 0,
                                                      size_t max_matcher_bytes = kMaxMatcherBytes);

  Vocabulary(Vocabulary&&) noexcept;
  Vocabulary& operator=(Vocabulary&&) noexcept;
  ~Vocabulary();

  int size() const { return size_; }
  size_t mask_words() const { return (static_cast<size_t>(size_) + 31) / 32; }
  int32_t eos() const { return eos_; }  // <｜end▁of▁sentence｜>
  // The id of an added token, by its text.
  std::optional<int32_t> FindSpecial(std::string_view text) const;
  const LlgTokenizer& tokenizer() const { return *tokenizer_; }

 private:
  struct Free {
    void operator()(LlgTokenizer* tokenizer) const;
  };
  Vocabulary() = default;

  int size_ = 0;
  int32_t eos_ = 0;
  std::map<std::string, int32_t, std::less<>> specials_;
  std::unique_ptr<LlgTokenizer, Free> tokenizer_;
};

// Whether a worker can follow the grammar: its size, its form, every JSON schema keyword in it, and
// the limits of its first mask. kInvalidArgument says what is not supported, in at most 1 KB, and
// lasts; kUnavailable and kInternal are this process's failures. Takes milliseconds: never on an
// I/O thread.
absl::Status CheckGrammar(const Vocabulary& vocabulary, std::string_view grammar);

// One text's way through a grammar. `vocabulary` outlives it. One thread at a time. An error is
// final: kInvalidArgument says which limit the grammar is beyond, kInternal what is wrong.
class Matcher {
 public:
  // As CheckGrammar, without the first mask.
  static absl::StatusOr<Matcher> Create(const Vocabulary& vocabulary, std::string_view grammar);
  // As CheckGrammar. Every copy has the lexer states of its first mask.
  static absl::StatusOr<Matcher> CreateWithMask(const Vocabulary& vocabulary,
                                                std::string_view grammar);

  // At the same place in the same grammar; the two share nothing that changes. kInternal: there is
  // no memory for it.
  absl::StatusOr<Matcher> Clone() const;

  Matcher(Matcher&&) noexcept;
  Matcher& operator=(Matcher&&) noexcept;
  ~Matcher();

  // Bit v of `mask` (mask_words() words): token v may come next. Where the grammar can end here,
  // eos is one of them.
  absl::Status ComputeMask(std::span<uint32_t> mask);
  // kInternal where the grammar does not take it. Eos, where it can end, ends it.
  absl::Status Consume(int32_t token);
  // Takes back the last `count` consumed tokens.
  absl::Status Rollback(int count);
  bool IsAccepting();         // it may end here
  bool IsStopped() const;     // it can only end here
  size_t StateBytes() const;  // an estimate; never above kMaxMatcherBytes and a step

 private:
  struct Free {
    void operator()(LlgMatcher* matcher) const;
  };
  Matcher(LlgMatcher* matcher, size_t mask_words) : matcher_(matcher), mask_words_(mask_words) {}
  absl::Status Error() const;

  std::unique_ptr<LlgMatcher, Free> matcher_;
  size_t mask_words_ = 0;
};

}  // namespace baton
