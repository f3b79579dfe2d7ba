#include "router/text/pretokenizer.h"

#include <cstdint>

namespace baton::router {
namespace {

constexpr uint8_t kWordPart = kLetter | kMark;
constexpr size_t kMaxDigits = 3;  // P1: \p{N}{1,3}

class Reader {
 public:
  Reader(const UnicodeClasses& classes, std::string_view text) : classes_(classes), text_(text) {}

  ClassedChar At(size_t offset) const { return classes_.At(text_, offset); }

  // The end of the run of characters that have one of `bits`, from `offset`.
  size_t RunEnd(size_t offset, uint8_t bits) const {
    for (ClassedChar c = At(offset); c.bits & bits; c = At(offset)) offset += c.size;
    return offset;
  }

  std::string_view text() const { return text_; }

 private:
  const UnicodeClasses& classes_;
  std::string_view text_;
};

// White space at `begin`: the alternatives `\s*[\r\n]+`, `\s+(?!\S)`, `\s+` of P3, in this order.
// Returns the match's end; the look-ahead holds at the end of the piece and in front of more white
// space.
size_t MatchSpace(const Reader& reader, size_t begin) {
  size_t end = begin;
  size_t last_begin = begin;
  size_t newline_end = 0;
  for (ClassedChar c = reader.At(end); c.bits & kSpace; c = reader.At(end)) {
    last_begin = end;
    end += c.size;
    if (c.bits & kNewline) newline_end = end;
  }
  if (newline_end > 0) return newline_end;
  const bool is_at_end = end == reader.text().size();
  return is_at_end || last_begin == begin ? end : last_begin;
}

// The end of P3's match at `begin`, or `begin` when no alternative matches there.
size_t Match(const Reader& reader, size_t begin) {
  const ClassedChar first = reader.At(begin);
  const size_t second_at = begin + first.size;
  const ClassedChar second = reader.At(second_at);
  const bool is_ascii_mark = first.size == 1 && (first.bits & kPunctuation);
  if (is_ascii_mark && (second.bits & kAsciiLetter)) return reader.RunEnd(second_at, kAsciiLetter);
  if (first.bits & kWordPart) return reader.RunEnd(begin, kWordPart);
  if (!(first.bits & (kNewline | kPunctuation)) && (second.bits & kWordPart)) {
    return reader.RunEnd(second_at, kWordPart);
  }
  const bool is_blank = reader.text()[begin] == ' ';
  if ((first.bits & kPunctuation) || (is_blank && (second.bits & kPunctuation))) {
    return reader.RunEnd(reader.RunEnd(second_at, kPunctuation), kNewline);
  }
  return first.bits & kSpace ? MatchSpace(reader, begin) : begin;
}

// P3 over one piece of the passes before; `base` is its offset in the whole text.
void SplitPiece(const Reader& reader, size_t base, std::vector<size_t>& ends) {
  const size_t size = reader.text().size();
  size_t gap = 0;  // unmatched bytes right before `at`
  for (size_t at = 0; at < size;) {
    const size_t end = Match(reader, at);
    if (end == at) {
      const size_t step = reader.At(at).size;
      at += step;
      gap += step;
      continue;
    }
    if (gap > 0) ends.push_back(base + at);
    ends.push_back(base + end);
    gap = 0;
    at = end;
  }
  if (gap > 0) ends.push_back(base + size);
}

// P1 over a run of \p{N}: three at a time. No later pass cuts these.
void SplitNumbers(const Reader& reader, size_t begin, size_t end, std::vector<size_t>& ends) {
  size_t count = 0;
  for (size_t at = begin; at < end;) {
    at += reader.At(at).size;
    if (++count < kMaxDigits && at < end) continue;
    ends.push_back(at);
    count = 0;
  }
}

}  // namespace

void Pretokenizer::Split(std::string_view text, std::vector<size_t>& ends) const {
  const Reader whole(classes_, text);
  for (size_t begin = 0; begin < text.size();) {
    const uint8_t kind = whole.At(begin).bits & (kNumber | kIdeograph);
    size_t end = begin;
    for (ClassedChar c = whole.At(end); c.size > 0 && (c.bits & (kNumber | kIdeograph)) == kind;) {
      end += c.size;
      c = whole.At(end);
    }
    if (kind & kNumber) {
      SplitNumbers(whole, begin, end, ends);
    } else {
      SplitPiece(Reader(classes_, text.substr(begin, end - begin)), begin, ends);
    }
    begin = end;
  }
}

}  // namespace baton::router
