#include "router/net/session_client.h"

#include <algorithm>
#include <atomic>
#include <grpcpp/grpcpp.h>
#include <map>
#include <netdb.h>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "proto/session.grpc.pb.h"
#include "proto/session_outbox.h"

namespace baton::router {
namespace {

using SessionBox = wire::SessionOutbox<wire::RouterMessage>;

// "host:port" with a port of 1..65535.
absl::Status CheckAddress(const std::string& entry, const std::string& address) {
  const size_t colon = address.rfind(':');
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  const bool is_number = !port.empty() && port.size() <= 5 &&
                         port.find_first_not_of("0123456789") == std::string::npos;
  if (colon == 0 || !is_number || std::stoi(port) < 1 || std::stoi(port) > 65'535)
    return absl::InvalidArgumentError(
        absl::StrFormat("workers: '%s' is no host:port or dns:host:port", entry));
  return absl::OkStatus();
}

// Every address of a name, as "ip:port"; empty when it does not resolve now.
std::vector<std::string> Resolve(const std::string& name) {
  const size_t colon = name.rfind(':');
  const std::string host = name.substr(0, colon), port = name.substr(colon + 1);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  std::vector<std::string> out;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found) != 0) return out;
  for (const addrinfo* item = found; item != nullptr; item = item->ai_next) {
    char text[NI_MAXHOST];
    if (getnameinfo(item->ai_addr, item->ai_addrlen, text, sizeof(text), nullptr, 0,
                    NI_NUMERICHOST) != 0)
      continue;
    const bool is_v6 = item->ai_family == AF_INET6;
    out.push_back(is_v6 ? absl::StrFormat("[%s]:%s", text, port)
                        : absl::StrFormat("%s:%s", text, port));
  }
  freeaddrinfo(found);
  return out;
}

}  // namespace

class SessionPool::Impl {
 public:
  Impl(SessionPoolOptions options, const Clock& clock)
      : options_(std::move(options)), clock_(clock) {}
  ~Impl() { Stop(); }
  absl::Status Start(PlannerThread& planner);
  void Stop();
  void Send(WorkerId worker, wire::RouterMessage message, SessionBox::Lane lane);
  void Close(WorkerId worker, const absl::Status& status);

 private:
  class Stream;
  struct Link {
    WorkerId worker;
    std::string address;
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<pb::Worker::Stub> stub;
    Stream* stream = nullptr;  // null: to be connected again at `connect_at`
    absl::Time connect_at;
  };
  void AddLink(const std::string& address) REQUIRES_LOCK(mutex_);
  void Connect(Link& link) REQUIRES_LOCK(mutex_);
  void Forget(Stream* stream, const absl::Status& status);
  void Run();
  void Tend(uint64_t beat);
  void ResolveLoop();
  void ResolveNames();

  const SessionPoolOptions options_;
  PlannerThread* planner_ = nullptr;  // set once, before the thread
  const Clock& clock_;
  std::thread thread_;    // beats and silence
  std::thread resolver_;  // a look-up may take seconds, a beat may not
  Mutex mutex_;           // the planner sends while streams come and go on gRPC threads
  ConditionVariable changed_;
  bool is_stopping_ GUARDED_BY(mutex_) = false;
  std::map<std::string, Link> links_ GUARDED_BY(mutex_);  // by address
  std::map<WorkerId, Link*> links_by_worker_ GUARDED_BY(mutex_);
  int open_streams_ GUARDED_BY(mutex_) = 0;
};

