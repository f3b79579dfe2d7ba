#include "kvtransfer/ucx/test_node.h"

#include <algorithm>
#include <cstring>
#include <poll.h>

#include "common/check.h"
#include "common/rng.h"

namespace baton::kvtransfer {
namespace {

uint64_t PatternWord(uint64_t seed, size_t index) { return Mix64(seed * 0x100000001b3u + index); }

template <typename Id>
Id Fixed(uint64_t seed) {
  return SeededRng(seed).DrawBytes<Id>();
}

}  // namespace

void FillPattern(std::span<std::byte> bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t word = PatternWord(seed, i);
    std::memcpy(bytes.data() + i, &word, std::min<size_t>(8, bytes.size() - i));
  }
}

bool HasPattern(std::span<const std::byte> bytes, uint64_t seed) {
  for (size_t i = 0; i < bytes.size(); i += 8) {
    const uint64_t word = PatternWord(seed, i);
    if (std::memcmp(bytes.data() + i, &word, std::min<size_t>(8, bytes.size() - i)) != 0)
      return false;
  }
  return true;
}

TransferId TestTransfer() { return Fixed<TransferId>(1); }
Secret TestSecret() { return Fixed<Secret>(2); }
LayoutId TestLayout() { return Fixed<LayoutId>(3); }

TestNode::TestNode(const TestShape& shape, const UcxConfig& config, const TransferLimits& limits)
    : shape_(shape), memory_(shape.num_pages * shape.page_bytes + shape.tail_bytes) {
  auto transport = UcxTransport::Create(config);
  CHECK(transport.ok());
  transport_ = *std::move(transport);
  if (shape.is_staged) Stage();
  region_ = *this->transport().Register(memory_, staged_ ? MemoryKind::kDevice : MemoryKind::kHost);
  digester_.AddRegion(region_, memory_);
  agent_ = std::make_unique<TransferAgent>(
      AgentConfig{.incarnation = config.incarnation, .limits = limits}, this->transport(),
      digester_, clock_);
}

void TestNode::Stage() {
  constexpr size_t kSlots = 4;  // of offers, and of pulls
  const uint64_t slot_bytes = std::max(shape_.page_bytes, shape_.tail_bytes);
  staging_memory_.resize(2 * kSlots * slot_bytes);
  auto staged = StagedTransport::Create(*transport_, copier_,
                                        {.memory = staging_memory_,
                                         .slot_bytes = slot_bytes,
                                         .num_offer_slots = kSlots,
                                         .num_pull_slots = kSlots});
  CHECK(staged.ok());
  staged_ = *std::move(staged);
}

BlockMemory TestNode::Memory(uint32_t slot) const {
  const bool is_tail = slot == shape_.num_pages;
  return {.block = is_tail ? kTailBlock : slot,
          .memory = static_cast<int32_t>(slot),
          .place = {region_, slot * shape_.page_bytes,
                    is_tail ? shape_.tail_bytes : shape_.page_bytes}};
}

std::span<std::byte> TestNode::Bytes(const Place& place) {
  return std::span(memory_).subspan(place.offset, place.bytes);
}

void TestNode::OpenLandingWithCredit(uint32_t num_credit) {
  agent_->Execute(OpenLanding{.transfer = TestTransfer(),
                              .attempt = 1,
                              .secret = TestSecret(),
                              .num_pages = shape_.num_pages,
                              .page_bytes = shape_.page_bytes,
                              .tail_bytes = shape_.tail_bytes,
                              .layout = TestLayout()});
  AddCredit credit{.transfer = TestTransfer(), .memory = {}};
  for (uint32_t i = 0; i < num_credit; ++i) credit.memory.push_back(Memory(i));
  credit.memory.push_back(Memory(shape_.num_pages));
  agent_->Execute(std::move(credit));
}

void TestNode::OpenSendTo(const std::string& address, Incarnation incarnation) {
  agent_->Execute(OpenSend{.transfer = TestTransfer(),
                           .attempt = 1,
                           .secret = TestSecret(),
                           .address = address,
                           .incarnation = incarnation,
                           .num_pages = shape_.num_pages,
                           .layout = TestLayout()});
}

void TestNode::OfferAll() {
  for (uint32_t slot = 0; slot <= shape_.num_pages; ++slot) {
    const BlockMemory memory = Memory(slot);
    FillPattern(Bytes(memory.place), slot);
    agent_->Execute(OfferBlock{.transfer = TestTransfer(), .memory = memory});
  }
}

void TestNode::RunOnce() {
  const int happened = agent_->RunOnce();
  for (AgentEvent& event : agent_->TakeEvents()) events_.push_back(std::move(event));
  if (happened > 0 || agent_->MustPoll()) return;
  pollfd descriptor{.fd = transport_->WakeFd(), .events = POLLIN, .revents = 0};
  poll(&descriptor, 1, 5);
}

bool TestNode::RunUntil(const std::function<bool()>& done, absl::Duration limit) {
  const absl::Time end = clock_.Now() + limit;
  while (!done()) {
    if (clock_.Now() > end) return false;
    RunOnce();
  }
  return true;
}

}  // namespace baton::kvtransfer
