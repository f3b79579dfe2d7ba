#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/ids.h"
#include "engine/pages/page_pool.h"
#include "engine/pages/sequence.h"
#include "proto/wire.h"
#include "worker/effects.h"
#include "worker/setup.h"

namespace baton::worker {

enum class MoveState { kWaiting, kSending, kDraining, kReleased };

// One stopped sequence on its way to another decode worker: this worker as the source of
// contracts.md 4.4, without I/O and clock. Engine thread.
class MoveSource {
 public:
  // `move` has a landing.
  MoveSource(const WorkerSetup& setup, const wire::Move& move, SequenceId sequence);

  // Waiting -> Sending: `moved` is out of the engine, all its tokens but the last are computed, and
  // `tail` (of TailBytes, in buffer `tail_buffer`) holds sections 1 to 6 at that place. Pages and
  // tail are offered under the names a prompt of those tokens would have.
  void Start(engine::Sequence moved, const std::string& salt, int tail_buffer,
             std::span<std::byte> tail, Effects& out);
  // True when that was the last block.
  bool OnAcked();
  void OnSendReleased();
  // -> Draining. Pages and tail stay until the transport reads nothing any more.
  void Stop(Effects& out);

  static uint64_t TailBytes(const WorkerSetup& setup, int num_tokens);

  MoveState state() const { return state_; }
  SequenceId sequence() const { return sequence_; }
  Attempt attempt() const { return move_.landing->attempt; }
  const TransferId& transfer() const { return move_.transfer; }
  std::optional<int> tail_buffer() const { return tail_buffer_; }

 private:
  const WorkerSetup& setup_;
  const wire::Move move_;
  const SequenceId sequence_;
  MoveState state_ = MoveState::kWaiting;
  engine::PageLease pages_;  // while sending and draining
  std::optional<int> tail_buffer_;
  uint32_t num_unacked_ = 0;
};

}  // namespace baton::worker
