#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"

#include "common/ids.h"
#include "common/sampling_spec.h"
#include "engine/grammar/mask_source.h"
#include "engine/pages/page_pool.h"

namespace baton::engine {

// One sequence's state in an engine: plain data; how it got here does not matter. Engine thread.
struct Sequence {
  SequenceId id;
  std::string request_id;
  // The sequence's choices. A prefilling sequence may carry several (n > 1): its last row is
  // sampled once per choice.
  std::vector<int> choices = {0};
  std::vector<int32_t> tokens;  // prompt, then generated
  int prompt_tokens = 0;        // tokens[prompt_tokens ..] were generated or received
  int computed = 0;  // rows in pages and tail; tokens[computed ..] are to be computed or replayed
  // Tokens that are already with the client, per choice, by position prompt_tokens + i: forced and
  // checked (contracts.md 1.6).
  std::vector<std::vector<int32_t>> received = {{}};
  std::vector<int32_t> drafts;  // for positions tokens.size() .. ; host copy
  PageLease pages;              // ids by page index
  int tail_slot = -1;
  SamplingSpec sampling;
  FinishRules finish;
  std::optional<MaskSource> masks;  // of the tokens after the prompt; none: all are allowed
  ClassId prompt_class, decode_class;
  absl::Time deadline = absl::InfiniteFuture();
  int priority = 0;        // lower first
  int tail_interval = 16;  // pages between the chunk borders where a boundary tail can be packed;
                           // 0: only the last full page

  // Best entries to report for every prompt position from 1 on, 0..20; -1: no report.
  int prompt_logprobs = -1;

  bool IsPrefilling() const { return computed < prompt_tokens; }
};

}  // namespace baton::engine
