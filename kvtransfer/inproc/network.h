#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/time/time.h"

#include "common/clock.h"
#include "common/rng.h"
#include "kvtransfer/transport.h"

namespace baton::kvtransfer {

class InprocTransport;

// How one direction of a link behaves. Chances are in [0, 1] and are drawn per frame, announce or
// pull.
struct LinkSettings {
  absl::Duration min_delay = absl::Microseconds(20);
  absl::Duration max_delay = absl::Microseconds(200);
  double drop = 0;  // of a frame or an announce
  double duplicate = 0;
  double reorder = 0;           // overtakes or is overtaken
  double corrupt_block = 0;     // one bit of a block flips on its way
  double corrupt_announce = 0;  // one bit of the announce
  absl::Duration min_pull = absl::Microseconds(50);
  absl::Duration max_pull = absl::Microseconds(500);
  double late_pull = 0;  // completes `late_by` later
  absl::Duration late_by = absl::Seconds(3);
  double stuck_pull = 0;               // completes only at Disconnect
  bool is_pull_tied_to_source = true;  // a pull from a stopped process waits until that goes on
  bool is_close_told = true;           // the other side sees kDown after a Disconnect
};

// The wires between all InprocTransports of a simulation, in virtual time: deterministic for one
// seed and one order of calls. Must outlive its transports. One thread.
class InprocNetwork {
 public:
  InprocNetwork(Clock& clock, Rng& rng) : clock_(clock), rng_(rng) {}

  // A process start: a transport reachable under `address`. An earlier one of that address must be
  // dead.
  std::unique_ptr<InprocTransport> Create(const std::string& address, Incarnation incarnation);

  void SetDefaultLink(const LinkSettings& settings) { default_link_ = settings; }
  void SetLink(const std::string& from, const std::string& to, const LinkSettings& settings) {
    links_[{from, to}] = settings;
  }

  void Stop(
      const std::string& address);  // SIGSTOP: nothing of it runs, what it sent before arrives
  void Continue(const std::string& address);  // SIGCONT
  // kill -9: peers see kDown after `notice`. Its memory is never read again; the object may be
  // destroyed any time.
  void Kill(const std::string& address, absl::Duration notice = absl::Milliseconds(210));

  // When a running transport next has something to do; InfiniteFuture if none has.
  absl::Time NextEventTime() const;

 private:
  friend class InprocTransport;

  // What both ends share. End 0 connected, end 1 accepted.
  struct Connection {
    uint64_t node[2] = {0, 0};
    PeerId peer[2];  // names of the connection at its ends
    bool is_open[2] = {true, false};
    absl::Time last_arrival[2] = {absl::InfinitePast(), absl::InfinitePast()};  // at that end
    absl::Time hello_arrival = absl::InfinitePast();  // nothing overtakes it
  };
  struct OfferRecord {
    uint64_t connection = 0;
    int to_end = 0;
    uint64_t source_node = 0;
    SendId send;
    Place from;
  };

  const LinkSettings& LinkOf(uint64_t from_node, uint64_t to_node) const;
  // Null when the process is dead.
  InprocTransport* Node(uint64_t id) const;
  absl::Duration Between(absl::Duration low, absl::Duration high);
  bool Chance(double probability) { return probability > 0 && rng_.Uniform() < probability; }
  // When something sent now from `from_end` arrives; keeps the order unless the link reorders.
  absl::Time ArrivalAt(Connection& connection, int from_end);
  void TellDown(uint64_t connection, int end, absl::Time at, const absl::Status& status);
  void Remove(uint64_t node, absl::Duration notice);

  Clock& clock_;
  Rng& rng_;
  LinkSettings default_link_;
  std::map<std::pair<std::string, std::string>, LinkSettings> links_;
  std::map<std::string, uint64_t> addresses_;  // of living nodes
  std::map<uint64_t, InprocTransport*> nodes_;
  std::map<uint64_t, std::string> names_;  // of all nodes ever
  std::map<uint64_t, Connection> connections_;
  std::map<OfferId, OfferRecord> offers_;
  std::map<SendId, int> offers_of_send_;  // unanswered; the send completes with the last
  uint64_t next_id_ = 1;                  // one counter for every kind of id
  uint64_t next_sequence_ = 0;            // breaks ties of time
};

}  // namespace baton::kvtransfer
