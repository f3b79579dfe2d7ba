#include "kvtransfer/test_process.h"

#include <utility>

namespace baton::kvtransfer {
namespace {

constexpr size_t kSlots = 5;  // of offers, and of pulls

}  // namespace

TestProcess::TestProcess(InprocNetwork& network, const Name& name, bool is_staged,
                         const Clock& clock)
    : memory_(kPoolPages * kPageBytes + kTailBytes),
      staging_memory_(2 * kSlots * kTailBytes),
      inner_(network.Create(name.address, name.incarnation)),
      copier_(clock, copier_rng_),
      staged_(*StagedTransport::Create(*inner_, copier_,
                                       {.memory = staging_memory_,
                                        .slot_bytes = kTailBytes,
                                        .num_offer_slots = kSlots,
                                        .num_pull_slots = kSlots})),
      transport_(is_staged ? static_cast<Transport&>(*staged_) : *inner_),
      region_(*transport_.Register(std::as_writable_bytes(std::span(memory_)),
                                   is_staged ? MemoryKind::kDevice : MemoryKind::kHost)),
      agent_({.incarnation = name.incarnation, .limits = {}}, transport_, digester_, clock) {
  digester_.AddRegion(region_, std::as_bytes(std::span(memory_)));
}

BlockMemory TestProcess::Page(int page, uint32_t block) const {
  return {.block = block,
          .memory = page,
          .place = {region_, static_cast<uint64_t>(page) * kPageBytes, kPageBytes}};
}

BlockMemory TestProcess::Tail() const {
  return {
      .block = kTailBlock, .memory = 0, .place = {region_, kPoolPages * kPageBytes, kTailBytes}};
}

void TestProcess::Fill(const Place& place, uint64_t seed) {
  SeededRng rng(seed);
  for (uint8_t& b : Bytes(place)) b = static_cast<uint8_t>(rng.Next());
}

int TestProcess::Run() {
  const int happened = agent_.RunOnce();
  for (AgentEvent& event : agent_.TakeEvents()) events_.push_back(std::move(event));
  return happened;
}

}  // namespace baton::kvtransfer