// One session. gRPC threads; Push and End: any thread, under the pool's mutex.
class SessionPool::Impl::Stream final
    : public grpc::ClientBidiReactor<pb::RouterMessage, pb::WorkerMessage> {
 public:
  Stream(Impl& pool, Link& link)
      : pool_(pool),
        worker_(link.worker),
        address_(link.address),
        outbox_(pool.options_.max_outbox_messages),
        last_heard_us_(absl::ToUnixMicros(pool.clock_.Now())) {
    wire::RouterMessage first;
    first.hello.emplace();
    first.hello->router_id = pool.options_.router_id;
    first.hello->incarnation = pool.options_.incarnation;
    outbox_.Push(SessionBox::Lane::kControl, std::move(first));
    link.stub->async()->Session(&context_, this);
    AddHold();  // for writes that start outside of reactions; removed by End
    StartCall();
    StartRead(&incoming_);
    WriteNext();
  }

  WorkerId worker() const { return worker_; }
  const std::string& address() const { return address_; }
  bool is_up() const { return is_up_; }

  void Push(wire::RouterMessage message, SessionBox::Lane lane) {
    if (outbox_.Push(lane, std::move(message)) == SessionBox::Pushed::kFull) {
      End(absl::ResourceExhaustedError("the worker reads too slowly: its outbox is full"));
      return;
    }
    WriteNext();
  }

  // `cancels`: breaks off what is in flight; a stream that the other side ended keeps that side's
  // status.
  void End(const absl::Status& status, bool cancels = true) {
    MutexLock lock(operation_mutex_);
    if (is_ended_) return;
    is_ended_ = true;
    end_status_ = status;
    if (cancels) context_.TryCancel();
    RemoveHold();
  }

  void Beat(uint64_t number) {
    wire::RouterMessage message;
    message.beat.emplace();
    message.beat->number = number;
    message.beat->echo = last_beat_.load();
    Push(std::move(message), SessionBox::Lane::kBeat);
  }

  absl::Duration Silence() const {
    return pool_.clock_.Now() - absl::FromUnixMicros(last_heard_us_.load());
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      End(absl::UnavailableError("the worker ended the stream"), /*cancels=*/false);
      return;
    }
    last_heard_us_ = absl::ToUnixMicros(pool_.clock_.Now());
    if (const absl::Status status = Accept(); !status.ok()) {
      Log(LogLevel::kWarn, "session_refused",
          absl::StrFormat("worker=%s error=%s", address_, status.ToString()));
      End(status);
      return;
    }
    MutexLock lock(operation_mutex_);
    if (!is_ended_) StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    outbox_.Written();
    if (ok) WriteNext();
  }

  void OnDone(const grpc::Status& grpc_status) override {
    absl::Status status;
    {
      MutexLock lock(operation_mutex_);
      status = end_status_;
    }
    if (!grpc_status.ok() && grpc_status.error_code() != grpc::StatusCode::CANCELLED)
      status = absl::Status(static_cast<absl::StatusCode>(grpc_status.error_code()),
                            grpc_status.error_message());
    pool_.Forget(this, status);
    delete this;
  }

 private:
  absl::Status Accept() {
    auto message = wire::FromProto(incoming_);
    if (!message.ok()) return message.status();
    if (message->hello.has_value() == is_up_)
      return absl::InvalidArgumentError(is_up_ ? "hello: sent twice"
                                               : "hello: must be the first message");
    if (!is_up_) {
      is_up_ = true;
      Log(LogLevel::kInfo, "session_up",
          absl::StrFormat("worker=%s id=%s incarnation=%d", address_, message->hello->worker_id,
                          message->hello->incarnation.value));
      pool_.planner_->OnWorkerEvent(worker_, SessionUp{*message->hello, address_});
      message->hello.reset();
    }
    if (message->beat) last_beat_ = message->beat->number;
    pool_.planner_->OnWorkerEvent(worker_, *std::move(message));
    return absl::OkStatus();
  }

  void WriteNext() {
    MutexLock lock(operation_mutex_);
    if (is_ended_) return;
    std::optional<wire::RouterMessage> next = outbox_.Next();
    if (!next) return;
    outgoing_.Clear();
    wire::ToProto(*next, outgoing_);
    StartWrite(&outgoing_);
  }

  Impl& pool_;
  const WorkerId worker_;
  const std::string address_;
  grpc::ClientContext context_;
  SessionBox outbox_;
  pb::WorkerMessage incoming_;
  pb::RouterMessage outgoing_;  // of the write in flight
  std::atomic<bool> is_up_ = false;
  std::atomic<uint64_t> last_beat_ = 0;
  std::atomic<int64_t> last_heard_us_;
  // gRPC forbids starting an operation after the last hold is gone, and any thread may start one.
  Mutex operation_mutex_;
  bool is_ended_ GUARDED_BY(operation_mutex_) = false;
  absl::Status end_status_ GUARDED_BY(operation_mutex_);
};

void SessionPool::Impl::Stop() {
  {
    MutexLock lock(mutex_);
    is_stopping_ = true;
    for (auto& [address, link] : links_)
      if (link.stream != nullptr) link.stream->End(absl::CancelledError("the router stops"));
  }
  changed_.NotifyAll();
  if (thread_.joinable()) thread_.join();
  if (resolver_.joinable()) resolver_.join();
  MutexLock lock(mutex_);
  while (open_streams_ > 0) changed_.WaitFor(mutex_, absl::Milliseconds(50));
}

absl::Status SessionPool::Impl::Start(PlannerThread& planner) {
  planner_ = &planner;
  {
    MutexLock lock(mutex_);
    for (const std::string& entry : options_.workers) {
      const bool is_name = entry.rfind("dns:", 0) == 0;
      RETURN_IF_ERROR(CheckAddress(entry, is_name ? entry.substr(4) : entry));
      if (!is_name) AddLink(entry);
    }
  }
  thread_ = std::thread([this] { Run(); });
  const auto is_name = [](const std::string& entry) { return entry.rfind("dns:", 0) == 0; };
  if (std::any_of(options_.workers.begin(), options_.workers.end(), is_name))
    resolver_ = std::thread([this] { ResolveLoop(); });
  return absl::OkStatus();
}

