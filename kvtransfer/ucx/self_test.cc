#include "kvtransfer/ucx/self_test.h"

#include <cstddef>
#include <cstring>
#include <deque>
#include <functional>
#include <vector>

#include "absl/strings/str_format.h"

namespace baton::kvtransfer {
namespace {

// Both ends of the loopback: offers blocks in a window and pulls them into slots of their own.
class Loopback final : public TransportEvents {
 public:
  Loopback(UcxTransport& transport, const Clock& clock, const SelfTestConfig& config)
      : transport_(transport),
        clock_(clock),
        config_(config),
        source_(config.block_bytes),
        target_(config.block_bytes * static_cast<size_t>(config.window)) {
    for (size_t i = 0; i < source_.size(); ++i)
      source_[i] = static_cast<std::byte>(i * 131 + i / 251);
  }

  absl::Status Run() {
    auto from = transport_.Register(source_, MemoryKind::kHost);
    if (!from.ok()) return from.status();
    auto to = transport_.Register(target_, MemoryKind::kHost);
    if (!to.ok()) return to.status();
    from_ = *from;
    to_ = *to;
    for (int slot = 0; slot < config_.window; ++slot) free_slots_.push_back(slot);
    const absl::Status status = Measure();
    for (const PeerId peer : peers_) transport_.Disconnect(peer);
    const absl::Status closed = RunUntil([this] { return open_sends_ == 0 && open_pulls_ == 0; });
    transport_.Unregister(from_);
    transport_.Unregister(to_);
    return status.ok() ? closed : status;
  }

 private:
  absl::Status Measure() {
    peers_.push_back(transport_.Connect(transport_.Address(), transport_.incarnation()));
    if (absl::Status warm = Move(1); !warm.ok()) return warm;
    const uint64_t blocks = (config_.total_bytes + config_.block_bytes - 1) / config_.block_bytes;
    const absl::Time start = clock_.Now();
    if (absl::Status moved = Move(blocks); !moved.ok()) return moved;
    const double seconds = absl::ToDoubleSeconds(clock_.Now() - start);
    const double gbps = static_cast<double>(blocks * config_.block_bytes) / 1e9 / seconds;
    if (std::memcmp(target_.data(), source_.data(), source_.size()) != 0)
      return absl::DataLossError("self-test of the transport: bytes differ");
    transport_.KeepSelfTest(peers_.front(), gbps);
    if (gbps < config_.min_gbps)
      return absl::FailedPreconditionError(absl::StrFormat(
          "self-test of the transport: %.2f GB/s, at least %.2f expected", gbps, config_.min_gbps));
    return absl::OkStatus();
  }

  absl::Status Move(uint64_t blocks) {
    uint64_t offered = 0;
    pulled_ = 0;
    return RunUntil([&] {
      for (; offered < blocks && open_sends_ < config_.window; ++offered, ++open_sends_) {
        const std::byte header{0};
        transport_.Offer(peers_.front(), std::span(&header, 1), {from_, 0, config_.block_bytes});
      }
      return pulled_ == blocks;
    });
  }

  absl::Status RunUntil(const std::function<bool()>& done) {
    const absl::Time end = clock_.Now() + config_.limit;
    while (!done()) {
      transport_.Progress(*this);
      PullPending();
      if (!failure_.ok()) return failure_;
      if (clock_.Now() > end)
        return absl::DeadlineExceededError(absl::StrFormat(
            "self-test of the transport: not over after %s", absl::FormatDuration(config_.limit)));
    }
    return absl::OkStatus();
  }

  void PullPending() {
    while (!offers_.empty() && !free_slots_.empty()) {
      const int slot = free_slots_.front();
      free_slots_.pop_front();
      const Place to{to_, static_cast<uint64_t>(slot) * config_.block_bytes, config_.block_bytes};
      slots_.push_back({transport_.Pull(offers_.front(), to), slot});
      offers_.pop_front();
      ++open_pulls_;
    }
  }

  void OnFrame(PeerId, std::span<const std::byte>) override {}
  void OnOffer(PeerId, OfferId offer, std::span<const std::byte>, uint64_t) override {
    offers_.push_back(offer);
  }
  void OnPulled(ReceiveId receive, const absl::Status& status) override {
    if (!status.ok()) failure_ = status;
    ++pulled_;
    --open_pulls_;
    std::erase_if(slots_, [&](const auto& slot) {
      if (slot.first == receive) free_slots_.push_back(slot.second);
      return slot.first == receive;
    });
  }
  void OnSent(SendId, const absl::Status& status) override {
    if (!status.ok()) failure_ = status;
    --open_sends_;
  }
  void OnPeer(PeerId peer, PeerState state, const absl::Status& status) override {
    if (state == PeerState::kDown) failure_ = status;
    if (state == PeerState::kUp && peer != peers_.front()) peers_.push_back(peer);
  }

  UcxTransport& transport_;
  const Clock& clock_;
  const SelfTestConfig config_;
  std::vector<std::byte> source_, target_;
  RegionId from_, to_;
  std::vector<PeerId> peers_;  // our end, then the accepted one
  std::deque<OfferId> offers_;
  std::deque<int> free_slots_;
  std::vector<std::pair<ReceiveId, int>> slots_;
  int open_sends_ = 0;
  int open_pulls_ = 0;
  uint64_t pulled_ = 0;
  absl::Status failure_;
};

}  // namespace

absl::Status SelfTest(UcxTransport& transport, const Clock& clock, const SelfTestConfig& config) {
  if (config.window < 1 || config.block_bytes == 0)
    return absl::InvalidArgumentError(absl::StrFormat("self-test: window %d, blocks of %d bytes",
                                                      config.window, config.block_bytes));
  return Loopback(transport, clock, config).Run();
}

}  // namespace baton::kvtransfer
