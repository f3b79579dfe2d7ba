#include "router/text/json_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

#include "common/check.h"
#include "router/text/utf8.h"

namespace baton::router {

namespace {

// What is wrong with a text, which the parser quotes: in short and well formed.
std::string Shown(std::string_view what) {
  constexpr size_t kMostBytes = 200;
  std::string out;
  Utf8Stream stream;
  stream.Push(what.substr(0, kMostBytes), out);
  stream.Finish(out);
  return what.size() > kMostBytes ? out + "..." : out;
}

}  // namespace

// Receives the parser's events and builds the tree without recursion.
class JsonBuilder {
 public:
  bool null() { return Add(JsonValue()); }
  bool boolean(bool value) {
    JsonValue out = Of(JsonValue::Kind::kBool, {});
    out.bool_ = value;
    return Add(std::move(out));
  }
  bool number_integer(int64_t value) {
    return Add(Of(JsonValue::Kind::kInteger, std::to_string(value)));
  }
  bool number_unsigned(uint64_t value) {
    return Add(Of(JsonValue::Kind::kInteger, std::to_string(value)));
  }
  // Also an integer of more than 64 bits, which `digits` still spells out.
  bool number_float(double, const std::string& digits) {
    const bool is_float = digits.find_first_of(".eE") != std::string::npos;
    return Add(Of(is_float ? JsonValue::Kind::kFloat : JsonValue::Kind::kInteger, digits));
  }
  bool string(std::string& text) { return Add(Of(JsonValue::Kind::kString, std::move(text))); }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(size_t) { return Open(JsonValue::Kind::kObject); }
  bool start_array(size_t) { return Open(JsonValue::Kind::kArray); }
  bool end_object() { return Close(); }
  bool end_array() { return Close(); }
  bool key(std::string& name) {
    frames_.back().key = std::move(name);
    return true;
  }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) {
    // "[json.exception...] parse error at line 1, column 2: what": only the last part is for
    // clients.
    const std::string_view text = error.what();
    const size_t column = text.find("column ");
    const size_t colon = column == std::string_view::npos ? column : text.find(": ", column);
    const std::string_view what =
        colon == std::string_view::npos ? std::string_view("syntax error") : text.substr(colon + 2);
    error_ = absl::StrFormat("%s at byte %d", Shown(what), position);
    return false;
  }

  JsonValue& root() { return root_; }
  const std::string& error() const { return error_; }
  bool is_too_deep() const { return is_too_deep_; }
  bool has_too_many() const { return num_values_ > JsonValue::kMaxValues; }

 private:
  // Members beyond this are looked up by hash, so that an object stays linear to build.
  static constexpr size_t kIndexedFrom = 16;
  struct Frame {
    JsonValue value;
    std::string key;
    std::unordered_map<std::string, size_t> index;
  };

  static JsonValue Of(JsonValue::Kind kind, std::string text) {
    JsonValue value;
    value.kind_ = kind;
    value.text_ = std::move(text);
    return value;
  }

  bool Open(JsonValue::Kind kind) {
    if (frames_.size() >= JsonValue::kMaxDepth) {
      is_too_deep_ = true;
      return false;
    }
    frames_.push_back({.value = Of(kind, {}), .key = {}, .index = {}});
    return true;
  }

  bool Close() {
    JsonValue value = std::move(frames_.back().value);
    frames_.pop_back();
    return Add(std::move(value));
  }

  bool Add(JsonValue value) {
    if (++num_values_ > JsonValue::kMaxValues) return false;
    if (frames_.empty()) {
      root_ = std::move(value);
      return true;
    }
    Frame& frame = frames_.back();
    if (frame.value.is_array()) {
      frame.value.items_.push_back(std::move(value));
      return true;
    }
    std::vector<JsonValue::Member>& members = frame.value.members_;
    const size_t place = PlaceOf(frame);
    if (place < members.size()) {
      members[place].second = std::move(value);
    } else {
      members.emplace_back(std::move(frame.key), std::move(value));
    }
    return true;
  }

  // Where the frame's key stands or will stand; a new key is put into the index.
  static size_t PlaceOf(Frame& frame) {
    const std::vector<JsonValue::Member>& members = frame.value.members_;
    if (members.size() < kIndexedFrom) {
      size_t i = 0;
      while (i < members.size() && members[i].first != frame.key) ++i;
      return i;
    }
    if (frame.index.empty()) {
      for (size_t i = 0; i < members.size(); ++i) frame.index.emplace(members[i].first, i);
    }
    return frame.index.emplace(frame.key, members.size()).first->second;
  }

  std::vector<Frame> frames_;
  JsonValue root_;
  std::string error_;
  bool is_too_deep_ = false;
  size_t num_values_ = 0;
};

namespace {

// Where the bracket stands that opens level kMaxDepth + 1, counted from 1; well-formed up to there.
size_t TooDeepAt(std::string_view text) {
  size_t depth = 0;
  bool is_in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '"') is_in_string = !is_in_string;
    if (is_in_string && c == '\\') ++i;
    if (is_in_string) continue;
    if ((c == '[' || c == '{') && ++depth > JsonValue::kMaxDepth) return i + 1;
    if (c == ']' || c == '}') --depth;
  }
  return text.size();
}

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

absl::StatusOr<JsonValue> JsonValue::Parse(std::string_view text) {
  JsonBuilder builder;
  const bool is_ok = nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  if (builder.is_too_deep()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("more than %d levels deep at byte %d", kMaxDepth, TooDeepAt(text)));
  }
  if (builder.has_too_many())
    return absl::InvalidArgumentError(absl::StrFormat("more than %d values", kMaxValues));
  if (!is_ok) return absl::InvalidArgumentError(absl::StrFormat("%s", builder.error()));
  return std::move(builder.root());
}

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
