#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "common/mutex.h"

namespace baton::wire {

// The writing side of a session: who queues never waits, one write is in flight at a time. Beats go
// first, then messages in order, then bulk (prompt chunks, cache events), so that a beat or a
// cancel waits for one message at most (contracts.md 5, "order of writing"). A mutex, not a queue:
// producers and the stream's callbacks meet here from any thread.
template <typename Message>
class SessionOutbox {
 public:
  enum class Lane { kBeat, kControl, kBulk };
  enum class Pushed { kQueued, kFull };

  // Two limits, because a message of few bytes costs an entry and one of many costs memory; either
  // is kFull.
  explicit SessionOutbox(size_t max_messages, size_t max_bytes = SIZE_MAX)
      : max_messages_(max_messages), max_bytes_(max_bytes) {}

  // A beat replaces one that still waits, and is never refused. `bytes`: about what the message
  // holds in memory, as its kind may grow large.
  Pushed Push(Lane lane, Message message, size_t bytes = 0) {
    MutexLock lock(mutex_);
    if (lane == Lane::kBeat) {
      beat_ = std::move(message);
      return Pushed::kQueued;
    }
    if (control_.size() + bulk_.size() >= max_messages_) return Pushed::kFull;
    if (bytes > max_bytes_ - bytes_) return Pushed::kFull;
    bytes_ += bytes;
    (lane == Lane::kControl ? control_ : bulk_).push_back({std::move(message), bytes});
    return Pushed::kQueued;
  }

  // The next message to write, if no write is in flight; the caller then writes it and calls
  // Written.
  std::optional<Message> Next() {
    MutexLock lock(mutex_);
    if (is_writing_) return std::nullopt;
    std::optional<Message> next;
    if (beat_) {
      next = std::move(beat_);
      beat_.reset();
    } else if (std::deque<Waiting>& lane = control_.empty() ? bulk_ : control_; !lane.empty()) {
      next = std::move(lane.front().message);
      bytes_ -= lane.front().bytes;
      lane.pop_front();
    }
    is_writing_ = next.has_value();
    return next;
  }

  void Written() {
    MutexLock lock(mutex_);
    is_writing_ = false;
  }

  bool IsEmpty() const {
    MutexLock lock(mutex_);
    return !is_writing_ && !beat_ && control_.empty() && bulk_.empty();
  }

  size_t Size() const {
    MutexLock lock(mutex_);
    return control_.size() + bulk_.size();
  }

 private:
  struct Waiting {
    Message message;
    size_t bytes = 0;
  };

  const size_t max_messages_, max_bytes_;
  mutable Mutex mutex_;
  std::optional<Message> beat_ GUARDED_BY(mutex_);
  std::deque<Waiting> control_ GUARDED_BY(mutex_);
  std::deque<Waiting> bulk_ GUARDED_BY(mutex_);
  size_t bytes_ GUARDED_BY(mutex_) = 0;  // of all that waits, but the beat
  bool is_writing_ GUARDED_BY(mutex_) = false;
};

}  // namespace baton::wire
