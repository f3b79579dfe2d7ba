#pragma once

#include <optional>
#include <vector>

#include "engine/loop.h"

// What loop.cc (who is in the loop) and loop_steps.cc (what runs) both see.
namespace baton::engine {

struct Finish {
  FinishReason reason = FinishReason::kStop;
  int32_t stop_token = -1;
};
// Whether the last token ends the sequence. Stop tokens are masked up to min_tokens
// (contracts.md 2.2).
std::optional<Finish> FinishOf(const Sequence& sequence);

struct EngineLoop::Entry {
  Sequence sequence;
  Booking booking;
  // While parked: payloads of all pages, and the wire tail at `computed`.
  bool is_parked = false;
  std::vector<std::byte> host_pages;
  std::vector<std::byte> host_tail;
  bool is_held = false;
  absl::Status mask_status;  // an error ends the sequence with its next step

  SequenceFacts Facts() const;
};

}  // namespace baton::engine
