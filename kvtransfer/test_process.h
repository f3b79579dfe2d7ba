#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"
#include "kvtransfer/staged/staged_transport.h"
#include "kvtransfer/staged/test_copier.h"
#include "kvtransfer/transfer_agent.h"

namespace baton::kvtransfer {

inline constexpr uint64_t kPageBytes = 3000;
inline constexpr uint64_t kTailBytes = 5001;
inline constexpr int kPoolPages = 96;

// For tests, one simulated process: memory for kPoolPages pages and one tail, and an agent over it.
// Staged: that is device memory, over a transport that knows host memory only. One thread.
class TestProcess {
 public:
  struct Name {
    std::string address;
    Incarnation incarnation;
  };
  TestProcess(InprocNetwork& network, const Name& name, bool is_staged, const Clock& clock);

  BlockMemory Page(int page, uint32_t block = 0) const;
  BlockMemory Tail() const;
  std::span<uint8_t> Bytes(const Place& place) {
    return std::span(memory_).subspan(place.offset, place.bytes);
  }
  // Random bytes of a seed.
  void Fill(const Place& place, uint64_t seed);
  // Runs the agent and files its events.
  int Run();
  // The filed events of one type.
  template <typename Event>
  std::vector<Event> Got() const {
    std::vector<Event> found;
    for (const AgentEvent& event : events_)
      if (const auto* e = std::get_if<Event>(&event)) found.push_back(*e);
    return found;
  }
  void ForgetEvents() { events_.clear(); }

  // When it next has something to do by itself.
  absl::Time NextTime() const { return std::min(agent_.NextTimer(), copier_.NextTime()); }
  TransferAgent& agent() { return agent_; }
  TestCopier& copier() { return copier_; }
  const StagingStats& staging() const { return staged_->stats(); }

 private:
  std::vector<uint8_t> memory_;
  std::vector<std::byte> staging_memory_;
  std::unique_ptr<InprocTransport> inner_;
  SeededRng copier_rng_{7};
  TestCopier copier_;
  std::unique_ptr<StagedTransport> staged_;
  Transport& transport_;  // one of the two
  const RegionId region_;
  CpuDigester digester_;
  TransferAgent agent_;
  std::vector<AgentEvent> events_;
};

}  // namespace baton::kvtransfer
