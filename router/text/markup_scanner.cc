#include "router/text/markup_scanner.h"

#include <algorithm>
#include <array>
#include <utility>

namespace baton::router {
namespace {

// What MarkupScanner knows by spelling; an end of sentence is no text (protocol.md 4).
struct Literal {
  std::string_view text;
  Markup markup;
  bool is_dropped;
};
constexpr std::array<Literal, 4> kLiterals = {{
    {"<think>", Markup::kThinkOpen, false},
    {"</think>", Markup::kThinkClose, false},
    {"｜DSML｜", Markup::kDsml, false},
    {"<｜end▁of▁sentence｜>", Markup::kNone, true},
}};

const Literal* LiteralAt(std::string_view text) {
  for (const Literal& literal : kLiterals) {
    if (text.starts_with(literal.text)) return &literal;
  }
  return nullptr;
}

bool MayBecomeLiteral(std::string_view text) {
  return std::any_of(kLiterals.begin(), kLiterals.end(),
                     [text](const Literal& literal) { return literal.text.starts_with(text); });
}

}  // namespace

std::vector<MarkupScanner::Piece> MarkupScanner::Push(std::string_view text) {
  std::vector<Piece> pieces;
  held_ += text;
  std::string plain;
  size_t at = 0;
  while (at < held_.size()) {
    const std::string_view rest = std::string_view(held_).substr(at);
    if (const Literal* literal = LiteralAt(rest)) {
      if (!plain.empty()) pieces.push_back({.text = std::exchange(plain, {})});
      if (!literal->is_dropped) {
        pieces.push_back({.text = std::string(literal->text), .markup = literal->markup});
      }
      at += literal->text.size();
      continue;
    }
    if (MayBecomeLiteral(rest)) break;
    plain += held_[at++];
  }
  held_.erase(0, at);
  if (!plain.empty()) pieces.push_back({.text = std::move(plain)});
  return pieces;
}

std::vector<MarkupScanner::Piece> MarkupScanner::Finish() {
  if (held_.empty()) return {};
  return {{.text = std::exchange(held_, {})}};
}

}  // namespace baton::router
