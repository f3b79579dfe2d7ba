#include "common/grammar.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "third_party/llg_c/llg_c.h"

namespace baton {
namespace {

constexpr size_t kMaxErrorBytes = 1024;

// Brackets inside one another, outside of quoted strings: readers of grammars, schemas and regexes
// recurse over them.
int DepthOf(std::string_view text) {
  int depth = 0, deepest = 0;
  bool is_quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\') {
      ++i;
    } else if (c == '"') {
      is_quoted = !is_quoted;
    } else if (!is_quoted && (c == '(' || c == '[' || c == '{')) {
      deepest = std::max(deepest, ++depth);
    } else if (!is_quoted && depth > 0 && (c == ')' || c == ']' || c == '}')) {
      --depth;
    }
  }
  return deepest;
}

bool IsNameByte(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Rules, terminals and schema references: readers recurse along chains of them.
int CountLinks(std::string_view text) {
  constexpr std::string_view kReference = "\"$ref\"";
  int links = 0;
  for (size_t at = text.find(kReference); at != text.npos; at = text.find(kReference, at + 1))
    ++links;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    const size_t name = line.find_first_not_of(" \t?!");
    if (name != line.npos && IsNameByte(line[name]) && line.find(':', name) != line.npos) ++links;
  }
  return links;
}

// Where what begins at `at` and is closed by `end` ends, an escaped `end` aside; the text's end if
// nothing closes it.
size_t EndOf(std::string_view text, size_t at, char end) {
  for (++at; at < text.size() && text[at] != end; ++at)
    if (text[at] == '\\') ++at;
  return std::min(at, text.size());
}

// Where a comment, regex or special token of a lark grammar that begins at `at` ends; `at` where
// none does.
size_t EndOfOpaque(std::string_view text, size_t at) {
  const char c = text[at];
  if (c == '#' || (c == '/' && text.substr(at + 1).starts_with('/')))
    return std::min(text.find('\n', at), text.size());
  if (c == '/') return EndOf(text, at, c);
  if (c != '<') return at;
  const size_t end = text.find_first_of("<> \t\r\n", at + 1);
  return end != text.npos && text[end] == '>' ? end : at;
}

// Whether a lark grammar has a '~' in front of an atom: a complement, over all bytes, and special
// tokens are spelled in bytes that no text has. Behind an atom and in front of a number it repeats.
bool HasComplement(std::string_view text) {
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (const size_t behind = EndOfOpaque(text, at); behind != at) {
      at = behind;
    } else if (c == '"') {
      at = EndOf(text, at, c);
    } else if (c == '~') {
      const size_t next = text.find_first_not_of(" \t", at + 1);
      if (next == text.npos || !absl::ascii_isdigit(static_cast<unsigned char>(text[next])))
        return true;
    }
  }
  return false;
}

// The properties that JSON schemas in a lark grammar name, or require if those are more.
int CountProperties(std::string_view text) {
  enum class Frame { kOther, kProperties, kRequired };
  std::vector<Frame> frames;
  Frame next = Frame::kOther;  // what a bracket opens
  int named = 0, required = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    if (const size_t behind = EndOfOpaque(text, at); behind != at) {
      at = behind;
    } else if (c == '"') {
      const size_t end = EndOf(text, at, c);
      const std::string_view name = text.substr(at + 1, std::max(end, at + 1) - at - 1);
      at = end;
      const Frame frame = frames.empty() ? Frame::kOther : frames.back();
      const size_t colon = text.find_first_not_of(" \t\r\n", std::min(end + 1, text.size()));
      const bool is_key = colon != text.npos && text[colon] == ':';
      if (frame == Frame::kRequired) ++required;
      if (frame == Frame::kProperties && is_key) ++named;
      next = Frame::kOther;
      if (frame != Frame::kOther || !is_key) continue;
      const bool may_be_any = name.find('\\') != name.npos;  // it is spelled with escapes
      if (name == "properties" || name == "patternProperties" || may_be_any)
        next = Frame::kProperties;
      if (name == "required") next = Frame::kRequired;
    } else if (c == '{' || c == '[') {
      frames.push_back(std::exchange(next, Frame::kOther));
    } else if ((c == '}' || c == ']') && !frames.empty()) {
      frames.pop_back();
    }
  }
  return std::max(named, required);
}