void SessionPool::Impl::AddLink(const std::string& address) {
  if (links_.contains(address)) return;
  Link& link = links_[address];
  link.worker = planner_->AddWorker(address);
  link.address = address;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  link.channel = grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
  link.stub = pb::Worker::NewStub(link.channel);
  link.connect_at = clock_.Now();
  links_by_worker_[link.worker] = &link;
}

void SessionPool::Impl::Connect(Link& link) {
  ++open_streams_;
  link.stream = new Stream(*this, link);  // deletes itself in OnDone
}

void SessionPool::Impl::Send(WorkerId worker, wire::RouterMessage message, SessionBox::Lane lane) {
  MutexLock lock(mutex_);
  const auto link = links_by_worker_.find(worker);
  if (link == links_by_worker_.end() || link->second->stream == nullptr) return;
  link->second->stream->Push(std::move(message), lane);
}

void SessionPool::Impl::Close(WorkerId worker, const absl::Status& status) {
  MutexLock lock(mutex_);
  const auto link = links_by_worker_.find(worker);
  if (link != links_by_worker_.end() && link->second->stream != nullptr)
    link->second->stream->End(status);
}

void SessionPool::Impl::Forget(Stream* stream, const absl::Status& status) {
  if (stream->is_up()) {
    Log(LogLevel::kInfo, "session_down",
        absl::StrFormat("worker=%s status=%s", stream->address(), status.ToString()));
    planner_->OnWorkerEvent(stream->worker(), SessionDown{status});
  }
  MutexLock lock(mutex_);
  Link& link = links_.at(stream->address());
  if (link.stream == stream) link.stream = nullptr;
  link.connect_at = clock_.Now() + options_.reconnect_interval;
  --open_streams_;
  changed_.NotifyAll();
}

void SessionPool::Impl::Run() {
  uint64_t beat = 1;
  absl::Time next_beat = clock_.Now();
  while (true) {
    const bool is_beat = clock_.Now() >= next_beat;
    if (is_beat) next_beat += options_.beat_interval;
    Tend(is_beat ? beat++ : 0);
    MutexLock lock(mutex_);
    if (is_stopping_) return;
    changed_.WaitFor(mutex_, absl::Milliseconds(50));
    if (is_stopping_) return;
  }
}

void SessionPool::Impl::Tend(uint64_t beat) {
  MutexLock lock(mutex_);
  if (is_stopping_) return;
  const absl::Time now = clock_.Now();
  for (auto& [address, link] : links_) {
    if (link.stream == nullptr) {
      if (now >= link.connect_at) Connect(link);
    } else if (link.stream->Silence() >= options_.silence) {
      link.stream->End(absl::UnavailableError("the worker was silent too long"));
    } else if (beat != 0 && link.stream->is_up()) {
      link.stream->Beat(beat);
    }
  }
}

void SessionPool::Impl::ResolveLoop() {
  while (true) {
    ResolveNames();
    MutexLock lock(mutex_);
    const absl::Time next = clock_.Now() + options_.resolve_interval;
    while (!is_stopping_ && clock_.Now() < next) changed_.WaitFor(mutex_, next - clock_.Now());
    if (is_stopping_) return;
  }
}

void SessionPool::Impl::ResolveNames() {
  for (const std::string& entry : options_.workers) {
    if (entry.rfind("dns:", 0) != 0) continue;
    const std::vector<std::string> addresses = Resolve(entry.substr(4));
    MutexLock lock(mutex_);
    for (const std::string& address : addresses) AddLink(address);
  }
}

SessionPool::SessionPool(SessionPoolOptions options, const Clock& clock)
    : impl_(std::make_unique<Impl>(std::move(options), clock)) {}
SessionPool::~SessionPool() = default;

absl::Status SessionPool::Start(PlannerThread& planner) { return impl_->Start(planner); }
void SessionPool::Stop() { impl_->Stop(); }
void SessionPool::Close(WorkerId worker, const absl::Status& status) {
  impl_->Close(worker, status);
}

// Prompt chunks go on their own: a Run goes before its chunks either way, and a transfer's chunks,
// which must keep their order, then never travel in two lanes.
void SessionPool::Send(WorkerId worker, wire::RouterMessage message) {
  wire::RouterMessage chunks;
  chunks.prompt_chunks.swap(message.prompt_chunks);
  const bool has_chunks = !chunks.prompt_chunks.empty();
  if (message != wire::RouterMessage{})
    impl_->Send(worker, std::move(message), SessionBox::Lane::kControl);
  if (has_chunks) impl_->Send(worker, std::move(chunks), SessionBox::Lane::kBulk);
}

}  // namespace baton::router
