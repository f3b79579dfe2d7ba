#include <algorithm>
#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "kvtransfer/inproc/network.h"
#include "kvtransfer/inproc/transport.h"
#include "kvtransfer/staged/staged_transport.h"
#include "kvtransfer/staged/test_copier.h"

// Nodes that do everything a Transport allows at random moments, over links and copiers that fail
// at random. Whatever happens: each offer and pull completes exactly once, bytes that were said to
// have come are the sender's, memory is touched by nobody after its completion, and all slots come
// back.
namespace baton::kvtransfer {
namespace {

constexpr uint64_t kSlotBytes = 128;
constexpr uint64_t kPageBytes = 160;  // some blocks fit into no slot
constexpr size_t kNumPages = 24;      // of each kind of memory

// What the nodes of one run share: their world, and what was sent.
struct World {
  explicit World(uint64_t seed) : rng(seed) {}

  bool Chance(double probability) { return rng.Uniform() < probability; }

  ManualClock clock;
  SeededRng rng;
  InprocNetwork network{clock, rng};
  // Blocks whose sender closed the connection under them: they may come as anything, which digests
  // would tell.
  std::set<uint64_t> torn;
  uint64_t next_number = 1;
  int good_pulls = 0, failed_copies = 0, waits = 0, cut_copies = 0, too_large = 0;
};

class Node final : public TransportEvents {
 public:
  Node(World& world, const std::string& address, uint64_t incarnation)
      : world_(world),
        staging_(5 * kSlotBytes),
        device_(kNumPages * kPageBytes),
        host_(kNumPages * kPageBytes),
        inner_(world.network.Create(address, Incarnation{incarnation})),
        transport_(*StagedTransport::Create(*inner_, copier_,
                                            {.memory = staging_,
                                             .slot_bytes = kSlotBytes,
                                             .num_offer_slots = 1 + world.rng.Below(3),
                                             .num_pull_slots = 1 + world.rng.Below(2)})) {
    copier_.Set({.failure = 0.1 * world.rng.Uniform()});
    const RegionId host = *transport_->Register(host_, MemoryKind::kHost);
    const RegionId device = *transport_->Register(device_, MemoryKind::kDevice);
    for (size_t i = 0; i < 2 * kNumPages; ++i) {
      const RegionId region = i % 2 == 0 ? host : device;
      pages_.push_back(
          {.place = {region, i / 2 * kPageBytes, kPageBytes}, .is_device = i % 2 == 1});
      Free(i);
    }
  }

  void OnFrame(PeerId from, std::span<const std::byte>) override { ExpectOpen(from); }
  void OnOffer(PeerId from, OfferId offer, std::span<const std::byte> announce,
               uint64_t bytes) override {
    ExpectOpen(from);
    uint64_t number = 0;
    std::memcpy(&number, announce.data(), sizeof(number));
    held_.push_back({offer, number, bytes});
    if (world_.Chance(0.7)) Answer();
  }
  void OnPulled(ReceiveId receive, const absl::Status& status) override {
    const auto it = pulls_.find(receive);
    ASSERT_NE(it, pulls_.end()) << "completed twice, or never begun";
    const OpenPull pull = it->second;
    pulls_.erase(it);
    const bool fits = pull.bytes <= kSlotBytes || !pages_[pull.page].is_device;
    EXPECT_TRUE(fits || !status.ok());
    world_.too_large += fits ? 0 : 1;
    world_.failed_copies += absl::IsDataLoss(status) ? 1 : 0;
    if (status.ok() && !world_.torn.contains(pull.number)) {
      ++world_.good_pulls;
      EXPECT_TRUE(Holds(pull.page, pull.number, pull.bytes)) << "block " << pull.number;
    }
    Free(pull.page);
  }
  void OnSent(SendId send, const absl::Status& status) override {
    const auto it = sends_.find(send);
    ASSERT_NE(it, sends_.end()) << "completed twice, or never begun";
    EXPECT_TRUE(Holds(it->second.page, it->second.number, it->second.bytes));
    world_.failed_copies += absl::IsDataLoss(status) ? 1 : 0;
    Free(it->second.page);
    sends_.erase(it);
  }
  void OnPeer(PeerId peer, PeerState state, const absl::Status&) override {
    ExpectOpen(peer);
    if (state == PeerState::kUp) peers_.insert(peer);
  }

