#include "worker/session_service.h"

#include <atomic>
#include <grpcpp/grpcpp.h>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "common/log.h"
#include "common/mutex.h"
#include "proto/session.grpc.pb.h"
#include "proto/session_outbox.h"

namespace baton::worker {
namespace {

using Outbox = wire::SessionOutbox<wire::WorkerMessage>;

grpc::Status ToGrpc(const absl::Status& status) {
  return {static_cast<grpc::StatusCode>(status.code()), std::string(status.message())};
}

bool IsBulk(const wire::WorkerMessage& message) {
  if (message.cache_events.empty()) return false;
  wire::WorkerMessage rest = message;
  rest.cache_events.clear();
  return rest == wire::WorkerMessage{};
}

// What the kinds that grow large hold in memory; the rest is bounded by the number of messages.
size_t LargeBytes(const wire::WorkerMessage& message) {
  size_t bytes = 0;
  for (const wire::PromptLogprobs& report : message.prompt_logprobs)
    for (const TokenRecord& record : report.tokens)
      bytes += sizeof(record) + record.top.size() * sizeof(record.top[0]);
  for (const wire::CacheEvents& events : message.cache_events)
    bytes += (events.added.size() + events.removed.size()) * sizeof(PageName);
  return bytes;
}

}  // namespace

class SessionService::Impl final : public pb::Worker::CallbackService {
 public:
  Impl(SessionServiceOptions options, SessionFacts facts, const Clock& clock,
       BoundedQueue<SessionEvent>& events)
      : options_(std::move(options)), facts_(std::move(facts)), clock_(clock), events_(events) {}
  ~Impl() override;

  absl::Status Listen();
  void Send(SessionId session, wire::WorkerMessage message, Outbox::Lane lane);
  void Close(SessionId session, const absl::Status& status);
  int port() const { return port_; }
  bool IsFlushed() const;
  void EndAll(const absl::Status& status);
  int num_sessions() const {
    MutexLock lock(mutex_);
    return static_cast<int>(streams_.size());
  }

  grpc::ServerBidiReactor<pb::RouterMessage, pb::WorkerMessage>* Session(
      grpc::CallbackServerContext* context) override;

 private:
  class Stream;
  void Forget(SessionId session, const absl::Status& status);
  void BeatLoop();
  void BeatAll(uint64_t number);

  const SessionServiceOptions options_;
  const SessionFacts facts_;
  const Clock& clock_;
  BoundedQueue<SessionEvent>& events_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::thread beat_thread_;
  mutable Mutex mutex_;  // streams come and go on gRPC threads, while the engine sends
  ConditionVariable stopping_;
  bool is_stopping_ GUARDED_BY(mutex_) = false;
  uint64_t next_session_ GUARDED_BY(mutex_) = 1;
  std::unordered_map<SessionId, Stream*> streams_ GUARDED_BY(mutex_);
};

// One session's stream. gRPC threads; Push and End: any thread, under the service's mutex.
class SessionService::Impl::Stream final
    : public grpc::ServerBidiReactor<pb::RouterMessage, pb::WorkerMessage> {
 public:
  Stream(Impl& service, grpc::CallbackServerContext* context, SessionId session)
      : service_(service),
        context_(context),
        session_(session),
        outbox_(service.options_.max_outbox_messages, service.options_.max_outbox_bytes),
        last_heard_us_(absl::ToUnixMicros(service.clock_.Now())) {
    wire::WorkerMessage first;
    first.hello = service.facts_.hello;
    outbox_.Push(Outbox::Lane::kControl, std::move(first));
  }

  void Begin() {
    ReadNext();
    WriteNext();
  }

  void Push(wire::WorkerMessage message, Outbox::Lane lane) {
    const size_t bytes = LargeBytes(message);
    if (outbox_.Push(lane, std::move(message), bytes) == Outbox::Pushed::kFull) {
      End(absl::ResourceExhaustedError("the router reads too slowly: its outbox is full"),
          /*hard=*/true);
      return;
    }
    WriteNext();
  }

  // `hard` cancels what is in flight; else the status follows what is being written.
  void End(const absl::Status& status, bool hard) {
    MutexLock lock(operation_mutex_);
    if (is_ended_) return;
    is_ended_ = true;
    end_status_ = status;
    if (hard) context_->TryCancel();
    Finish(ToGrpc(status));
  }

  void Beat(uint64_t number) {
    wire::Beat beat = service_.facts_.engine_beat();
    beat.number = number;
    beat.echo = last_beat_.load();
    wire::WorkerMessage message;
    message.beat = beat;
    Push(std::move(message), Outbox::Lane::kBeat);
  }

  absl::Duration Silence() const {
    return service_.clock_.Now() - absl::FromUnixMicros(last_heard_us_.load());
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      End(absl::CancelledError("the router ended the stream"), /*hard=*/false);
      return;
    }
    last_heard_us_ = absl::ToUnixMicros(service_.clock_.Now());
    if (const absl::Status status = Accept(); !status.ok()) {
      Log(LogLevel::kWarn, "session_refused",
          absl::StrFormat("session=%d error=%s", session_.value, status.ToString()));
      End(status, /*hard=*/false);
      return;
    }
    ReadNext();
  }

