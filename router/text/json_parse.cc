#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "simdjson.h"

#include "router/text/json_value.h"

namespace baton::router {
namespace {

namespace ondemand = simdjson::ondemand;
using simdjson::error_code;

// simdjson does not say where a text goes wrong: what it refuses is read again by the other parser,
// which tells here.
class ErrorFinder : public nlohmann::json::json_sax_t {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(int64_t) override { return true; }
  bool number_unsigned(uint64_t) override { return true; }
  bool number_float(double, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(nlohmann::json::binary_t&) override { return true; }
  bool start_object(size_t) override { return true; }
  bool key(std::string&) override { return true; }
  bool end_object() override { return true; }
  bool start_array(size_t) override { return true; }
  bool end_array() override { return true; }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    // "[json.exception...] parse error at line 1, column 2: what; last read: 'text'", and without
    // a place for numbers beyond a double. The text read may be long and ill-formed.
    std::string_view what = error.what();
    const size_t place = what.find(": ");
    what = place == what.npos ? "number out of range" : what.substr(place + 2);
    what = what.substr(0, what.find("; last read: "));
    found_ = absl::StrFormat("%s at byte %d", what, position);
    return false;
  }
  // Empty when nothing was found.
  const std::string& found() const { return found_; }

 private:
  std::string found_;
};

}  // namespace

// Reads one text with simdjson and builds the tree. One thread; Parse once.
class JsonParser {
 public:
  JsonParser(std::string_view text, bool may_have_mark)
      : text_(text), may_have_mark_(may_have_mark) {}

  absl::StatusOr<JsonValue> Parse() {
    constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
    const bool has_mark = text_.starts_with(kByteOrderMark);
    if (has_mark && !may_have_mark_)
      return absl::InvalidArgumentError("a byte order mark at byte 1");
    mark_bytes_ = has_mark ? kByteOrderMark.size() : 0;
    // As the one item of a list, so that a lone number or string is no special case.
    padded_.reserve(text_.size() + 2 + simdjson::SIMDJSON_PADDING);
    padded_ += '[';
    padded_ += text_.substr(mark_bytes_);
    padded_ += ']';
    const size_t size = padded_.size();
    padded_.append(simdjson::SIMDJSON_PADDING, ' ');
    JsonValue root;
    const error_code error = ReadAll(size, root);
    if (error == simdjson::SUCCESS) return root;
    if (message_.empty()) {
      ErrorFinder finder;
      nlohmann::json::sax_parse(text_, &finder);
      message_ = finder.found();
    }
    // A zero byte behind the value is the end of the text to the other parser.
    if (message_.empty()) {
      message_ = absl::StrFormat("unexpected character at byte %d",
                                 std::min(text_.find('\0'), text_.size()) + 1);
    }
    return absl::InvalidArgumentError(message_);
  }

 private:
  // Members beyond this are looked up by hash, so that an object stays linear to build.
  static constexpr size_t kIndexedFrom = 16;
  using Index = std::unordered_map<std::string, size_t>;

  error_code ReadAll(size_t size, JsonValue& root) {
    ondemand::parser parser;
    ondemand::document document;
    ondemand::array items;
    if (error_code e = parser.iterate(padded_.data(), size, padded_.size()).get(document)) return e;
    if (error_code e = document.get_array().get(items)) return e;
    size_t num_items = 0;
    for (auto item : items) {
      if (++num_items > 1) return simdjson::TAPE_ERROR;
      if (error_code e = Read(item, 0, root)) return e;
    }
    const bool is_at_end = document.current_location().error() == simdjson::OUT_OF_BOUNDS;
    return num_items == 1 && is_at_end ? simdjson::SUCCESS : simdjson::TAPE_ERROR;
  }

  // `out` is null before. `depth`: of the lists and objects around it.
  error_code Read(simdjson::simdjson_result<ondemand::value> in, size_t depth, JsonValue& out) {
    ondemand::value value;
    ondemand::json_type type;
    if (error_code e = std::move(in).get(value)) return e;
    if (error_code e = value.type().get(type)) return e;
    const std::string_view token = value.raw_json_token();
    // Counted from 1: the list's bracket stands before the text.
    value_at_ = static_cast<size_t>(token.data() - padded_.data()) + mark_bytes_;
    if (++num_values_ > JsonValue::kMaxValues)
      return Limit(absl::StrFormat("more than %d values", JsonValue::kMaxValues));
    switch (type) {
      case ondemand::json_type::array:
        return ReadArray(value, depth, out);
      case ondemand::json_type::object:
        return ReadObject(value, depth, out);
      case ondemand::json_type::number:
        return ReadNumber(value, token, out);
      case ondemand::json_type::string: {
        std::string_view text;
        if (error_code e = value.get_string().get(text)) return e;
        out.kind_ = JsonValue::Kind::kString;
        out.text_ = text;
        return simdjson::SUCCESS;
      }
      case ondemand::json_type::boolean:
        out.kind_ = JsonValue::Kind::kBool;
        return value.get_bool().get(out.bool_);
      case ondemand::json_type::null: {
        bool is_null = false;
        if (error_code e = value.is_null().get(is_null)) return e;
        return is_null ? simdjson::SUCCESS : simdjson::N_ATOM_ERROR;
      }
    }
    return simdjson::TAPE_ERROR;
  }