  void Connect(const std::string& address, uint64_t incarnation) {
    peers_.insert(transport_->Connect(address, Incarnation{incarnation}));
  }
  // Offers a block of random size from random memory to a random peer, which may be gone.
  void Offer() {
    const size_t page = FreePage();
    const auto& targets = !gone_.empty() && world_.Chance(0.03) ? gone_ : peers_;
    if (page == pages_.size() || targets.empty()) return;
    const uint64_t number = world_.next_number++;
    const uint64_t bytes = 1 + world_.rng.Below(world_.Chance(0.05) ? kPageBytes : kSlotBytes);
    Fill(page, number, bytes);
    Place from = pages_[page].place;
    from.bytes = bytes;
    const PeerId to = *std::next(targets.begin(), world_.rng.Below(targets.size()));
    const SendId send = transport_->Offer(to, std::as_bytes(std::span(&number, 1)), from);
    EXPECT_TRUE(sends_.emplace(send, OpenSend{to, page, number, bytes}).second);
  }
  // Pulls or refuses an offer that was held back.
  void Answer() {
    const size_t page = FreePage();
    if (held_.empty() || page == pages_.size()) return;
    const auto it = held_.begin() + static_cast<int64_t>(world_.rng.Below(held_.size()));
    const HeldOffer offer = *it;
    held_.erase(it);
    if (world_.Chance(0.15)) {
      transport_->Refuse(offer.offer, RefuseReason::kStale);
      return;
    }
    pages_[page].is_free = false;
    Place to = pages_[page].place;
    to.bytes = offer.bytes;
    const ReceiveId receive = transport_->Pull(offer.offer, to);
    EXPECT_TRUE(pulls_.emplace(receive, OpenPull{page, offer.number, offer.bytes}).second);
    if (world_.Chance(0.1)) transport_->Refuse(offer.offer, RefuseReason::kStale);  // too late
  }
  void DisconnectOne() {
    if (peers_.empty()) return;
    const PeerId peer = *std::next(peers_.begin(), world_.rng.Below(peers_.size()));
    world_.cut_copies += copier_.NumOpen() > 0 ? 1 : 0;
    for (const auto& [send, open] : sends_)
      if (open.to == peer) world_.torn.insert(open.number);
    peers_.erase(peer);
    gone_.insert(peer);
    transport_->Disconnect(peer);
  }
  void DisconnectAll() {
    while (!peers_.empty()) DisconnectOne();
  }
  int Progress() { return transport_->Progress(*this); }
  absl::Time NextCopy() const { return copier_.NextTime(); }

  // Everything has ended, and free memory is as its owner left it.
  void ExpectQuiet() {
    EXPECT_TRUE(sends_.empty() && pulls_.empty()) << sends_.size() << " " << pulls_.size();
    const StagingStats& stats = transport_->stats();
    EXPECT_EQ(stats.offer_slots_in_use + stats.pull_slots_in_use, 0);
    EXPECT_EQ(stats.offers_waiting + stats.pulls_waiting, 0);
    EXPECT_FALSE(transport_->MustPoll());
    EXPECT_EQ(copier_.NumOpen(), 0u);
    for (size_t i = 0; i < pages_.size(); ++i)
      EXPECT_TRUE(pages_[i].is_free && Holds(i, pages_[i].seed, kPageBytes)) << "page " << i;
    world_.waits += static_cast<int>(stats.offers_waited + stats.pulls_waited);
  }

 private:
  struct Page {
    Place place;
    bool is_device = false;
    bool is_free = true;
    uint64_t seed = 0;  // of what a free page holds
  };
  struct HeldOffer {
    OfferId offer;
    uint64_t number = 0;
    uint64_t bytes = 0;
  };
  struct OpenSend {
    PeerId to;
    size_t page = 0;
    uint64_t number = 0;
    uint64_t bytes = 0;
  };
  struct OpenPull {
    size_t page = 0;
    uint64_t number = 0;
    uint64_t bytes = 0;
  };

  void ExpectOpen(PeerId peer) const { EXPECT_FALSE(gone_.contains(peer)); }
  std::span<std::byte> Bytes(size_t page) {
    auto& memory = pages_[page].is_device ? device_ : host_;
    return std::span(memory).subspan(pages_[page].place.offset, kPageBytes);
  }
  void Fill(size_t page, uint64_t seed, uint64_t bytes) {
    pages_[page].is_free = false;
    SeededRng rng(seed);
    for (std::byte& b : Bytes(page).first(bytes)) b = static_cast<std::byte>(rng.Next());
  }
  bool Holds(size_t page, uint64_t seed, uint64_t bytes) {
    SeededRng rng(seed);
    return std::ranges::all_of(Bytes(page).first(bytes), [&](std::byte b) {
      return b == static_cast<std::byte>(rng.Next());
    });
  }
  // The next owner writes at once.
  void Free(size_t page) {
    Page& p = pages_[page];
    p.seed = world_.rng.Next();
    Fill(page, p.seed, kPageBytes);
    p.is_free = true;
  }
  // A free page that is as it was left; pages_.size() if there is none.
  size_t FreePage() {
    const size_t first = world_.rng.Below(pages_.size());
    for (size_t i = 0; i < pages_.size(); ++i) {
      const size_t page = (first + i) % pages_.size();
      if (!pages_[page].is_free) continue;
      EXPECT_TRUE(Holds(page, pages_[page].seed, kPageBytes)) << "page " << page;
      return page;
    }
    return pages_.size();
  }