  void OnWriteDone(bool ok) override {
    outbox_.Written();
    if (ok) WriteNext();
  }

  void OnCancel() override {
    End(absl::CancelledError("the router's stream broke"), /*hard=*/false);
  }

  void OnDone() override {
    absl::Status status;
    {
      MutexLock lock(operation_mutex_);
      status = end_status_;
    }
    service_.Forget(session_, status);
    delete this;
  }

 private:
  // Checks one message and passes on what concerns the engine.
  absl::Status Accept() {
    auto message = wire::FromProto(incoming_);
    if (!message.ok()) return message.status();
    if (message->hello.has_value() == has_hello_)
      return absl::InvalidArgumentError(has_hello_ ? "hello: sent twice"
                                                   : "hello: must be the first message");
    SessionEvent event;
    if (!has_hello_) {
      has_hello_ = true;
      is_open_ = true;
      event = SessionOpened{session_, *message->hello};
      if (!service_.events_.TryPush(std::move(event))) return Refusal();
      message->hello.reset();
    }
    if (message->beat) {
      last_beat_ = message->beat->number;
      message->beat.reset();
    }
    if (*message == wire::RouterMessage{}) return absl::OkStatus();
    event = SessionMessage{session_, *std::move(message)};
    return service_.events_.TryPush(std::move(event)) ? absl::OkStatus() : Refusal();
  }

  absl::Status Refusal() const {
    if (service_.events_.IsClosed()) return absl::UnavailableError("the worker is ending");
    return absl::ResourceExhaustedError("the worker's inbox is full");
  }

  void ReadNext() {
    MutexLock lock(operation_mutex_);
    if (!is_ended_) StartRead(&incoming_);
  }

  void WriteNext() {
    MutexLock lock(operation_mutex_);
    if (is_ended_) return;
    std::optional<wire::WorkerMessage> next = outbox_.Next();
    if (!next) return;
    outgoing_.Clear();
    wire::ToProto(*next, outgoing_);
    StartWrite(&outgoing_);
  }

  friend class Impl;
  Impl& service_;
  grpc::CallbackServerContext* const context_;
  const SessionId session_;
  Outbox outbox_;
  pb::RouterMessage incoming_;
  pb::WorkerMessage outgoing_;  // of the write in flight
  bool has_hello_ = false;      // read callbacks only
  std::atomic<bool> is_open_ = false;
  std::atomic<uint64_t> last_beat_ = 0;
  std::atomic<int64_t> last_heard_us_;
  // gRPC forbids starting an operation beside or after Finish, and any thread may start one.
  Mutex operation_mutex_;
  bool is_ended_ GUARDED_BY(operation_mutex_) = false;
  absl::Status end_status_ GUARDED_BY(operation_mutex_);
};

SessionService::Impl::~Impl() {
  {
    MutexLock lock(mutex_);
    is_stopping_ = true;
  }
  stopping_.NotifyAll();
  if (beat_thread_.joinable()) beat_thread_.join();
  // Ends every stream: their OnCancel and OnDone run before Shutdown returns. The epoch: gRPC takes
  // a time before it for "never".
  if (server_) server_->Shutdown(std::chrono::system_clock::time_point());
}

absl::Status SessionService::Impl::Listen() {
  grpc::ServerBuilder builder;
  builder.AddListeningPort(options_.listen_address, grpc::InsecureServerCredentials(), &port_);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port_ == 0)
    return absl::UnavailableError(
        absl::StrFormat("cannot listen on %s for sessions", options_.listen_address));
  beat_thread_ = std::thread([this] { BeatLoop(); });
  return absl::OkStatus();
}

