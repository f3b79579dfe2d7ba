#include "engine/grammar/mask_source.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/status.h"

namespace baton::engine {
namespace {

constexpr std::string_view kEndOfThinking = "</think>";

bool Allows(TokenMask mask, int32_t token) {
  if (mask.empty()) return true;
  const auto bit = static_cast<uint32_t>(token);
  return bit / 32 < mask.size() && (mask[bit / 32] >> (bit % 32) & 1) != 0;
}

absl::Status CheckIds(const Vocabulary& vocabulary, std::string_view field,
                      std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    if (id >= 0 && id < vocabulary.size()) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "masks.%s: token id %d, the vocabulary has %d", field, id, vocabulary.size()));
  }
  return absl::OkStatus();
}

}  // namespace

bool IsMaskFailure(const absl::Status& status) {
  return !status.ok() && !absl::IsInvalidArgument(status) && !absl::IsResourceExhausted(status) &&
         !absl::IsUnavailable(status);
}

std::span<uint32_t> MaskBuffer::Take(size_t words) {
  if (used_ == rows_.size()) rows_.emplace_back();
  std::vector<uint32_t>& row = rows_[used_++];
  row.resize(words);
  return row;
}

absl::Status MaskSource::Check(const Vocabulary& vocabulary, const MaskRules& rules) {
  RETURN_IF_ERROR(CheckIds(vocabulary, "forced_prefix", rules.forced_prefix));
  RETURN_IF_ERROR(CheckIds(vocabulary, "reasoning_bans", rules.reasoning_bans));
  if (!rules.starts_in_reasoning || vocabulary.FindSpecial(kEndOfThinking)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "masks.starts_in_reasoning is set, but the vocabulary has no token </think>");
}

absl::StatusOr<MaskSource> MaskSource::Create(GrammarCache& grammars, const MaskRules& rules,
                                              GrammarCharge room) {
  const Vocabulary& vocabulary = grammars.vocabulary();
  RETURN_IF_ERROR(Check(vocabulary, rules));
  MaskSource source(vocabulary);
  if (!rules.grammar.empty()) {
    absl::StatusOr<MeteredMatcher> matcher = grammars.Get(rules.grammar, std::move(room));
    if (!matcher.ok()) {
      return absl::Status(matcher.status().code(),
                          absl::StrFormat("masks.grammar: %s", matcher.status().message()));
    }
    source.matcher_ = *std::move(matcher);
  }
  source.forced_prefix_ = rules.forced_prefix;
  source.thinking_budget_ = rules.thinking_budget;
  source.state_.phase = source.PhaseAfterReasoning();
  if (!rules.starts_in_reasoning) return source;

  source.end_of_thinking_ = *vocabulary.FindSpecial(kEndOfThinking);
  source.state_.phase = Phase::kReasoning;
  if (!rules.reasoning_bans.empty()) {
    source.reasoning_mask_.assign(vocabulary.mask_words(), ~uint32_t{0});
    for (const int32_t id : rules.reasoning_bans) {
      const auto bit = static_cast<uint32_t>(id);
      source.reasoning_mask_[bit / 32] &= ~(uint32_t{1} << (bit % 32));
    }
  }
  return source;
}

absl::StatusOr<MaskSource> MaskSource::Clone(GrammarCharge room) const {
  MaskSource copy(*vocabulary_);
  if (matcher_) {
    ASSIGN_OR_RETURN(copy.matcher_, matcher_->Clone(std::move(room)));
  }
  copy.forced_prefix_ = forced_prefix_;
  copy.thinking_budget_ = thinking_budget_;
  copy.reasoning_mask_ = reasoning_mask_;
  copy.end_of_thinking_ = end_of_thinking_;
  copy.state_ = state_;
  return copy;
}

MaskSource::Phase MaskSource::PhaseAfterReasoning() const {
  return forced_prefix_.empty() ? PhaseAfterPrefix() : Phase::kPrefix;
}

absl::Status MaskSource::NotAllowed(int32_t token) const {
  return absl::InternalError(absl::StrFormat(
      "token %d, the answer's %d., is not one the grammar allows", token, state_.num_taken + 1));
}

absl::Status MaskSource::Take(int32_t token) {
  switch (state_.phase) {
    case Phase::kReasoning:
      ++state_.num_reasoned;
      if (token == end_of_thinking_) state_.phase = PhaseAfterReasoning();
      break;
    case Phase::kPrefix:
      if (token != forced_prefix_[state_.num_forced]) return NotAllowed(token);
      if (++state_.num_forced == forced_prefix_.size()) state_.phase = PhaseAfterPrefix();
      break;
    case Phase::kGrammar:
      RETURN_IF_ERROR(TakeMatched(token));
      break;
    case Phase::kEnd:
      if (token != vocabulary_->eos()) return NotAllowed(token);
      break;
    case Phase::kFree:
      break;
  }
  ++state_.num_taken;
  return absl::OkStatus();
}

// The matcher never sees eos, so that what it has consumed can always be taken back.
absl::Status MaskSource::TakeMatched(int32_t token) {
  if (token == vocabulary_->eos()) {
    if (!matcher_->IsAccepting()) return NotAllowed(token);
    state_.phase = Phase::kEnd;
    return absl::OkStatus();
  }
  const absl::Status taken = matcher_->Consume(token);
  if (!taken.ok()) return IsMaskFailure(taken) ? NotAllowed(token) : taken;
  ++state_.num_matched;
  if (matcher_->IsStopped()) state_.phase = Phase::kEnd;
  return absl::OkStatus();
}

TokenMask MaskSource::OnlyToken(int32_t token, MaskBuffer& buffer) const {
  const std::span<uint32_t> mask = buffer.Take(vocabulary_->mask_words());
  std::ranges::fill(mask, 0);
  const auto bit = static_cast<uint32_t>(token);
  mask[bit / 32] = uint32_t{1} << (bit % 32);
  return mask;
}

absl::StatusOr<TokenMask> MaskSource::Mask(MaskBuffer& buffer) {
  switch (state_.phase) {
    case Phase::kReasoning:
      if (thinking_budget_ && state_.num_reasoned >= *thinking_budget_)
        return OnlyToken(end_of_thinking_, buffer);
      return reasoning_mask_;
    case Phase::kPrefix:
      return OnlyToken(forced_prefix_[state_.num_forced], buffer);
    case Phase::kEnd:
      return OnlyToken(vocabulary_->eos(), buffer);
    case Phase::kFree:
      return TokenMask();
    case Phase::kGrammar:
      break;
  }
  const std::span<uint32_t> mask = buffer.Take(vocabulary_->mask_words());
  RETURN_IF_ERROR(matcher_->ComputeMask(mask));
  return mask;
}

absl::Status MaskSource::AppendMasks(std::span<const int32_t> drafts, MaskBuffer& buffer,
                                     std::vector<TokenMask>& masks) {
  const State start = state_;
  const size_t end = masks.size() + drafts.size() + 1;
  for (size_t i = 0;; ++i) {
    ASSIGN_OR_RETURN(const TokenMask mask, Mask(buffer));
    masks.push_back(mask);
    if (i == drafts.size() || !Allows(mask, drafts[i])) break;
    RETURN_IF_ERROR(Take(drafts[i]));
  }
  masks.resize(end);
  const int matched = state_.num_matched - start.num_matched;
  state_ = start;
  return matched > 0 ? matcher_->Rollback(matched) : absl::OkStatus();
}

}  // namespace baton::engine