absl::Status CheckText(std::string_view grammar) {
  if (grammar.size() > kMaxGrammarBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("grammar has %d bytes, the limit is %d", grammar.size(), kMaxGrammarBytes));
  }
  const int depth = DepthOf(grammar);
  if (depth > kMaxGrammarDepth) {
    return absl::InvalidArgumentError(
        absl::StrFormat("grammar is %d levels deep, the limit is %d", depth, kMaxGrammarDepth));
  }
  const int links = CountLinks(grammar);
  if (links > kMaxGrammarLinks) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "grammar has %d rules and \"$ref\"s, the limit is %d", links, kMaxGrammarLinks));
  }
  const int properties = CountProperties(grammar);
  if (properties > kMaxGrammarProperties) {
    return absl::InvalidArgumentError(absl::StrFormat("grammar has %d properties, the limit is %d",
                                                      properties, kMaxGrammarProperties));
  }
  if (HasComplement(grammar))
    return absl::InvalidArgumentError(
        "grammar: complements (~) are not supported; a class such as /[^a]/ or /[[a-z]--[b]]/ is");
  return absl::OkStatus();
}

// Of a grammar before any text: what it refuses or is too large for is the grammar's fault.
absl::StatusCode CodeAtStart(LlgFailure failure) {
  switch (failure) {
    case kLlgRefused:
    case kLlgTooLarge:
      return absl::StatusCode::kInvalidArgument;
    case kLlgNoThread:
      return absl::StatusCode::kUnavailable;
    case kLlgInternal:
      break;
  }
  return absl::StatusCode::kInternal;
}

}  // namespace

absl::Status CheckGrammar(const Vocabulary& vocabulary, std::string_view grammar) {
  return Matcher::CreateWithMask(vocabulary, grammar).status();
}

void Matcher::Free::operator()(LlgMatcher* matcher) const { llg_c_free_matcher(matcher); }

Matcher::Matcher(Matcher&&) noexcept = default;
Matcher& Matcher::operator=(Matcher&&) noexcept = default;
Matcher::~Matcher() = default;

absl::StatusOr<Matcher> Matcher::Create(const Vocabulary& vocabulary, std::string_view grammar) {
  RETURN_IF_ERROR(CheckText(grammar));
  LlgFailure failure = kLlgInternal;
  char error[kMaxErrorBytes] = {};
  LlgMatcher* matcher = llg_c_new_matcher(&vocabulary.tokenizer(), grammar.data(), grammar.size(),
                                          &failure, error, sizeof(error));
  if (matcher == nullptr)
    return absl::Status(CodeAtStart(failure), absl::StrFormat("grammar: %s", error));
  return Matcher(matcher, vocabulary.mask_words());
}

absl::StatusOr<Matcher> Matcher::CreateWithMask(const Vocabulary& vocabulary,
                                                std::string_view grammar) {
  ASSIGN_OR_RETURN(Matcher matcher, Create(vocabulary, grammar));
  std::vector<uint32_t> mask(vocabulary.mask_words());
  if (llg_c_compute_mask(matcher.matcher_.get(), mask.data())) return matcher;
  char error[kMaxErrorBytes] = {};
  const LlgFailure failure = llg_c_failure(matcher.matcher_.get(), error, sizeof(error));
  return absl::Status(CodeAtStart(failure), absl::StrFormat("grammar: %s", error));
}

absl::StatusOr<Matcher> Matcher::Clone() const {
  LlgMatcher* copy = llg_c_clone_matcher(matcher_.get());
  if (copy == nullptr) return absl::InternalError("grammar: it could not be copied");
  return Matcher(copy, mask_words_);
}

absl::Status Matcher::Error() const {
  char error[kMaxErrorBytes] = {};
  const bool is_too_large = llg_c_failure(matcher_.get(), error, sizeof(error)) == kLlgTooLarge;
  return absl::Status(
      is_too_large ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kInternal,
      absl::StrFormat("grammar: %s", error));
}

absl::Status Matcher::ComputeMask(std::span<uint32_t> mask) {
  CHECK(mask.size() == mask_words_);
  if (llg_c_compute_mask(matcher_.get(), mask.data())) return absl::OkStatus();
  return Error();
}

absl::Status Matcher::Consume(int32_t token) {
  if (llg_c_consume(matcher_.get(), static_cast<uint32_t>(token))) return absl::OkStatus();
  return Error();
}

absl::Status Matcher::Rollback(int count) {
  CHECK(count >= 0);
  if (llg_c_rollback(matcher_.get(), static_cast<size_t>(count))) return absl::OkStatus();
  return Error();
}

bool Matcher::IsAccepting() { return llg_c_is_accepting(matcher_.get()); }

bool Matcher::IsStopped() const { return llg_c_is_stopped(matcher_.get()); }

size_t Matcher::StateBytes() const { return llg_c_state_bytes(matcher_.get()); }

}  // namespace baton
