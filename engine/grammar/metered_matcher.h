#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/grammar.h"
#include "engine/grammar/grammar_memory.h"

namespace baton::engine {

// A Matcher whose memory is the worker's: what it holds is charged after every call. One thread at
// a time.
class MeteredMatcher {
 public:
  // `compiled` is what all matchers of the grammar share, whose text has `text_bytes`; `room` may
  // hold bytes for this one already. kResourceExhausted: it does not fit.
  static absl::StatusOr<MeteredMatcher> Create(Matcher matcher,
                                               std::shared_ptr<const GrammarCharge> compiled,
                                               size_t text_bytes, GrammarCharge room);
  // As Matcher::Clone, and as Create.
  absl::StatusOr<MeteredMatcher> Clone(GrammarCharge room) const;

  // As Matcher's; kResourceExhausted too. An error is final and frees what it holds.
  absl::Status ComputeMask(std::span<uint32_t> mask);
  absl::Status Consume(int32_t token);
  absl::Status Rollback(int count);
  bool IsAccepting() { return matcher_ && matcher_->IsAccepting(); }
  bool IsStopped() const { return !matcher_ || matcher_->IsStopped(); }

  size_t bytes() const { return charge_.bytes(); }

 private:
  MeteredMatcher(Matcher matcher, std::shared_ptr<const GrammarCharge> compiled, size_t text_bytes,
                 GrammarCharge room);
  absl::Status Charge();
  absl::Status After(absl::Status called);

  // Charges last until the memory is free.
  std::shared_ptr<const GrammarCharge> compiled_;
  size_t text_bytes_;
  GrammarCharge charge_;
  std::optional<Matcher> matcher_;  // none: it failed
};

}  // namespace baton::engine
