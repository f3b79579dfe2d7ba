#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::router {

// A parsed JSON text that keeps what protocol.md 2.3 needs: key order (a duplicate key keeps its
// first place and its last value) and the digits of every number. Plain value; any thread.
class JsonValue {
 public:
  enum class Kind { kNull, kBool, kInteger, kFloat, kString, kArray, kObject };
  using Member = std::pair<std::string, JsonValue>;
  static constexpr size_t kMaxDepth = 256;
  static constexpr size_t kMaxValues = 1 << 21;  // a prompt of 1M token ids fits twice

  // kInvalidArgument "<what> at byte N" for bad syntax, bad UTF-8, a float beyond doubles or more
  // than kMaxDepth levels. A number written with '.', 'e' or 'E' is a float; integers are of any
  // length.
  static absl::StatusOr<JsonValue> Parse(std::string_view text);
  // The same of a body or a file, which may begin with a byte order mark.
  static absl::StatusOr<JsonValue> ParseDocument(std::string_view text);

  Kind kind() const { return kind_; }
  bool is_null() const { return kind_ == Kind::kNull; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_number() const { return kind_ == Kind::kInteger || kind_ == Kind::kFloat; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_array() const { return kind_ == Kind::kArray; }
  bool is_object() const { return kind_ == Kind::kObject; }
  // "null", "boolean", "integer", "number", "string", "array", "object": for error messages.
  std::string_view KindName() const;

  bool boolean() const { return bool_; }
  // A string's text, or a number as it was written.
  const std::string& text() const { return text_; }
  const std::vector<JsonValue>& items() const { return items_; }
  const std::vector<Member>& members() const { return members_; }

  // An object's member, or null when absent or when this is no object. Linear in the members.
  const JsonValue* Find(std::string_view key) const;
  // Like Find, but a member whose value is null counts as absent.
  const JsonValue* FindNonNull(std::string_view key) const;

  // The number as int64 if it is one exactly (1.0 is, 1.5 and 1e30 are not).
  std::optional<int64_t> AsInt64() const;
  // The number as the nearest double; nullopt when this is no number.
  std::optional<double> AsDouble() const;

  // Serialised like Python's json.dumps(ensure_ascii=False) (protocol.md 2.3).
  std::string Dump() const;
  void DumpTo(std::string& out) const;

 private:
  friend class JsonParser;
  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  std::string text_;
  std::vector<JsonValue> items_;
  std::vector<Member> members_;
};

// Whether two texts mean the same: members in any order, numbers by value (integers exactly).
bool JsonEqual(const JsonValue& a, const JsonValue& b);

// Appends `text` as a JSON string literal with Python's escapes (protocol.md 2.3).
void AppendJsonString(std::string_view text, std::string& out);

}  // namespace baton::router
