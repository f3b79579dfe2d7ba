#include "tests/vectors/vector_file.h"

#include <algorithm>
#include <charconv>

#include "absl/strings/str_format.h"

namespace baton::vectors {
namespace {

constexpr size_t kShown = 60;  // bytes of a text around a difference

bool IsNumberPart(char c) {
  return (c >= '0' && c <= '9') || c == '.' || c == '-' || c == '+' || c == 'e' || c == 'E';
}

// The text's number around `at`; empty if there is none.
std::string_view NumberAround(std::string_view text, size_t at, size_t& end) {
  size_t begin = at;
  while (begin > 0 && IsNumberPart(text[begin - 1])) --begin;
  end = at;
  while (end < text.size() && IsNumberPart(text[end])) ++end;
  return text.substr(begin, end - begin);
}

std::optional<double> AsDouble(std::string_view text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string Quoted(std::string_view text) {
  std::string out;
  router::AppendJsonString(text, out);
  return out;
}

}  // namespace

FileResult CheckCases(const JsonValue& file,
                      const std::function<Failure(const JsonValue&)>& check) {
  FileResult result;
  const JsonValue* cases = file.Find("cases");
  if (cases == nullptr || !cases->is_array() || cases->items().empty()) {
    result.Count("cases", "the file has no list of cases");
    return result;
  }
  for (size_t i = 0; i < cases->items().size(); ++i) {
    const JsonValue& item = cases->items()[i];
    std::string id = TextOf(item, "id");
    if (id.empty()) id = TextOf(item, "label");
    if (id.empty()) id = absl::StrFormat("case %d", i);
    result.Count(id, check(item));
  }
  return result;
}

std::string TextOf(const JsonValue& object, std::string_view key) {
  const JsonValue* value = object.Find(key);
  return value == nullptr || !value->is_string() ? std::string() : value->text();
}

bool FlagOf(const JsonValue& object, std::string_view key, bool fallback) {
  const JsonValue* value = object.Find(key);
  return value == nullptr || !value->is_bool() ? fallback : value->boolean();
}

std::vector<router::TokenId> IdsOf(const JsonValue* list) {
  std::vector<router::TokenId> ids;
  if (list == nullptr) return ids;
  for (const JsonValue& item : list->items())
    ids.push_back(static_cast<router::TokenId>(item.AsInt64().value_or(-1)));
  return ids;
}

Failure Compare(std::string_view what, std::string_view got, std::string_view want) {
  if (got == want) return std::nullopt;
  const auto [a, b] = std::mismatch(got.begin(), got.end(), want.begin(), want.end());
  const auto at = static_cast<size_t>(a - got.begin());
  const size_t from = at < kShown / 2 ? 0 : at - kShown / 2;
  const auto around = [&](std::string_view text) {
    return Quoted(text.substr(std::min(from, text.size()), kShown));
  };
  return absl::StrFormat("%s differs at byte %d: %s, want %s", what, at, around(got), around(want));
}

Failure CompareIds(std::string_view what, const std::vector<router::TokenId>& got,
                   const std::vector<router::TokenId>& want) {
  if (got == want) return std::nullopt;
  const auto [a, b] = std::mismatch(got.begin(), got.end(), want.begin(), want.end());
  return absl::StrFormat("%s: %d ids, want %d; they differ at %d: %d, want %d", what, got.size(),
                         want.size(), a - got.begin(), a == got.end() ? -1 : *a,
                         b == want.end() ? -1 : *b);
}

bool DifferInSpellingOfNumbers(std::string_view a, std::string_view b) {
  while (true) {
    const auto [at, other] = std::mismatch(a.begin(), a.end(), b.begin(), b.end());
    if (at == a.end() && other == b.end()) return true;
    size_t end_a = 0, end_b = 0;
    const auto offset = static_cast<size_t>(at - a.begin());
    const std::optional<double> left = AsDouble(NumberAround(a, offset, end_a));
    const std::optional<double> right = AsDouble(NumberAround(b, offset, end_b));
    if (!left || !right || *left != *right) return false;
    a.remove_prefix(end_a);
    b.remove_prefix(end_b);
  }
}

}  // namespace baton::vectors