grpc::ServerBidiReactor<pb::RouterMessage, pb::WorkerMessage>* SessionService::Impl::Session(
    grpc::CallbackServerContext* context) {
  Stream* stream = nullptr;
  bool is_refused = false;
  {
    MutexLock lock(mutex_);
    is_refused = is_stopping_ || static_cast<int>(streams_.size()) >= options_.max_sessions;
    stream = new Stream(*this, context, SessionId{next_session_++});  // deletes itself in OnDone
    if (!is_refused) streams_.emplace(stream->session_, stream);
  }
  if (is_refused) {
    stream->End(absl::ResourceExhaustedError(
                    absl::StrFormat("the worker has its %d sessions", options_.max_sessions)),
                /*hard=*/false);
  } else {
    stream->Begin();
  }
  return stream;
}

void SessionService::Impl::Send(SessionId session, wire::WorkerMessage message, Outbox::Lane lane) {
  MutexLock lock(mutex_);
  if (const auto stream = streams_.find(session); stream != streams_.end())
    stream->second->Push(std::move(message), lane);
}

void SessionService::Impl::Close(SessionId session, const absl::Status& status) {
  MutexLock lock(mutex_);
  if (const auto stream = streams_.find(session); stream != streams_.end())
    stream->second->End(status, /*hard=*/false);
}

bool SessionService::Impl::IsFlushed() const {
  MutexLock lock(mutex_);
  for (const auto& [session, stream] : streams_)
    if (!stream->outbox_.IsEmpty()) return false;
  return true;
}

void SessionService::Impl::EndAll(const absl::Status& status) {
  MutexLock lock(mutex_);
  for (const auto& [session, stream] : streams_) stream->End(status, /*hard=*/false);
}

void SessionService::Impl::Forget(SessionId session, const absl::Status& status) {
  bool was_open = false;
  {
    MutexLock lock(mutex_);
    const auto stream = streams_.find(session);
    if (stream == streams_.end()) return;
    was_open = stream->second->is_open_;
    streams_.erase(stream);
  }
  if (!was_open) return;
  // The end of a session frees what it booked: it must not be lost for lack of room, so the engine
  // thread gets time to drain.
  SessionEvent event = SessionClosed{session, status};
  while (!events_.TryPush(std::move(event)) && !events_.IsClosed())
    baton::SleepFor(absl::Milliseconds(1));
}

void SessionService::Impl::BeatLoop() {
  uint64_t number = 1;
  while (true) {
    {
      MutexLock lock(mutex_);
      if (is_stopping_) return;
      stopping_.WaitFor(mutex_, options_.beat_interval);
      if (is_stopping_) return;
    }
    BeatAll(number++);
  }
}

void SessionService::Impl::BeatAll(uint64_t number) {
  MutexLock lock(mutex_);
  for (const auto& [session, stream] : streams_) {
    if (stream->Silence() >= options_.silence) {
      Log(LogLevel::kWarn, "session_silent",
          absl::StrFormat("session=%d silence_ms=%d", session.value,
                          absl::ToInt64Milliseconds(stream->Silence())));
      stream->End(absl::UnavailableError("the router was silent too long"), /*hard=*/true);
    } else {
      stream->Beat(number);
    }
  }
}

absl::StatusOr<std::unique_ptr<SessionService>> SessionService::Start(
    SessionServiceOptions options, SessionFacts facts, const Clock& clock,
    BoundedQueue<SessionEvent>& events) {
  auto impl = std::make_unique<Impl>(std::move(options), std::move(facts), clock, events);
  if (const absl::Status status = impl->Listen(); !status.ok()) return status;
  return std::unique_ptr<SessionService>(new SessionService(std::move(impl)));
}

SessionService::SessionService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SessionService::~SessionService() = default;

void SessionService::Send(SessionId session, wire::WorkerMessage message) {
  const Outbox::Lane lane = IsBulk(message) ? Outbox::Lane::kBulk : Outbox::Lane::kControl;
  impl_->Send(session, std::move(message), lane);
}

void SessionService::Close(SessionId session, const absl::Status& status) {
  impl_->Close(session, status);
}
bool SessionService::IsFlushed() const { return impl_->IsFlushed(); }
void SessionService::EndAll(const absl::Status& status) { impl_->EndAll(status); }
int SessionService::port() const { return impl_->port(); }
int SessionService::num_sessions() const { return impl_->num_sessions(); }

}  // namespace baton::worker
