#include "router/openai/ebnf.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"

#include "common/status.h"
#include "router/openai/lark_text.h"

namespace baton::router {
namespace {

constexpr int kMaxDepth = 64;  // of parentheses
constexpr size_t kMaxRules = 1024;

bool IsNameByte(char c) {
  return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-';
}

void AppendUtf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
    return;
  }
  const int following = code < 0x800 ? 1 : (code < 0x10000 ? 2 : 3);
  constexpr uint32_t kLeads[] = {0, 0xc0, 0xe0, 0xf0};
  out += static_cast<char>(kLeads[following] | (code >> (6 * following)));
  for (int i = following - 1; i >= 0; --i)
    out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3f));
}

// A rule's body in lark, but for the names: they stand as numbers between kNameMark bytes, because
// whether a rule is a terminal is known at the end.
constexpr char kNameMark = '\x01';
struct Rule {
  std::string name, body;
  std::vector<size_t> uses;
  bool is_defined = false;
};

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  absl::StatusOr<std::vector<Rule>> Read() {
    Skip();
    while (at_ < text_.size()) {
      const std::string_view name = Name();
      Skip();
      if (name.empty() || !text_.substr(at_).starts_with("::=")) return Wrong("expected NAME ::=");
      at_ += 3;
      Skip();
      ASSIGN_OR_RETURN(const size_t rule, IndexOf(name));
      if (rules_[rule].is_defined)
        return Wrong(absl::StrFormat("the rule %s is defined twice", name));
      rules_[rule].is_defined = true;
      current_ = rule;
      std::string body;
      RETURN_IF_ERROR(Alternatives(0, body));
      rules_[rule].body = std::move(body);
    }
    for (const Rule& rule : rules_)
      if (!rule.is_defined) return Wrong(absl::StrFormat("the rule %s is not defined", rule.name));
    return std::move(rules_);
  }

 private:
  absl::Status Wrong(std::string_view what) const {
    const auto line =
        1 + std::count(text_.begin(), text_.begin() + static_cast<ptrdiff_t>(at_), '\n');
    return absl::InvalidArgumentError(absl::StrFormat("EBNF line %d: %s", line, what));
  }

  char Now() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  // White space and comments.
  void Skip() {
    while (at_ < text_.size()) {
      if (text_[at_] == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (absl::ascii_isspace(static_cast<unsigned char>(text_[at_]))) {
        ++at_;
      } else {
        return;
      }
    }
  }

  std::string_view Name() {
    const size_t from = at_;
    while (at_ < text_.size() && IsNameByte(text_[at_])) ++at_;
    return text_.substr(from, at_ - from);
  }

  absl::StatusOr<size_t> IndexOf(std::string_view name) {
    const auto [entry, is_new] = indices_.try_emplace(std::string(name), rules_.size());
    if (!is_new) return entry->second;
    if (rules_.size() == kMaxRules) return Wrong(absl::StrFormat("more than %d rules", kMaxRules));
    rules_.push_back({.name = std::string(name), .body = {}, .uses = {}, .is_defined = false});
    return entry->second;
  }

  // Whether the next rule begins here.
  bool IsRuleHead() {
    const size_t from = at_;
    const bool has_name = !Name().empty();
    Skip();
    const bool is_head = has_name && text_.substr(at_).starts_with("::=");
    at_ = from;
    return is_head;
  }

  absl::Status Alternatives(int depth, std::string& out) {
    if (depth > kMaxDepth) return Wrong(absl::StrFormat("more than %d parentheses", kMaxDepth));
    bool is_empty = true;  // the present alternative
    while (true) {
      const char c = Now();
      const bool is_end = c == '\0' || c == ')' || (IsNameByte(c) && IsRuleHead());
      if (is_end || c == '|') {
        if (is_empty) out += "\"\" ";
        if (is_end) return absl::OkStatus();
        out += "| ";
        is_empty = true;
        ++at_;
        Skip();
        continue;
      }
      RETURN_IF_ERROR(Item(depth, out));
      is_empty = false;
    }
  }

  absl::Status Item(int depth, std::string& out) {
    const char c = Now();
    if (c == '"') {
      RETURN_IF_ERROR(Literal(out));
    } else if (c == '[') {
      RETURN_IF_ERROR(Class(out));
    } else if (c == '.') {
      ++at_;
      out += "/(?s:.)/";
    } else if (c == '(') {
      ++at_;
      Skip();
      out += "(";
      RETURN_IF_ERROR(Alternatives(depth + 1, out));
      if (Now() != ')') return Wrong("a parenthesis is not closed");
      ++at_;
      out += ")";
    } else if (IsNameByte(c)) {
      ASSIGN_OR_RETURN(const size_t rule, IndexOf(Name()));
      rules_[current_].uses.push_back(rule);
      absl::StrAppendFormat(&out, "%c%d%c", kNameMark, rule, kNameMark);
    } else {
      return Wrong("a character that begins no element");
    }
    Skip();
    return Repetition(out);
  }

  absl::Status Repetition(std::string& out) {
    const char c = Now();
    if (c == '*' || c == '+' || c == '?') {
      out += c;
      ++at_;
    } else if (c == '{') {
      const size_t end = text_.find('}', at_);
      if (end == std::string_view::npos) return Wrong("'{' without '}'");
      const std::string_view inside = text_.substr(at_ + 1, end - at_ - 1);
      const bool is_fine = inside.size() <= 16 && !inside.empty() &&
                           absl::ascii_isdigit(static_cast<unsigned char>(inside[0])) &&
                           inside.find_first_not_of("0123456789, ") == std::string_view::npos &&
                           std::count(inside.begin(), inside.end(), ',') <= 1;
      if (!is_fine) return Wrong("a repetition must be {m}, {m,} or {m,n}");
      absl::StrAppendFormat(&out, "{%s}", inside);
      at_ = end + 1;
    }
    out += ' ';
    Skip();
    return absl::OkStatus();
  }

  // \xHH, \uHHHH, \UHHHHHHHH and the short ones.
  absl::StatusOr<uint32_t> Escape() {
    if (at_ + 1 == text_.size()) return Wrong("an escape is not complete");
    const char kind = text_[at_ + 1];
    at_ += 2;
    const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : kind == 'U' ? 8 : 0;
    if (digits == 0) {
      constexpr std::string_view kFrom = "nrt0", kTo("\n\r\t\0", 4);
      const size_t place = kFrom.find(kind);
      const bool is_itself = absl::ascii_ispunct(static_cast<unsigned char>(kind)) != 0;
      if (place == std::string_view::npos && !is_itself) return Wrong("unknown escape");
      return static_cast<unsigned char>(is_itself ? kind : kTo[place]);
    }
    uint32_t code = 0;
    for (size_t i = 0; i < digits; ++i, ++at_) {
      const auto byte = static_cast<unsigned char>(Now());
      if (!absl::ascii_isxdigit(byte)) return Wrong("an escape lacks hexadecimal digits");
      code = code * 16 +
             static_cast<uint32_t>(absl::ascii_isdigit(byte) ? byte - '0' : (byte | 32) - 'a' + 10);
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      return Wrong("an escape is no character");
    return code;
  }

  absl::Status Literal(std::string& out) {
    std::string literal;
    for (++at_; Now() != '"';) {
      if (at_ >= text_.size() || Now() == '\n') return Wrong("a string is not closed");
      if (Now() == '\\') {
        ASSIGN_OR_RETURN(const uint32_t code, Escape());
        AppendUtf8(code, literal);
      } else {
        literal += text_[at_++];
      }
    }
    ++at_;
    out += LarkLiteral(literal);
    return absl::OkStatus();
  }

  absl::Status Class(std::string& out) {
    out += "/[";
    ++at_;
    if (Now() == '^') {
      out += '^';
      ++at_;
    }
    for (bool is_first = true; is_first || Now() != ']'; is_first = false) {
      if (at_ >= text_.size() || Now() == '\n') return Wrong("'[' without ']'");
      if (is_first && Now() == ']') return Wrong("'[]' allows nothing");
      if (Now() == '\\') {
        ASSIGN_OR_RETURN(const uint32_t code, Escape());
        absl::StrAppendFormat(&out, "\\u{%x}", code);
      } else {
        const char c = text_[at_++];
        if (c == '/' || c == '[' || c == '&' || c == '~' || c == '^') out += '\\';
        out += c;
      }
    }
    ++at_;
    out += "]/";
    return absl::OkStatus();
  }

  const std::string_view text_;
  size_t at_ = 0;
  std::vector<Rule> rules_;
  std::map<std::string, size_t, std::less<>> indices_;
  size_t current_ = 0;
};

// Rules that reach no cycle: they are regular, and as terminals they are matched as a whole instead
// of word by word. Those without a use are found first, then their users.
std::vector<bool> FindTerminals(const std::vector<Rule>& rules) {
  std::vector<std::vector<size_t>> users(rules.size());
  std::vector<size_t> open(rules.size());  // uses that are not known to be terminals
  std::vector<size_t> ready;
  for (size_t i = 0; i < rules.size(); ++i) {
    open[i] = rules[i].uses.size();
    for (const size_t use : rules[i].uses) users[use].push_back(i);
    if (open[i] == 0) ready.push_back(i);
  }
  std::vector<bool> out(rules.size());
  while (!ready.empty()) {
    const size_t rule = ready.back();
    ready.pop_back();
    out[rule] = true;
    for (const size_t user : users[rule])
      if (--open[user] == 0) ready.push_back(user);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::string> EbnfToLark(std::string_view text) {
  if (text.find(kNameMark) != std::string_view::npos)
    return absl::InvalidArgumentError("EBNF: a control character");
  ASSIGN_OR_RETURN(const std::vector<Rule> rules, Reader(text).Read());
  const auto root =
      std::find_if(rules.begin(), rules.end(), [](const Rule& r) { return r.name == "root"; });
  if (root == rules.end()) return absl::InvalidArgumentError("EBNF: there is no rule named root");
  const std::vector<bool> terminals = FindTerminals(rules);
  const auto name = [&](size_t i) { return absl::StrFormat("%c%d", terminals[i] ? 'R' : 'r', i); };
  std::string out = absl::StrFormat("start: %s\n", name(static_cast<size_t>(root - rules.begin())));
  for (size_t i = 0; i < rules.size(); ++i) {
    out += name(i) + ": ";
    const std::string& body = rules[i].body;
    for (size_t at = 0; at < body.size();) {
      const size_t mark = std::min(body.find(kNameMark, at), body.size());
      out.append(body, at, mark - at);
      if (mark == body.size()) break;
      const size_t end = body.find(kNameMark, mark + 1);
      out += name(std::stoul(body.substr(mark + 1, end - mark - 1)));
      at = end + 1;
    }
    out += "\n";
  }
  return out;
}

}  // namespace baton::router
