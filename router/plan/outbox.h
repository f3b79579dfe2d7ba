#pragma once

#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "common/ids.h"
#include "proto/wire.h"
#include "router/plan/events.h"

namespace baton::router {

// Packs the pieces of one batch of actions into session messages (contracts.md 5): a worker applies
// a message's fields in a fixed order, so a piece that must come after another of its transfer
// starts a new message; a Cancel takes back what it cancels while that is still here. Planner
// thread.
class Outbox {
 public:
  void Add(SendToWorker send);
  // The messages in the order to send, each under wire::kMaxMessageBytes unless one piece alone is
  // larger. Leaves the box empty.
  std::vector<std::pair<WorkerId, wire::RouterMessage>> Take();

 private:
  struct Entry {
    SendToWorker send;
    size_t bytes = 0;
  };

  // True if the worker will have heard nothing of the cancelled transfer: then nothing is sent.
  bool TakeBack(std::vector<Entry>& entries, const TransferId& transfer);

  std::map<WorkerId, std::vector<Entry>> boxes_;
};

}  // namespace baton::router
