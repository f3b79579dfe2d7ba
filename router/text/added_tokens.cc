#include "router/text/added_tokens.h"

#include <algorithm>

namespace baton::router {

void AddedTokens::Add(std::string_view literal, TokenId id, bool is_normalized) {
  Trie& trie = is_normalized ? normalized_ : exact_;
  trie.first[static_cast<uint8_t>(literal[0])] = true;
  uint32_t at = 0;
  for (const char c : literal) {
    const uint8_t byte = static_cast<uint8_t>(c);
    const auto& children = trie.nodes[at].children;
    const auto edge = std::find_if(children.begin(), children.end(),
                                   [byte](const auto& child) { return child.first == byte; });
    if (edge != children.end()) {
      at = edge->second;
      continue;
    }
    const uint32_t created = static_cast<uint32_t>(trie.nodes.size());
    trie.nodes[at].children.emplace_back(byte, created);
    trie.nodes.emplace_back();
    at = created;
  }
  trie.nodes[at].id = id;
}

std::optional<AddedTokens::Match> AddedTokens::LongestAt(const Trie& trie, std::string_view text,
                                                         size_t begin) {
  std::optional<Match> best;
  uint32_t at = 0;
  for (size_t i = begin; i < text.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(text[i]);
    const auto& children = trie.nodes[at].children;
    const auto edge = std::find_if(children.begin(), children.end(),
                                   [byte](const auto& child) { return child.first == byte; });
    if (edge == children.end()) break;
    at = edge->second;
    if (trie.nodes[at].id >= 0) best = Match{begin, i + 1, trie.nodes[at].id};
  }
  return best;
}

void AddedTokens::FindIn(const Trie& trie, std::string_view text, size_t base,
                         std::vector<Match>& out) {
  for (size_t at = 0; at < text.size();) {
    const bool can_start = trie.first[static_cast<uint8_t>(text[at])];
    const std::optional<Match> match = can_start ? LongestAt(trie, text, at) : std::nullopt;
    if (!match) {
      ++at;
      continue;
    }
    out.push_back({base + match->begin, base + match->end, match->id});
    at = match->end;
  }
}

std::vector<AddedTokens::Match> AddedTokens::FindAll(std::string_view text) const {
  std::vector<Match> exact;
  FindIn(exact_, text, 0, exact);
  std::vector<Match> all;
  size_t begin = 0;
  for (const Match& match : exact) {
    FindIn(normalized_, text.substr(begin, match.begin - begin), begin, all);
    all.push_back(match);
    begin = match.end;
  }
  FindIn(normalized_, text.substr(begin), begin, all);
  return all;
}

}  // namespace baton::router
