#include "router/text/choice_output.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/check.h"

namespace baton::router {

absl::StatusOr<MarkupIds> MarkupIds::Find(const Tokenizer& tokenizer) {
  MarkupIds ids;
  const std::array<std::pair<std::string_view, TokenId*>, 4> wanted = {{
      {"<think>", &ids.think_open},
      {"</think>", &ids.think_close},
      {"｜DSML｜", &ids.dsml},
      {"<｜end▁of▁sentence｜>", &ids.eos},
  }};
  for (const auto& [name, place] : wanted) {
    const std::optional<TokenId> id = tokenizer.IdOf(name);
    if (!id)
      return absl::InvalidArgumentError(absl::StrFormat("tokenizer lacks the token %s", name));
    *place = *id;
  }
  return ids;
}

bool StartsInReasoning(std::span<const TokenId> prompt, const MarkupIds& ids) {
  return !prompt.empty() && prompt.back() == ids.think_open;
}

ChoiceOutput::ChoiceOutput(const Tokenizer& tokenizer, const MarkupIds& ids,
                           ChoiceOutputOptions options)
    : tokenizer_(tokenizer),
      ids_(ids),
      splits_reasoning_(options.splits_reasoning),
      skip_special_(options.skip_special),
      detokenizer_(tokenizer, options.skip_special),
      stop_(std::move(options.stops), options.include_stop),
      parser_(options.starts_in_reasoning && options.splits_reasoning, options.tools) {}

void ChoiceOutput::Push(TokenId id, std::vector<OutputDelta>& out) {
  if (matched_stop() != nullptr) return;
  std::string text = detokenizer_.Push(id);
  const std::string released = stop_.Push(text);
  AddRuns(id, std::move(text));
  Release(released.size(), out);
}

// A held incomplete character becomes U+FFFD in front of a markup token: that part is text of its
// own.
void ChoiceOutput::AddRuns(TokenId id, std::string text) {
  Run run;
  if (splits_reasoning_ && id == ids_.think_open) run.markup = Markup::kThinkOpen;
  if (splits_reasoning_ && id == ids_.think_close) run.markup = Markup::kThinkClose;
  if (id == ids_.dsml) run.markup = Markup::kDsml;
  run.is_counted = !(skip_special_ && tokenizer_.IsSpecial(id));
  const size_t size = tokenizer_.Bytes(id).size();
  if (run.markup != Markup::kNone && text.size() > size) {
    runs_.push_back({.text = text.substr(0, text.size() - size)});
    text.erase(0, text.size() - size);
  }
  run.text = std::move(text);
  runs_.push_back(std::move(run));
}

void ChoiceOutput::Release(size_t num_bytes, std::vector<OutputDelta>& out) {
  released_bytes_ += num_bytes;
  while (!runs_.empty() && (runs_.front().text.size() <= released_bytes_)) {
    const Run run = std::move(runs_.front());
    runs_.pop_front();
    released_bytes_ -= run.text.size();
    ReleaseRun(run, out);
  }
  if (runs_.empty() || released_bytes_ == 0) return;
  // Ordinary text goes out as far as it is certain; markup only whole.
  Run& front = runs_.front();
  if (front.markup != Markup::kNone) return;
  parser_.Push({.text = std::string_view(front.text).substr(0, released_bytes_)}, out);
  front.text.erase(0, released_bytes_);
  released_bytes_ = 0;
}

void ChoiceOutput::ReleaseRun(const Run& run, std::vector<OutputDelta>& out) {
  const bool is_end = run.markup == Markup::kThinkClose;
  const bool is_reasoning = parser_.state() == ReasoningParser::State::kReason;
  if (run.is_counted && is_reasoning && !is_end) ++reasoning_tokens_;
  if (!run.text.empty()) parser_.Push({.text = run.text, .markup = run.markup}, out);
}

void ChoiceOutput::Finish(std::vector<OutputDelta>& out) {
  is_finished_ = true;
  if (matched_stop() == nullptr) {
    std::string tail = detokenizer_.Finish();
    std::string released = stop_.Push(tail);
    if (!tail.empty()) runs_.push_back({.text = std::move(tail)});
    if (matched_stop() == nullptr) released += stop_.Finish();
    Release(released.size(), out);
  }
  CutAtStop(out);
  parser_.Finish(out);
}

// After a match some runs are left: text that the match cut off. Its tokens were generated, so they
// count.
void ChoiceOutput::CutAtStop(std::vector<OutputDelta>& out) {
  if (runs_.empty()) return;
  const std::string_view text = runs_.front().text;
  const size_t kept = std::min(released_bytes_, text.size());
  if (kept > 0) parser_.Push({.text = text.substr(0, kept)}, out);
  for (const Run& run : runs_) {
    const bool is_reasoning = parser_.state() == ReasoningParser::State::kReason;
    if (run.markup == Markup::kThinkClose) break;
    if (run.is_counted && is_reasoning) ++reasoning_tokens_;
  }
  runs_.clear();
}

}  // namespace baton::router
