#include "router/text/dsml_tags.h"

#include <array>

#include "router/text/chat_literals.h"

namespace baton::router {
namespace {

constexpr std::string_view kNameKey = "name=\"";
constexpr std::string_view kFlagKey = "string=\"";

struct TagName {
  DsmlTag tag;
  bool is_closing;
  std::string_view name;
};
constexpr std::array<TagName, 6> kTags = {{
    {DsmlTag::kOpenCalls, false, "tool_calls>"},
    {DsmlTag::kCloseCalls, true, "tool_calls>"},
    {DsmlTag::kOpenInvoke, false, "invoke"},
    {DsmlTag::kCloseInvoke, true, "invoke>"},
    {DsmlTag::kOpenParameter, false, "parameter"},
    {DsmlTag::kCloseParameter, true, "parameter>"},
}};

bool IsSpace(char byte) {
  return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n' || byte == '\f' ||
         byte == '\v';
}

}  // namespace

DsmlTagMatcher::Result DsmlTagMatcher::Push(char byte, DsmlTagSet wanted) {
  if (held_.empty()) {
    name_begin_ = 0;
    if (byte != '<') return Result::kText;
    held_ = byte;
    return Result::kMore;
  }
  if (name_begin_ == 0) {
    if (held_.size() != 1 || byte != '/') return Result::kMiss;
    held_ += byte;
    return Result::kMore;
  }
  const bool is_closing = held_[1] == '/';
  held_ += byte;
  const std::string_view name = std::string_view(held_).substr(name_begin_);
  bool may_go_on = false;
  for (const TagName& known : kTags) {
    if ((wanted & SetOf(known.tag)) == 0 || known.is_closing != is_closing) continue;
    if (known.name == name) {
      tag_ = known.tag;
      return Result::kMatch;
    }
    may_go_on = may_go_on || known.name.starts_with(name);
  }
  if (may_go_on) return Result::kMore;
  held_.pop_back();
  return Result::kMiss;
}

DsmlTagMatcher::Result DsmlTagMatcher::PushToken() {
  if (held_.empty()) return Result::kText;
  if (name_begin_ != 0) return Result::kMiss;
  held_ += kDsmlText;
  name_begin_ = held_.size();
  return Result::kMore;
}

void DsmlAttributes::Reset(bool has_string) {
  step_ = Step::kBeforeName;
  allows_string_ = has_string;
  has_space_ = false;
  progress_ = 0;
  name_.clear();
  flag_.clear();
}

DsmlAttributes::Result DsmlAttributes::Push(char byte) {
  switch (step_) {
    case Step::kBeforeName:
      if (IsSpace(byte)) {
        has_space_ = true;
        return Result::kMore;
      }
      return has_space_ ? PushKey(byte, kNameKey, Step::kName) : Result::kBad;
    case Step::kNameKey:
      return PushKey(byte, kNameKey, Step::kName);
    case Step::kName:
      if (byte == '"') {
        step_ = Step::kAfterName;
        has_space_ = false;
      } else {
        name_ += byte;
      }
      return Result::kMore;
    case Step::kAfterName:
      if (allows_string_ && has_space_ && byte == kFlagKey[0]) {
        return PushKey(byte, kFlagKey, Step::kFlag);
      }
      return PushSpaceOrEnd(byte);
    case Step::kFlagKey:
      return PushKey(byte, kFlagKey, Step::kFlag);
    case Step::kFlag:
      if (byte != '"') {
        flag_ += byte;
        const bool may_be = std::string_view("true").starts_with(flag_) ||
                            std::string_view("false").starts_with(flag_);
        return may_be ? Result::kMore : Result::kBad;
      }
      step_ = Step::kEnd;
      return flag_ == "true" || flag_ == "false" ? Result::kMore : Result::kBad;
    case Step::kEnd:
      return PushSpaceOrEnd(byte);
  }
  return Result::kBad;
}

DsmlAttributes::Result DsmlAttributes::PushKey(char byte, std::string_view key, Step next) {
  if (byte != key[progress_]) return Result::kBad;
  if (++progress_ < key.size()) {
    step_ = next == Step::kName ? Step::kNameKey : Step::kFlagKey;
    return Result::kMore;
  }
  progress_ = 0;
  step_ = next;
  return Result::kMore;
}

DsmlAttributes::Result DsmlAttributes::PushSpaceOrEnd(char byte) {
  if (byte == '>') return Result::kDone;
  has_space_ = IsSpace(byte);
  return has_space_ ? Result::kMore : Result::kBad;
}

}  // namespace baton::router
