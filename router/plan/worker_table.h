#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>

#include "absl/time/time.h"

#include "common/ids.h"
#include "proto/wire.h"
#include "router/plan/cache_index.h"
#include "router/plan/choose.h"
#include "router/plan/plan_config.h"
#include "router/plan/request.h"

namespace baton::router {

struct Request;

// What the planner knows of one worker. A new session resets everything but id and address.
struct WorkerRecord {
  struct Sequence {
    Request* request = nullptr;  // outlives the entry: the core erases it first
    int choice = 0;
  };

  WorkerId id;
  std::string address;
  bool is_up = false;
  bool was_up = false;
  wire::WorkerHello hello;
  std::optional<wire::Load> load;
  absl::Time last_heard = absl::InfinitePast();
  absl::Time wedged_since = absl::InfiniteFuture();
  CacheIndex cache;
  uint32_t next_handle = 1;
  std::unordered_map<SequenceHandle, Sequence> sequences;
  uint32_t open_prefills = 0;  // placements whose first token is to come from here
  uint64_t open_tokens = 0;    // their uncached tokens
  uint32_t asked_pages = 0, asked_sequences = 0;  // Reserve sent, no answer yet
  uint32_t fresh_pages = 0, fresh_sequences = 0;  // answered, not yet in a Load
  absl::Time no_prefill_before = absl::InfinitePast();
  absl::Time no_landing_before = absl::InfinitePast();
  absl::Time no_grammar_before = absl::InfinitePast();  // prompts and landings with one

  bool IsDraining() const { return load && load->is_draining; }
  bool IsWedged() const { return wedged_since != absl::InfiniteFuture(); }
  bool IsServing() const { return is_up && !IsDraining(); }  // may be busy or wedged
  bool IsReady() const { return IsServing() && !IsWedged(); }
  bool IsSuspect(absl::Time now, const PlanConfig& config) const;
  bool IsPrefillOnly() const { return hello.serves_prefill && !hello.serves_decode; }
  double PrefillRate(const PlanConfig& config) const;
  uint64_t QueuedTokens() const;
  bool HasPrefillSlot(absl::Time now, const PlanConfig& config) const;
  bool TakesLanding(absl::Time now) const { return now >= no_landing_before; }  // pages apart
  bool HasGrammarRoom(absl::Time now) const { return now >= no_grammar_before; }
  // After a refusal: what it refused for want of room does not go there before `again`.
  void HoldBack(const wire::Refused& refused, absl::Time again);
  DecodeCandidate AsDecodeCandidate() const;
};

// All known workers by id, in the order they were added. Planner thread.
class WorkerTable {
 public:
  WorkerRecord& Add(WorkerId id, std::string address);
  WorkerRecord* Find(WorkerId id);
  const WorkerRecord* Find(WorkerId id) const;
  void Up(WorkerRecord& worker, wire::WorkerHello hello, absl::Time now);
  void Down(WorkerRecord& worker);

  std::map<WorkerId, WorkerRecord>& all() { return workers_; }
  const std::map<WorkerId, WorkerRecord>& all() const { return workers_; }
  // A serving pair that could take any new request exists.
  bool IsCovered() const;
  void FillView(absl::Time now, const PlanConfig& config, ClusterView& view) const;

 private:
  std::map<WorkerId, WorkerRecord> workers_;
};

}  // namespace baton::router
