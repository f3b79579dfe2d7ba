#pragma once

#include <cstddef>

#include "common/ids.h"
#include "engine/pages/page_pool.h"
#include "worker/prefix_cache.h"

namespace baton::worker {

// A job that has all it needs to start, while the seals of its cached pages are checked a few at a
// time between steps. Engine thread.
struct StartingPrompt {
  TransferId transfer;
  PrefixMatch match;
  engine::Booking booking;  // beyond what a local landing has booked
  int tail_slot = 0;
  int tail_buffer = 0;
  size_t num_checked = 0;  // pages of the match, from its start
};

}  // namespace baton::worker
