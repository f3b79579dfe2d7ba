#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "common/check.h"
#include "kvtransfer/receiver.h"

// Any sequence of frames from any peers, with the transport's and the engine's events between them:
// a landing keeps its window, moves each piece of memory in one pull at a time, gives back all of
// it once, and closes when it was told to and the last pull is over.
namespace baton::kvtransfer {
namespace {

constexpr uint32_t kNumPages = 3;
constexpr uint64_t kPageBytes = 100, kTailBytes = 50;
constexpr size_t kMaxSteps = 500;

class Landing {
 public:
  explicit Landing(std::span<const uint8_t> data) : data_(data) {}

  void Run() {
    for (size_t steps = 0; at_ < data_.size() && steps < kMaxSteps; ++steps) Step();
    On(Cancelled{});
    while (!pulls_.empty()) EndPull(/*is_ok=*/true);
    while (!digests_.empty()) EndDigest(/*is_good=*/true);
    CHECK(receiver_.IsClosed() && is_closed_);
    CHECK(held_.empty() && open_offers_.empty());
  }

 private:
  uint8_t Next() { return at_ < data_.size() ? data_[at_++] : uint8_t{0}; }

  void Step() {
    const uint8_t what = Next();
    now_ += absl::Milliseconds(what);
    switch (what % 10) {
      case 0:
      case 1:
      case 2:
        return Offer();
      case 3:
        return EndPull(what % 4 != 0);
      case 4:
        return EndDigest(what % 4 != 0);
      case 5:
        return Credit(what % 3 == 0);
      case 6:
        return On(AttemptChanged{++attempt_});
      case 7:
        return On(PeerAborted{PeerId{what % 3u}, attempt_, static_cast<AbortReason>(Next())});
      case 8:
        return On(PeerLost{PeerId{what % 3u}});
      default:
        if (what > 250) return On(Cancelled{});
        On(TimePassed{});
    }
  }

  // As in a frame that was decoded; each field is right or not by a bit of the input.
  void Offer() {
    const uint8_t wrong = Next(), choice = Next();
    BlockOffered event;
    event.peer = PeerId{choice % 3u};
    event.offer = OfferId{next_offer_++};
    event.head = {.transfer = open_.transfer,
                  .attempt = attempt_ + ((wrong & 1) != 0 ? 1 : 0),
                  .sender = Incarnation{1},
                  .receiver = Incarnation{2},
                  .secret = (wrong & 2) != 0 ? Secret{} : open_.secret};
    const uint32_t block = choice / 8 % (kNumPages + 2);
    const bool is_tail = block == kNumPages;
    event.announce.block = is_tail ? kTailBlock : block;
    event.announce.layout = open_.layout;
    if ((wrong & 4) != 0) event.announce.layout.bytes[0] ^= 1;
    event.announce.shard = (wrong & 8) != 0 ? 1 : 0;
    event.announce.num_shards = (wrong & 8) != 0 ? 2 : 1;
    event.announce.bytes = (is_tail ? kTailBytes : kPageBytes) + ((wrong & 16) != 0 ? 1 : 0);
    event.announce.digest = Digest128{{1}};
    event.bytes = event.announce.bytes + ((wrong & 32) != 0 ? 1 : 0);
    open_offers_.insert(event.offer.value);
    On(event);
  }

  void EndPull(bool is_ok) {
    if (pulls_.empty()) return;
    const auto [ticket, memory] = *pulls_.begin();
    pulls_.erase(pulls_.begin());
    under_io_.erase(memory);
    On(BlockPulled{ticket, is_ok ? absl::OkStatus() : absl::UnavailableError("down")});
  }

  void EndDigest(bool is_good) {
    if (digests_.empty()) return;
    const auto [ticket, memory] = *digests_.begin();
    digests_.erase(digests_.begin());
    under_io_.erase(memory);
    On(BlockDigested{ticket, Digest128{{is_good ? uint8_t{1} : uint8_t{2}}}});
  }

  void Credit(bool is_tail) {
    const int memory = next_memory_++;
    held_.insert(memory);
    const Place place{RegionId{0}, static_cast<uint64_t>(memory) * 128, 128};
    On(CreditAdded{{{.block = is_tail ? kTailBlock : 0u, .memory = memory, .place = place}}});
  }

  void On(const ReceiverEvent& event) {
    std::vector<TransferAction> actions;
    receiver_.On(event, now_, actions);
    for (const TransferAction& action : actions) Do(action);
    CHECK(pulls_.size() == static_cast<size_t>(receiver_.NumOpenPulls()));
  }

  void Do(const TransferAction& action) {
    if (const auto* pull = std::get_if<PullBlock>(&action)) {
      CHECK(open_offers_.erase(pull->offer.value) == 1);
      const int memory = static_cast<int>(pull->to.offset / 128);
      CHECK(pull->to.bytes == kPageBytes || pull->to.bytes == kTailBytes);
      CHECK(held_.contains(memory) && under_io_.insert(memory).second);
      pulls_.emplace(pull->ticket, memory);
    } else if (const auto* digest = std::get_if<DigestBlock>(&action)) {
      const int memory = static_cast<int>(digest->place.offset / 128);
      CHECK(held_.contains(memory) && under_io_.insert(memory).second);
      digests_.emplace(digest->ticket, memory);
    } else if (const auto* drop = std::get_if<DropOffer>(&action)) {
      CHECK(open_offers_.erase(drop->offer.value) == 1);
    } else if (const auto* notify = std::get_if<Notify>(&action)) {
      Hear(notify->event);
    }
  }

  void Hear(const AgentEvent& event) {
    if (const auto* returned = std::get_if<MemoryReturned>(&event)) {
      CHECK(held_.erase(returned->memory.memory) == 1);
      CHECK(!under_io_.contains(returned->memory.memory));
    } else if (const auto* landed = std::get_if<BlockLanded>(&event)) {
      CHECK(held_.contains(landed->memory.memory) && !under_io_.contains(landed->memory.memory));
    } else if (std::holds_alternative<LandingClosed>(event)) {
      CHECK(!std::exchange(is_closed_, true) && under_io_.empty());
    }
  }

  const std::span<const uint8_t> data_;
  size_t at_ = 0;
  const OpenLanding open_ = {.transfer = TransferId{{7}},
                             .attempt = 1,
                             .secret = Secret{{9}},
                             .num_pages = kNumPages,
                             .page_bytes = kPageBytes,
                             .tail_bytes = kTailBytes,
                             .layout = LayoutId{{3}},
                             .window = 3};
  TransferReceiver receiver_{open_, TransferLimits{}};
  absl::Time now_ = absl::UnixEpoch();
  Attempt attempt_ = 1;
  uint64_t next_offer_ = 1;
  int next_memory_ = 0;
  std::set<uint64_t> open_offers_;         // neither pulled nor dropped
  std::set<int> held_;                     // memory that the landing has
  std::set<int> under_io_;                 // of it: under a pull or a digest
  std::map<Ticket, int> pulls_, digests_;  // with their memory
  bool is_closed_ = false;
};

}  // namespace
}  // namespace baton::kvtransfer

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::kvtransfer::Landing(std::span(data, size)).Run();
  return 0;
}
