#include "router/text/json_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::router {

namespace {

// Python's repr of a float: the shortest digits that round-trip, plain while 1e-4 <= |x| < 1e16.
std::string FloatText(double value) {
  char buffer[40];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  CHECK(end.ec == std::errc());
  const std::string text(buffer, end.ptr);
  const size_t e = text.find('e');
  const bool is_negative = text[0] == '-';
  std::string digits;
  for (size_t i = is_negative ? 1 : 0; i < e; ++i) {
    if (text[i] != '.') digits += text[i];
  }
  const int exponent = std::atoi(text.c_str() + e + 1);
  std::string out = is_negative ? "-" : "";
  const int num_digits = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (num_digits > 1) out += "." + digits.substr(1);
    return out + absl::StrFormat("e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (num_digits <= exponent + 1) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - num_digits), '0') + ".0";
  }
  const size_t point = static_cast<size_t>(exponent) + 1;
  return out + digits.substr(0, point) + "." + digits.substr(point);
}

}  // namespace

std::string_view JsonValue::KindName() const {
  switch (kind_) {
    case Kind::kNull:
      return "null";
    case Kind::kBool:
      return "boolean";
    case Kind::kInteger:
      return "integer";
    case Kind::kFloat:
      return "number";
    case Kind::kString:
      return "string";
    case Kind::kArray:
      return "array";
    case Kind::kObject:
      return "object";
  }
  CHECK(false);
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  for (const Member& member : members_) {
    if (member.first == key) return &member.second;
  }
  return nullptr;
}

const JsonValue* JsonValue::FindNonNull(std::string_view key) const {
  const JsonValue* found = Find(key);
  return found != nullptr && found->is_null() ? nullptr : found;
}

std::optional<int64_t> JsonValue::AsInt64() const {
  if (kind_ == Kind::kInteger) {
    int64_t value = 0;
    const char* end = text_.data() + text_.size();
    const auto parsed = std::from_chars(text_.data(), end, value);
    if (parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
    return value;
  }
  if (kind_ != Kind::kFloat) return std::nullopt;
  const double value = std::strtod(text_.c_str(), nullptr);
  if (value != std::floor(value) || std::abs(value) >= 0x1p63) return std::nullopt;
  return static_cast<int64_t>(value);
}

std::optional<double> JsonValue::AsDouble() const {
  if (!is_number()) return std::nullopt;
  return std::strtod(text_.c_str(), nullptr);
}

std::string JsonValue::Dump() const {
  std::string out;
  DumpTo(out);
  return out;
}

void JsonValue::DumpTo(std::string& out) const {
  switch (kind_) {
    case Kind::kNull:
      out += "null";
      return;
    case Kind::kBool:
      out += bool_ ? "true" : "false";
      return;
    case Kind::kInteger:
      out += text_;
      return;
    case Kind::kFloat:
      out += FloatText(std::strtod(text_.c_str(), nullptr));
      return;
    case Kind::kString:
      AppendJsonString(text_, out);
      return;
    case Kind::kArray:
    case Kind::kObject:
      break;
  }
  const bool is_list = kind_ == Kind::kArray;
  out += is_list ? '[' : '{';
  std::string_view separator;
  for (const JsonValue& item : items_) {
    out += separator;
    item.DumpTo(out);
    separator = ", ";
  }
  for (const Member& member : members_) {
    out += separator;
    AppendJsonString(member.first, out);
    out += ": ";
    member.second.DumpTo(out);
    separator = ", ";
  }
  out += is_list ? ']' : '}';
}

void AppendJsonString(std::string_view text, std::string& out) {
  out += '"';
  for (const char c : text) {
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          out += absl::StrFormat("\\u%04x", static_cast<unsigned>(c));
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

namespace {

// As Python compares them: exactly, so that 9007199254740993 is no 9007199254740992.0.
bool NumbersEqual(const JsonValue& a, const JsonValue& b) {
  if (a.text() == b.text()) return true;
  if (a.kind() == b.kind())
    return a.kind() == JsonValue::Kind::kFloat && a.AsDouble() == b.AsDouble();
  const bool is_a_float = a.kind() == JsonValue::Kind::kFloat;
  const double value = *(is_a_float ? a : b).AsDouble();
  if (value != std::floor(value) || std::isinf(value)) return false;
  const std::string digits = absl::StrFormat("%.0f", value + 0.0);  // all of them; no "-0"
  return digits == (is_a_float ? b : a).text();
}

bool MembersEqual(const JsonValue& a, const JsonValue& b) {
  if (a.members().size() != b.members().size()) return false;
  std::map<std::string_view, const JsonValue*> values;
  for (const auto& [key, value] : a.members()) values.emplace(key, &value);
  return std::all_of(b.members().begin(), b.members().end(), [&](const JsonValue::Member& member) {
    const auto found = values.find(member.first);
    return found != values.end() && JsonEqual(*found->second, member.second);
  });
}

}  // namespace

bool JsonEqual(const JsonValue& a, const JsonValue& b) {
  if (a.is_number() && b.is_number()) return NumbersEqual(a, b);
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case JsonValue::Kind::kBool:
      return a.boolean() == b.boolean();
    case JsonValue::Kind::kString:
      return a.text() == b.text();
    case JsonValue::Kind::kArray:
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(),
                        JsonEqual);
    case JsonValue::Kind::kObject:
      return MembersEqual(a, b);
    default:
      return true;
  }
}

}  // namespace baton::router
