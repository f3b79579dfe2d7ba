#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "router/text/json_value.h"
#include "router/text/utf8.h"

namespace baton::router {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101u;
constexpr uint64_t kTops = 0x80 * kOnes;

// The top bit of each byte that ends a stretch of a string that stands for itself and is ASCII: a
// quote, a backslash, a control character or one of more bytes. Bits above the lowest may be wrong.
uint64_t StretchEnds(uint64_t word) {
  const uint64_t quotes = word ^ ('"' * kOnes);
  const uint64_t backslashes = word ^ ('\\' * kOnes);
  const uint64_t ends = (quotes - kOnes) | (backslashes - kOnes) | (word - 0x20 * kOnes) | word;
  return ends & kTops;
}

// Where the characters of a string that stand for themselves end, from `at`: before a quote, a
// backslash, a control character, ill-formed UTF-8 or at the end.
size_t StretchEnd(std::string_view text, size_t at) {
  while (at < text.size()) {
    uint64_t word;
    if (text.size() - at >= sizeof(word)) {
      static_assert(std::endian::native == std::endian::little);
      std::memcpy(&word, text.data() + at, sizeof(word));
      const uint64_t ends = StretchEnds(word);
      at += ends == 0 ? sizeof(word) : static_cast<size_t>(std::countr_zero(ends)) / 8;
      if (ends == 0) continue;
    }
    const uint8_t first = static_cast<uint8_t>(text[at]);
    if (first == '"' || first == '\\' || first < 0x20) return at;
    const Utf8Char next = DecodeUtf8Inline(text.substr(at));
    if (next.kind != Utf8Char::Kind::kValid) return at;
    at += next.size;
  }
  return at;
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

void AppendUtf8(uint32_t c, std::string& out) {
  const auto tail = [c](uint32_t shift) { return static_cast<char>(0x80 | (c >> shift & 0x3F)); };
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xC0 | c >> 6), tail(0)};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xE0 | c >> 12), tail(6), tail(0)};
  } else {
    out += {static_cast<char>(0xF0 | c >> 18), tail(12), tail(6), tail(0)};
  }
}

}  // namespace

// Reads one text from front to back without recursion. One thread; Parse once.
class JsonParser {
 public:
  explicit JsonParser(std::string_view text) : text_(text) {}

  absl::StatusOr<JsonValue> Parse() {
    if (text_.starts_with("\xEF\xBB\xBF")) at_ = 3;  // a byte order mark
    do {
      RETURN_IF_ERROR(ReadValue());
      RETURN_IF_ERROR(ReadOn());
    } while (!frames_.empty());
    SkipSpace();
    if (at_ < text_.size()) return Error("unexpected text after the value");
    return std::move(root_);
  }

 private:
  // Members beyond this are looked up by hash, so that an object stays linear to build.
  static constexpr size_t kIndexedFrom = 16;
  // A number that is shorter and has no exponent is finite.
  static constexpr size_t kMaxFiniteDigits = 300;
  struct Frame {
    JsonValue value;
    std::string key;
    std::unordered_map<std::string, size_t> index;
  };

