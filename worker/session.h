#pragma once

#include <string>
#include <variant>

#include "absl/status/status.h"

#include "common/ids.h"
#include "proto/wire.h"

// The seam between the gRPC edge of a worker (session_service, gRPC threads) and its core (engine
// thread).
namespace baton::worker {

struct SessionOpened {
  SessionId session;
  wire::RouterHello hello;
};
struct SessionMessage {
  SessionId session;
  wire::RouterMessage message;  // without hello and beat: the service has handled those
};
// Stream end or silence: everything the router booked here is cancelled.
struct SessionClosed {
  SessionId session;
  absl::Status status;
};
using SessionEvent = std::variant<SessionOpened, SessionMessage, SessionClosed>;

// Any thread.
class SessionSender {
 public:
  virtual ~SessionSender() = default;
  // Queues a message in the order of writing of contracts.md 5; a full outbox closes the session
  // (SessionClosed follows).
  virtual void Send(SessionId session, wire::WorkerMessage message) = 0;
  // A protocol violation: ends the stream with that status.
  virtual void Close(SessionId session, const absl::Status& status) = 0;
};

}  // namespace baton::worker
