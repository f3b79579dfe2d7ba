#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#include "common/sampling_spec.h"
#include "engine/grammar/grammar_cache.h"
#include "engine/grammar/grammar_memory.h"
#include "engine/grammar/mask_source.h"

namespace baton::engine {

// The masks of one sequence while they are being made. One thread waits for them, which may let go
// at any time.
class PendingMasks {
 public:
  bool IsReady() const { return is_ready_.load(std::memory_order_acquire); }
  // Once ready. kInvalidArgument: the grammar is the client's fault; kResourceExhausted: there is
  // no memory for it; else the worker failed.
  const absl::Status& status() const { return source_.status(); }
  // Once ready and OK, once.
  MaskSource Take() { return *std::move(source_); }

 private:
  friend class MaskMaker;
  PendingMasks(GrammarCharge room, std::shared_ptr<GrammarCharge> compiling,
               std::vector<int32_t> taken)
      : room_(std::move(room)), compiling_(std::move(compiling)), taken_(std::move(taken)) {}

  GrammarCharge room_;                              // until it is made
  const std::shared_ptr<GrammarCharge> compiling_;  // of all of a request: whoever is left compiles
  const std::vector<int32_t> taken_;
  absl::StatusOr<MaskSource> source_;
  std::atomic<bool> is_ready_ = false;  // set last
};

// Makes masks ready to be asked, away from the engine's thread: compiling a grammar takes
// milliseconds, and as much as a second. Engine thread.
class MaskMaker {
 public:
  // Runs a task elsewhere, or at another time; false: too many wait.
  using Executor = std::function<bool(std::function<void()> task)>;

  // `grammars` outlives it and every task.
  MaskMaker(GrammarCache& grammars, Executor run) : grammars_(grammars), run_(std::move(run)) {}

  // All that can be said at once: kInvalidArgument names a field that a worker with this vocabulary
  // cannot follow. What it says of the grammar comes with the masks.
  absl::Status Check(const MaskRules& rules) const;
  // Those of one request's sequences: for each the tokens that it has taken already. `rules` are
  // not empty. kResourceExhausted: too many grammars wait, or there is no memory for this one.
  absl::StatusOr<std::vector<std::shared_ptr<PendingMasks>>> Start(
      const MaskRules& rules, std::vector<std::vector<int32_t>> taken);

 private:
  static void Make(GrammarCache& grammars, const MaskRules& rules,
                   const std::vector<std::shared_ptr<PendingMasks>>& sequences);

  GrammarCache& grammars_;
  const Executor run_;
};

}  // namespace baton::engine