  World& world_;
  std::vector<std::byte> staging_, device_, host_;
  TestCopier copier_{world_.clock, world_.rng};
  std::unique_ptr<InprocTransport> inner_;
  std::unique_ptr<StagedTransport> transport_;
  std::vector<Page> pages_;
  std::set<PeerId> peers_, gone_;  // known, disconnected
  std::vector<HeldOffer> held_;
  std::map<SendId, OpenSend> sends_;
  std::map<ReceiveId, OpenPull> pulls_;
};

LinkSettings HostileLink(World& world) {
  LinkSettings link;
  link.drop = 0.05 * world.rng.Uniform();
  link.duplicate = 0.2 * world.rng.Uniform();
  link.reorder = 0.3 * world.rng.Uniform();
  link.late_pull = 0.1 * world.rng.Uniform();
  link.late_by = absl::Milliseconds(5);
  link.stuck_pull = 0.05 * world.rng.Uniform();
  link.is_close_told = world.Chance(0.5);
  return link;
}

class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : world_(seed) {
    world_.network.SetDefaultLink(HostileLink(world_));
    for (size_t i = 0; i < 2; ++i) Start(i);
  }

  void Go() {
    for (int step = 0; step < 400; ++step) {
      Act();
      Pass(absl::Microseconds(200) * world_.rng.Uniform());
    }
    for (const auto& node : nodes_) node->DisconnectAll();
    Pass(absl::Seconds(1));
    for (const auto& node : nodes_) node->ExpectQuiet();
    Pass(absl::Minutes(1));
    for (const auto& node : nodes_) node->ExpectQuiet();
  }
  const World& world() const { return world_; }

 private:
  static std::string Address(size_t index) { return index == 0 ? "a" : "b"; }
  void Start(size_t index) {
    nodes_[index] = std::make_unique<Node>(world_, Address(index), ++incarnations_[index]);
  }
  void Act() {
    const size_t index = world_.rng.Below(2);
    Node& node = *nodes_[index];
    const double dice = world_.rng.Uniform();
    if (dice < 0.6) {
      node.Offer();
    } else if (dice < 0.9) {
      node.Answer();
    } else if (dice < 0.97) {
      node.Connect(Address(1 - index), incarnations_[1 - index]);
    } else if (dice < 0.995) {
      node.DisconnectOne();
    } else {
      world_.network.Kill(Address(index), absl::Milliseconds(1));
      Start(index);
    }
  }
  void Pass(absl::Duration time) {
    const absl::Time end = world_.clock.Now() + time;
    while (true) {
      if (nodes_[0]->Progress() + nodes_[1]->Progress() > 0) continue;
      const absl::Time next =
          std::min({world_.network.NextEventTime(), nodes_[0]->NextCopy(), nodes_[1]->NextCopy()});
      if (next > end) break;
      world_.clock.Set(std::max(next, world_.clock.Now()));
    }
    world_.clock.Set(end);
  }

  World world_;
  uint64_t incarnations_[2] = {0, 0};
  std::unique_ptr<Node> nodes_[2];
};

TEST(StagedRandom, KeepsEveryPromiseOfATransport) {
  int good_pulls = 0, failed_copies = 0, waits = 0, cut_copies = 0, too_large = 0;
  for (uint64_t seed = 1; seed <= 200 && !::testing::Test::HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomRun run(seed);
    run.Go();
    good_pulls += run.world().good_pulls;
    failed_copies += run.world().failed_copies;
    waits += run.world().waits;
    cut_copies += run.world().cut_copies;
    too_large += run.world().too_large;
  }
  // It did meet what it is about.
  EXPECT_GT(good_pulls, 5000);
  EXPECT_GT(failed_copies, 500);
  EXPECT_GT(waits, 5000);
  EXPECT_GT(cut_copies, 100);
  EXPECT_GT(too_large, 10);
  RecordProperty("good_pulls", good_pulls);
}

}  // namespace
}  // namespace baton::kvtransfer
