#include "router/text/tokenizer.h"

#include "common/check.h"
#include "router/text/utf8.h"

namespace baton::router {

std::vector<TokenId> Tokenizer::Encode(std::string_view text, SpecialTokens mode) const {
  std::vector<TokenId> ids;
  if (mode == SpecialTokens::kPlain) {
    EncodePlain(text, ids);
    return ids;
  }
  size_t begin = 0;
  for (const AddedTokens::Match& match : added_.FindAll(text)) {
    EncodePlain(text.substr(begin, match.begin - begin), ids);
    ids.push_back(match.id);
    begin = match.end;
  }
  EncodePlain(text.substr(begin), ids);
  return ids;
}

void Tokenizer::EncodePlain(std::string_view text, std::vector<TokenId>& ids) const {
  std::vector<size_t> ends;
  pretokenizer_.Split(text, ends);
  size_t begin = 0;
  for (const size_t end : ends) {
    bpe_.Encode(text.substr(begin, end - begin), ids);
    begin = end;
  }
}

std::vector<TokenId> Tokenizer::EncodeSegments(std::span<const Segment> segments) const {
  std::vector<TokenId> ids;
  std::string joined;
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].is_special()) {
      ids.push_back(segments[i].special);
      continue;
    }
    const bool continues = i + 1 < segments.size() && !segments[i + 1].is_special();
    if (joined.empty() && !continues) {
      EncodePlain(segments[i].text, ids);
      continue;
    }
    joined += segments[i].text;
    if (continues) continue;
    EncodePlain(joined, ids);
    joined.clear();
  }
  return ids;
}

std::vector<Segment> Tokenizer::Cut(std::string_view text) const {
  std::vector<Segment> segments;
  size_t begin = 0;
  for (const AddedTokens::Match& match : added_.FindAll(text)) {
    if (match.begin > begin) {
      segments.push_back(Segment::Text(std::string(text.substr(begin, match.begin - begin))));
    }
    segments.push_back(Segment::Special(match.id));
    begin = match.end;
  }
  if (begin < text.size()) segments.push_back(Segment::Text(std::string(text.substr(begin))));
  return segments;
}

std::string Tokenizer::ToText(std::span<const Segment> segments) const {
  std::string text;
  for (const Segment& segment : segments) {
    text += segment.is_special() ? Bytes(segment.special) : std::string_view(segment.text);
  }
  return text;
}

std::string_view Tokenizer::Bytes(TokenId id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return tokens_[static_cast<size_t>(id)];
}

bool Tokenizer::IsSpecial(TokenId id) const {
  return id >= 0 && id < vocab_size() && is_special_[static_cast<size_t>(id)];
}

std::optional<TokenId> Tokenizer::IdOf(std::string_view name) const {
  const auto found = added_ids_.find(name);
  if (found == added_ids_.end()) return std::nullopt;
  return found->second;
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool skip_special) const {
  Utf8Stream stream;
  std::string text;
  for (const TokenId id : ids) {
    if (!skip_special || !IsSpecial(id)) stream.Push(Bytes(id), text);
  }
  stream.Finish(text);
  return text;
}

}  // namespace baton::router