  absl::Status Error(std::string_view what) const {
    if (at_ >= text_.size()) what = "unexpected end of input";
    return absl::InvalidArgumentError(absl::StrFormat("%s at byte %d", what, at_ + 1));
  }

  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }

  // A value up to its end, or up to the end of the first value within it.
  absl::Status ReadValue() {
    while (true) {
      SkipSpace();
      const char c = Peek();
      if (c != '{' && c != '[') return ReadScalar(c);
      const bool is_object = c == '{';
      RETURN_IF_ERROR(Open(is_object ? JsonValue::Kind::kObject : JsonValue::Kind::kArray));
      SkipSpace();
      if (Peek() == (is_object ? '}' : ']')) return Close();
      if (is_object) RETURN_IF_ERROR(ReadKey());
    }
  }

  // Behind a value: the ends of what holds it, up to where the next value is to be read.
  absl::Status ReadOn() {
    while (!frames_.empty()) {
      SkipSpace();
      const bool is_object = frames_.back().value.kind_ == JsonValue::Kind::kObject;
      const char c = Peek();
      if (c == ',') {
        ++at_;
        if (is_object) RETURN_IF_ERROR(ReadKey());
        return absl::OkStatus();
      }
      if (c != (is_object ? '}' : ']'))
        return Error(is_object ? "expected ',' or '}'" : "expected ',' or ']'");
      RETURN_IF_ERROR(Close());
    }
    return absl::OkStatus();
  }

  absl::Status ReadKey() {
    SkipSpace();
    if (Peek() != '"') return Error("expected a string as key");
    std::string& key = frames_.back().key;
    key.clear();
    RETURN_IF_ERROR(ReadString(key));
    SkipSpace();
    if (Peek() != ':') return Error("expected ':'");
    ++at_;
    return absl::OkStatus();
  }

  absl::Status ReadScalar(char first) {
    JsonValue value;
    if (first == '"') {
      value.kind_ = JsonValue::Kind::kString;
      RETURN_IF_ERROR(ReadString(value.text_));
    } else if (first == '-' || IsDigit(first)) {
      RETURN_IF_ERROR(ReadNumber(value));
    } else if (TakeWord("true") || TakeWord("false")) {
      value.kind_ = JsonValue::Kind::kBool;
      value.bool_ = first == 't';
    } else if (!TakeWord("null")) {
      return Error("expected a value");
    }
    return Add(std::move(value));
  }

  bool TakeWord(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  absl::Status ReadDigits() {
    if (!IsDigit(Peek())) return Error("expected a digit");
    while (IsDigit(Peek())) ++at_;
    return absl::OkStatus();
  }

  absl::Status ReadNumber(JsonValue& value) {
    const size_t begin = at_;
    if (Peek() == '-') ++at_;
    if (Peek() == '0') {
      ++at_;
    } else {
      RETURN_IF_ERROR(ReadDigits());
    }
    const size_t integer_end = at_;
    if (Peek() == '.') {
      ++at_;
      RETURN_IF_ERROR(ReadDigits());
    }
    const bool has_exponent = Peek() == 'e' || Peek() == 'E';
    if (has_exponent) {
      ++at_;
      if (Peek() == '+' || Peek() == '-') ++at_;
      RETURN_IF_ERROR(ReadDigits());
    }
    const bool is_float = at_ > integer_end;
    value.kind_ = is_float ? JsonValue::Kind::kFloat : JsonValue::Kind::kInteger;
    value.text_ = text_.substr(begin, at_ - begin);
    if (value.text_ == "-0") value.text_ = "0";
    const bool may_overflow = has_exponent || value.text_.size() > kMaxFiniteDigits;
    if (may_overflow && std::isinf(std::strtod(value.text_.c_str(), nullptr))) {
      return absl::InvalidArgumentError(
          absl::StrFormat("number out of range at byte %d", begin + 1));
    }
    return absl::OkStatus();
  }

  // From its quote to behind the other one.
  absl::Status ReadString(std::string& out) {
    ++at_;
    while (true) {
      const size_t end = StretchEnd(text_, at_);
      out.append(text_, at_, end - at_);
      at_ = end;
      switch (Peek()) {
        case '"':
          ++at_;
          return absl::OkStatus();
        case '\\':
          ++at_;
          RETURN_IF_ERROR(ReadEscape(out));
          break;
        default:
          return Error(static_cast<uint8_t>(Peek()) < 0x20 ? "control character in a string"
                                                           : "ill-formed UTF-8");
      }
    }
  }

  absl::Status ReadEscape(std::string& out) {
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeant = "\"\\/\b\f\n\r\t";
    const char name = Peek();
    const size_t which = kNames.find(name);
    if (which != std::string_view::npos) {
      out += kMeant[which];
      ++at_;
      return absl::OkStatus();
    }
    if (name != 'u') return Error("unknown escape in a string");
    ++at_;
    uint32_t c = 0;
    RETURN_IF_ERROR(ReadHex(c));
    if (c >= 0xDC00 && c < 0xE000) return Error("low surrogate without a high one before it");
    if (c >= 0xD800 && c < 0xDC00) {
      uint32_t low = 0;
      if (!TakeWord("\\u")) return Error("high surrogate without a low one behind it");
      RETURN_IF_ERROR(ReadHex(low));
      if (low < 0xDC00 || low >= 0xE000) return Error("high surrogate without a low one behind it");
      c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
    }
    AppendUtf8(c, out);
    return absl::OkStatus();
  }

  absl::Status ReadHex(uint32_t& value) {
    for (int i = 0; i < 4; ++i) {
      const char c = Peek();
      const char lower = static_cast<char>(c | 0x20);
      if (IsDigit(c)) {
        value = value << 4 | static_cast<uint32_t>(c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        value = value << 4 | static_cast<uint32_t>(lower - 'a' + 10);
      } else {
        return Error("expected four hex digits");
      }
      ++at_;
    }
    return absl::OkStatus();
  }

  absl::Status Open(JsonValue::Kind kind) {
    if (frames_.size() >= JsonValue::kMaxDepth) {
      return absl::InvalidArgumentError(
          absl::StrFormat("more than %d levels deep at byte %d", JsonValue::kMaxDepth, at_ + 1));
    }
    ++at_;
    frames_.emplace_back().value.kind_ = kind;
    return absl::OkStatus();
  }

  absl::Status Close() {
    ++at_;
    JsonValue value = std::move(frames_.back().value);
    frames_.pop_back();
    return Add(std::move(value));
  }

  absl::Status Add(JsonValue value) {
    if (++num_values_ > JsonValue::kMaxValues)
      return absl::InvalidArgumentError(
          absl::StrFormat("more than %d values", JsonValue::kMaxValues));
    if (frames_.empty()) {
      root_ = std::move(value);
      return absl::OkStatus();
    }
    Frame& frame = frames_.back();
    if (frame.value.is_array()) {
      frame.value.items_.push_back(std::move(value));
      return absl::OkStatus();
    }
    std::vector<JsonValue::Member>& members = frame.value.members_;
    const size_t place = PlaceOf(frame);
    if (place < members.size()) {
      members[place].second = std::move(value);
    } else {
      members.emplace_back(std::move(frame.key), std::move(value));
    }
    return absl::OkStatus();
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

  const std::string_view text_;
  size_t at_ = 0;
  std::vector<Frame> frames_;
  JsonValue root_;
  size_t num_values_ = 0;
};

absl::StatusOr<JsonValue> JsonValue::Parse(std::string_view text) {
  return JsonParser(text).Parse();
}

}  // namespace baton::router
