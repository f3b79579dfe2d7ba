#pragma once

#include <string>
#include <variant>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/ids.h"
#include "proto/wire.h"
#include "router/plan/request.h"

// What goes into RouterCore and what comes out of it (contracts.md 6). Plain values.
namespace baton::router {

// 0: the core's own timer; otherwise the key of the request it belongs to.
using TimerId = StrongId<struct TimerIdTag, uint64_t>;

struct RequestArrived {
  RequestKey key;  // > 0
  GenerateRequest request;
};
struct ClientGone {  // the whole request is cancelled
  RequestKey key;
  std::string reason;
};
struct CancelChoice {  // the client has enough of one choice; no event of it follows
  RequestKey key;
  int choice = 0;
  std::string reason;
};
struct WorkerAdded {  // an address to connect to; nothing is known of it yet
  WorkerId worker;
  std::string address;
};
struct WorkerUp {  // a new session: nothing of an older one survives
  WorkerId worker;
  wire::WorkerHello hello;
  std::string address = {};  // empty: as added
};
struct WorkerDown {  // the session ended or was silent too long
  WorkerId worker;
  absl::Status status;
};
struct WorkerSaid {  // one message (a batch); its hello is ignored here
  WorkerId worker;
  wire::WorkerMessage message;
  absl::Time received_at = absl::InfinitePast();  // off the wire, for stage times; past: now
};
struct TimerFired {  // early or stale firings are harmless
  TimerId timer;
};
using CoreEvent = std::variant<RequestArrived, ClientGone, CancelChoice, WorkerAdded, WorkerUp,
                               WorkerDown, WorkerSaid, TimerFired>;

// A Move with the transfer that it ends, of which its worker knows; the wire names the new one.
struct MoveSequence {
  TransferId transfer;
  wire::Move move;
};
// One item of a RouterMessage. Outbox (outbox.h) packs pieces into messages.
using RouterPiece = std::variant<wire::Cancel, wire::Reserve, wire::Retarget, wire::Run,
                                 wire::PromptChunk, MoveSequence>;
struct SendToWorker {
  WorkerId worker;
  RouterPiece piece;
  bool introduces = false;  // the first this worker hears of the transfer
};
struct EmitToRequest {
  RequestKey request;
  RequestEvent event;
};
// One-shot; the core never takes one back, so a firing may be stale.
struct SetTimer {
  TimerId timer;
  absl::Time at;
};
using CoreAction = std::variant<SendToWorker, EmitToRequest, SetTimer>;

}  // namespace baton::router
