#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

#include "router/text/added_tokens.h"
#include "router/text/bpe.h"
#include "router/text/pretokenizer.h"

namespace baton::router {

// Whether literals such as "<｜User｜>" inside a text become their token (protocol.md 1.6).
enum class SpecialTokens { kRecognise, kPlain };

// A stretch of a rendered prompt: one token of the template, or text that is encoded as plain
// bytes.
struct Segment {
  TokenId special = -1;  // -1: text
  std::string text;
  bool is_special() const { return special >= 0; }
  bool operator==(const Segment&) const = default;
  static Segment Special(TokenId id) { return {.special = id, .text = {}}; }
  static Segment Text(std::string text) { return {.special = -1, .text = std::move(text)}; }
};

// The tokenizer of a checkpoint (protocol.md 1). Ids differ between checkpoints: look tokens up by
// name. Immutable after Load; any thread. Movable.
class Tokenizer {
 public:
  // Reads a tokenizer.json of DeepSeek-V4's structure. kNotFound: no such file; kInvalidArgument:
  // names the file and the member that is missing, of another type or not what this code
  // implements.
  static absl::StatusOr<Tokenizer> Load(const std::string& path);
  static absl::StatusOr<std::string> ReadFile(const std::string& path);
  // The same from the file's content; `name` stands for the path in messages.
  static absl::StatusOr<Tokenizer> Parse(std::string_view json, const std::string& name);

  // Nothing is added: no bos, no eos (1.5). Any bytes are accepted, also ill-formed UTF-8.
  std::vector<TokenId> Encode(std::string_view text, SpecialTokens mode) const;
  // Adjacent texts are concatenated before they are encoded, plainly; specials are spliced in
  // (1.6).
  std::vector<TokenId> EncodeSegments(std::span<const Segment> segments) const;
  // Cuts the literals of added tokens out of a text of ours: Special and Text in turn.
  std::vector<Segment> Cut(std::string_view text) const;
  // The rendered prompt as one string.
  std::string ToText(std::span<const Segment> segments) const;

  // A token's bytes; empty for an id that no token has.
  std::string_view Bytes(TokenId id) const;
  // Only the `special` flag: <think>, </think> and ｜DSML｜ are not special (1.7).
  bool IsSpecial(TokenId id) const;
  // An added token by its literal.
  std::optional<TokenId> IdOf(std::string_view name) const;
  // One more than the highest id: rows of the logits.
  int vocab_size() const { return static_cast<int>(tokens_.size()); }
  // UTF-8 text with U+FFFD for each maximal ill-formed subpart (1.7). Ids outside the vocabulary
  // add nothing.
  std::string Decode(std::span<const TokenId> ids, bool skip_special) const;

  // Empty if the file is DeepSeek-V4's own, else a sentence for the log (1.1).
  const std::string& warning() const { return warning_; }

 private:
  friend class TokenizerLoader;
  Tokenizer() = default;
  void EncodePlain(std::string_view text, std::vector<TokenId>& ids) const;

  std::vector<std::string> tokens_;  // bytes by id
  std::vector<bool> is_special_;
  std::map<std::string, TokenId, std::less<>> added_ids_;
  AddedTokens added_;
  Pretokenizer pretokenizer_;
  BpeModel bpe_;
  std::string warning_;
};

}  // namespace baton::router
