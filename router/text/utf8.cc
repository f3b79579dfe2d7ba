#include "router/text/utf8.h"

namespace baton::router {
namespace {

// The first byte's promise: total size and the allowed range of the second byte (Unicode 3.9, table
// 3-7).
struct Lead {
  size_t size = 0;  // 0: no first byte
  uint8_t low = 0x80, high = 0xBF;
};

Lead LeadOf(uint8_t byte) {
  if (byte < 0x80) return {.size = 1};
  if (byte < 0xC2) return {};
  if (byte < 0xE0) return {.size = 2};
  if (byte == 0xE0) return {.size = 3, .low = 0xA0, .high = 0xBF};
  if (byte == 0xED) return {.size = 3, .low = 0x80, .high = 0x9F};
  if (byte < 0xF0) return {.size = 3};
  if (byte == 0xF0) return {.size = 4, .low = 0x90, .high = 0xBF};
  if (byte < 0xF4) return {.size = 4};
  if (byte == 0xF4) return {.size = 4, .low = 0x80, .high = 0x8F};
  return {};
}

}  // namespace

Utf8Char DecodeUtf8(std::string_view bytes) {
  const uint8_t first = static_cast<uint8_t>(bytes[0]);
  if (first < 0x80) return {.kind = Utf8Char::Kind::kValid, .code_point = first, .size = 1};
  const Lead lead = LeadOf(first);
  if (lead.size == 0) return {.kind = Utf8Char::Kind::kIllFormed, .code_point = 0, .size = 1};
  uint32_t code_point = first & (0x7Fu >> lead.size);
  for (size_t i = 1; i < lead.size; ++i) {
    if (i == bytes.size()) return {.kind = Utf8Char::Kind::kIncomplete, .code_point = 0, .size = i};
    const uint8_t byte = static_cast<uint8_t>(bytes[i]);
    const uint8_t low = i == 1 ? lead.low : 0x80;
    const uint8_t high = i == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) {
      return {.kind = Utf8Char::Kind::kIllFormed, .code_point = 0, .size = i};
    }
    code_point = (code_point << 6) | (byte & 0x3Fu);
  }
  return {.kind = Utf8Char::Kind::kValid, .code_point = code_point, .size = lead.size};
}

void Utf8Stream::Push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!held_.empty()) {
    joined = held_;
    joined += bytes;
    bytes = joined;
    held_.clear();
  }
  while (!bytes.empty()) {
    const Utf8Char next = DecodeUtf8(bytes);
    if (next.kind == Utf8Char::Kind::kIncomplete) {
      held_ = bytes;
      return;
    }
    out += next.kind == Utf8Char::Kind::kValid ? bytes.substr(0, next.size) : kReplacement;
    bytes.remove_prefix(next.size);
  }
}

void Utf8Stream::Finish(std::string& out) {
  if (!held_.empty()) out += kReplacement;
  held_.clear();
}

}  // namespace baton::router
