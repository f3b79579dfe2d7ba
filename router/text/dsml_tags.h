#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace baton::router {

// The tags of a tool call block (protocol.md 3.1), as far as they are fixed: the two that carry
// attributes end where these begin.
enum class DsmlTag : uint8_t {
  kOpenCalls,       // <｜DSML｜tool_calls>
  kCloseCalls,      // </｜DSML｜tool_calls>
  kOpenInvoke,      // <｜DSML｜invoke
  kCloseInvoke,     // </｜DSML｜invoke>
  kOpenParameter,   // <｜DSML｜parameter
  kCloseParameter,  // </｜DSML｜parameter>
};

using DsmlTagSet = uint8_t;  // of bits 1 << tag
constexpr DsmlTagSet SetOf(DsmlTag tag) {
  return static_cast<DsmlTagSet>(1u << static_cast<unsigned>(tag));
}

// Finds tags in a text that comes in any pieces. ｜DSML｜ counts as the token only, its spelling in
// ordinary tokens is text. Constant work per byte. One thread.
class DsmlTagMatcher {
 public:
  enum class Result : uint8_t {
    kText,   // no part of a tag
    kMore,   // goes on with a tag that held() begins
    kMatch,  // completes tag()
    kMiss,   // held() was no tag; take it, Reset, and push the byte again
  };

  // One byte of ordinary text; only tags of `wanted` are looked for.
  Result Push(char byte, DsmlTagSet wanted);
  // The token ｜DSML｜.
  Result PushToken();
  void Reset() { held_.clear(); }

  bool is_idle() const { return held_.empty(); }
  const std::string& held() const { return held_; }
  DsmlTag tag() const { return tag_; }

 private:
  std::string held_;       // "<" or "</", then the token, then the beginning of a name
  size_t name_begin_ = 0;  // in held_, behind the token; 0: no token yet
  DsmlTag tag_ = DsmlTag::kOpenCalls;
};

// Reads ` name="N"` [` string="B"`] `>` behind a tag's name (protocol.md 3.3), byte by byte.
class DsmlAttributes {
 public:
  enum class Result : uint8_t { kMore, kDone, kBad };
  // Whether the string attribute is allowed.
  void Reset(bool has_string);
  Result Push(char byte);

  const std::string& name() const { return name_; }
  bool has_string() const { return !flag_.empty(); }  // the attribute was there
  bool is_string() const { return flag_ == "true"; }

 private:
  enum class Step : uint8_t { kBeforeName, kNameKey, kName, kAfterName, kFlagKey, kFlag, kEnd };
  Result PushKey(char byte, std::string_view key, Step next);
  Result PushSpaceOrEnd(char byte);

  Step step_ = Step::kBeforeName;
  bool allows_string_ = false;
  bool has_space_ = false;  // right before
  size_t progress_ = 0;     // bytes of a key
  std::string name_, flag_;
};

}  // namespace baton::router