  static bool IsInteger(std::string_view token) {
    if (token.starts_with('-')) token.remove_prefix(1);
    const bool has_digits = !token.empty() && token.find_first_not_of("0123456789") == token.npos;
    return has_digits && (token.size() == 1 || token[0] != '0');
  }

  // `token` may go on with white space. It is read as a double only to be checked; what the check
  // wrongly refuses is left to be skipped.
  static error_code ReadNumber(ondemand::value& in, std::string_view token, JsonValue& out) {
    token = token.substr(0, token.find_last_not_of(" \t\r\n") + 1);
    double checked;
    const error_code error = in.get_double().get(checked);
    // simdjson refuses an exponent of 19 digits, and takes a zero byte for the end of a number.
    if (error != simdjson::SUCCESS && !IsInteger(token) && !nlohmann::json::accept(token))
      return error;
    if (token.find('\0') != token.npos) return simdjson::NUMBER_ERROR;
    out.text_ = token;
    const bool is_float = out.text_.find_first_of(".eE") != std::string::npos;
    out.kind_ = is_float ? JsonValue::Kind::kFloat : JsonValue::Kind::kInteger;
    if (out.text_ == "-0") out.text_ = "0";
    return simdjson::SUCCESS;
  }

  error_code ReadArray(ondemand::value& in, size_t depth, JsonValue& out) {
    if (depth >= JsonValue::kMaxDepth) return TooDeep();
    ondemand::array items;
    if (error_code e = in.get_array().get(items)) return e;
    out.kind_ = JsonValue::Kind::kArray;
    for (auto item : items) {
      if (error_code e = Read(item, depth + 1, out.items_.emplace_back())) return e;
    }
    return simdjson::SUCCESS;
  }

  error_code ReadObject(ondemand::value& in, size_t depth, JsonValue& out) {
    if (depth >= JsonValue::kMaxDepth) return TooDeep();
    ondemand::object members;
    if (error_code e = in.get_object().get(members)) return e;
    out.kind_ = JsonValue::Kind::kObject;
    Index index;
    for (auto member : members) {
      std::string_view key;
      if (error_code e = member.unescaped_key().get(key)) return e;
      JsonValue& value = Place(std::string(key), out.members_, index);
      if (error_code e = Read(member.value(), depth + 1, value)) return e;
    }
    return simdjson::SUCCESS;
  }

  // Where the value of `key` belongs, emptied.
  static JsonValue& Place(std::string key, std::vector<JsonValue::Member>& members, Index& index) {
    size_t place = 0;
    if (members.size() < kIndexedFrom) {
      while (place < members.size() && members[place].first != key) ++place;
    } else {
      if (index.empty()) {
        for (size_t i = 0; i < members.size(); ++i) index.emplace(members[i].first, i);
      }
      place = index.emplace(key, members.size()).first->second;
    }
    if (place < members.size()) return members[place].second = JsonValue();
    return members.emplace_back(std::move(key), JsonValue()).second;
  }

  error_code TooDeep() {
    return Limit(
        absl::StrFormat("more than %d levels deep at byte %d", JsonValue::kMaxDepth, value_at_));
  }

  error_code Limit(std::string message) {
    message_ = std::move(message);
    return simdjson::CAPACITY;
  }

  const std::string_view text_;
  const bool may_have_mark_;
  size_t mark_bytes_ = 0;
  std::string padded_;
  size_t num_values_ = 0;
  size_t value_at_ = 0;
  std::string message_;  // when the text passes a limit of ours
};

absl::StatusOr<JsonValue> JsonValue::Parse(std::string_view text) {
  return JsonParser(text, false).Parse();
}

absl::StatusOr<JsonValue> JsonValue::ParseDocument(std::string_view text) {
  return JsonParser(text, true).Parse();
}

}  // namespace baton::router
