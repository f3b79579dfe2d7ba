#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "common/rng.h"
#include "kvtransfer/digester.h"
#include "kvtransfer/staged/staged_transport.h"
#include "kvtransfer/staged/test_copier.h"
#include "kvtransfer/transfer_agent.h"
#include "kvtransfer/ucx/ucx_transport.h"

// What the tests over UCX and their sending helper process share.
namespace baton::kvtransfer {

struct TestShape {
  uint32_t num_pages = 0;
  uint64_t page_bytes = 0;
  uint64_t tail_bytes = 0;
  bool is_staged = false;  // the memory counts as a device's, that UCX is not given
};

// The bytes that block `seed` has at the source.
void FillPattern(std::span<std::byte> bytes, uint64_t seed);
bool HasPattern(std::span<const std::byte> bytes, uint64_t seed);

// The same ids in both processes.
TransferId TestTransfer();
Secret TestSecret();
LayoutId TestLayout();

// Memory of one shape, an agent and its UCX transport, driven by the calling thread.
class TestNode {
 public:
  TestNode(const TestShape& shape, const UcxConfig& config, const TransferLimits& limits);
  TestNode(const TestNode&) = delete;

  // Slot i holds page i; the slot after the last page holds the tail.
  BlockMemory Memory(uint32_t slot) const;
  std::span<std::byte> Bytes(const Place& place);

  void OpenLandingWithCredit(uint32_t num_credit);
  void OpenSendTo(const std::string& address, Incarnation incarnation);
  void OfferAll();
  // Runs the agent until `done`, or until `limit` of real time has passed.
  bool RunUntil(const std::function<bool()>& done, absl::Duration limit);
  void RunOnce();
  template <typename Event>
  std::vector<Event> Got() const {
    std::vector<Event> found;
    for (const AgentEvent& event : events_)
      if (const auto* e = std::get_if<Event>(&event)) found.push_back(*e);
    return found;
  }
  template <typename Event>
  size_t Count() const {
    size_t count = 0;
    for (const AgentEvent& event : events_) count += std::holds_alternative<Event>(event) ? 1 : 0;
    return count;
  }

  TransferAgent& agent() { return *agent_; }
  // What the agent uses.
  Transport& transport() { return staged_ ? static_cast<Transport&>(*staged_) : *transport_; }
  const std::vector<AgentEvent>& events() const { return events_; }

 private:
  void Stage();

  const TestShape shape_;
  SteadyClock clock_;
  std::vector<std::byte> memory_;
  std::vector<std::byte> staging_memory_;
  std::unique_ptr<UcxTransport> transport_;
  SeededRng copier_rng_{1};
  TestCopier copier_{clock_, copier_rng_};
  std::unique_ptr<StagedTransport> staged_;  // if the shape says so
  RegionId region_;
  CpuDigester digester_;
  std::unique_ptr<TransferAgent> agent_;
  std::vector<AgentEvent> events_;
};

}  // namespace baton::kvtransfer
