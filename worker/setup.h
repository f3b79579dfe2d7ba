#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "common/sampling_spec.h"
#include "engine/grammar/mask_maker.h"
#include "kernels/page_layout.h"
#include "kvtransfer/agent.h"
#include "kvtransfer/transport.h"

namespace baton::worker {

// Admission bounds and timers of a worker (contracts.md 4.5, 5).
struct WorkerLimits {
  int max_sequences = 8;        // landed here, running or not yet
  int max_queued_prompts = 64;  // accepted, not yet computing
  int64_t max_queued_tokens = 4'000'000;
  int max_computing_prompts = 4;  // at once; each holds a tail slot and a tail buffer
  int max_context = 0;            // tokens of prompt and answer
  int headroom_pages = 2;         // booked per sequence beyond its prompt (contracts.md 6)
  int window = 64;                // un-acked blocks per transfer
  int tail_interval = 16;         // pages between boundary tails
  // Cached pages whose seals are checked between two steps: 64 real ones are about 13 ms, less than
  // a step of a busy worker. Sequences that decode wait no longer for a prompt that starts.
  int checked_pages_per_round = 64;
  uint64_t max_cached_tail_bytes = uint64_t{256} << 20;
  absl::Duration load_every = absl::Milliseconds(100);
  absl::Duration tombstone = absl::Seconds(10);
  absl::Duration wedged_after = absl::Seconds(10);  // Closing with a receive still open
  absl::Duration retry_after = absl::Milliseconds(200);
};

// What a worker is and where its memory lies. Immutable after start; any thread, but `masks`:
// engine thread.
struct WorkerSetup {
  std::string worker_id;
  Incarnation incarnation;
  bool serves_prefill = false;
  bool serves_decode = false;
  WeightsId weights;
  LayoutId layout_id;
  ClassId prompt_class, decode_class;
  std::string kv_address;
  bool has_drafter = true;             // section 2 of a tail is real
  int vocab_size = INT32_MAX;          // token ids below it
  engine::MaskMaker* masks = nullptr;  // null: no masks are served
  kernels::PageLayout layout;
  kvtransfer::RegionId pages_region;  // page i at i * layout.stride_bytes()
  kvtransfer::RegionId tails_region;  // tail buffer i at i * tail_stride
  std::span<std::byte> tail_memory;
  uint64_t tail_stride = 0;
  WorkerLimits limits;
};

// A page of the pool, or a tail buffer, as the transfer thread gets it; `bytes` is what is sent or
// may land.
inline kvtransfer::BlockMemory PageMemory(const WorkerSetup& setup, uint32_t block, PageId page) {
  return {.block = block,
          .memory = page,
          .place = {.region = setup.pages_region,
                    .offset = static_cast<uint64_t>(page) * setup.layout.stride_bytes(),
                    .bytes = setup.layout.payload_bytes()}};
}
inline kvtransfer::BlockMemory TailMemory(const WorkerSetup& setup, int buffer, uint64_t bytes) {
  return {.block = kTailBlock,
          .memory = buffer,
          .place = {.region = setup.tails_region,
                    .offset = static_cast<uint64_t>(buffer) * setup.tail_stride,
                    .bytes = bytes}};
}

// A token id that the model has no row for would end the process, not one request.
absl::Status CheckTokens(const WorkerSetup& setup, std::string_view field,
                         std::span<const int32_t> tokens);

// Why a worker cannot serve such masks, but for what only compiling their grammar shows; OK for
// empty ones.
absl::Status CheckMasks(const WorkerSetup& setup, const MaskRules& masks);

constexpr int PagesFor(int64_t tokens) {
  return static_cast<int>((tokens + kPageTokens - 1) / kPageTokens);
}

}  // namespace baton::worker
