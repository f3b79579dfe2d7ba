#include "bench/router/load_client.h"

#include <algorithm>
#include <arpa/inet.h>
#include <cmath>
#include <memory>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/clock.h"
#include "common/rng.h"

namespace baton::bench {
namespace {

constexpr std::string_view kEnd = "\r\n0\r\n\r\n";  // of a chunked body

// One connection: sends a request and takes its answer in, keeping only what may begin a mark.
class Connection {
 public:
  explicit Connection(int port) : socket_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    CHECK(connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
    const int on = 1;
    CHECK(setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) == 0);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { close(socket_); }

  int socket_fd() const { return socket_; }
  // `due`: when its times begin.
  void Send(const std::string& path, size_t index, const std::string& body, absl::Time due,
            absl::Time now) {
    const std::string request = absl::StrFormat(
        "POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nx-request-id: load-%d\r\n"
        "Content-Length: %d\r\n\r\n%s",
        path, index, body.size(), body);
    for (size_t sent = 0; sent < request.size();) {
      const ssize_t now_sent = send(socket_, request.data() + sent, request.size() - sent, 0);
      CHECK(now_sent > 0);
      sent += static_cast<size_t>(now_sent);
    }
    due_ = due;
    sent_ = now;
    index_ = index;
    is_started_ = false;
    kept_.clear();
  }

  // Takes what is there; true when the answer is complete.
  bool Receive(absl::Time now, LoadResult& result) {
    char buffer[64 << 10];
    const ssize_t got = recv(socket_, buffer, sizeof(buffer), 0);
    CHECK(got > 0);
    kept_.append(buffer, static_cast<size_t>(got));
    size_t from = 0;
    constexpr std::string_view kEvent = "data: ";
    for (size_t at; (at = kept_.find(kEvent, from)) != std::string::npos;
         from = at + kEvent.size()) {
      if (!is_started_) {
        CHECK(kept_.starts_with("HTTP/1.1 200"));
        result.first.push_back(now - due_);
        result.first_from_send.push_back(now - sent_);
        result.order.push_back(index_);
        is_started_ = true;
      }
      ++result.num_events;
    }
    const bool is_complete = kept_.ends_with(kEnd);
    CHECK(is_started_ || !is_complete);
    if (is_started_ && kept_.size() > kEnd.size())
      kept_.erase(0, std::max(from, kept_.size() - kEnd.size()));
    if (!is_complete) return false;
    result.whole.push_back(now - due_);
    return true;
  }

 private:
  const int socket_;
  bool is_started_ = false;
  absl::Time due_, sent_;
  size_t index_ = 0;  // of the body
  std::string kept_;
};

}  // namespace

namespace {

// Open connections, and what is on them.
class Connections {
 public:
  Connections(int port, size_t count, LoadResult& result) : result_(result) {
    for (size_t i = 0; i < count; ++i) idle_.push_back(std::make_unique<Connection>(port));
  }
  bool has_idle() const { return !idle_.empty(); }
  bool is_busy() const { return !busy_.empty(); }

  // `due`: when its times begin.
  void Send(const std::string& path, size_t index, const std::string& body, absl::Time due) {
    busy_.push_back(std::move(idle_.back()));
    idle_.pop_back();
    polled_.push_back({.fd = busy_.back()->socket_fd(), .events = POLLIN, .revents = 0});
    busy_.back()->Send(path, index, body, due, clock_.Now());
  }

  // Waits for answers until `end` and takes them in.
  void Receive(absl::Time end) {
    const absl::Duration left =
        end == absl::InfiniteFuture() ? absl::Seconds(60) : end - clock_.Now();
    const timespec timeout = absl::ToTimespec(std::max(left, absl::ZeroDuration()));
    const int num_ready = ppoll(polled_.data(), polled_.size(), &timeout, nullptr);
    CHECK(num_ready > 0 || end < absl::InfiniteFuture());  // an answer takes no minute
    for (size_t i = polled_.size(); num_ready > 0 && i-- > 0;) {
      if (polled_[i].revents == 0 || !busy_[i]->Receive(clock_.Now(), result_)) continue;
      idle_.push_back(std::move(busy_[i]));
      busy_[i] = std::move(busy_.back());
      polled_[i] = polled_.back();
      busy_.pop_back();
      polled_.pop_back();
    }
  }

 private:
  const SteadyClock clock_;
  LoadResult& result_;
  std::vector<std::unique_ptr<Connection>> idle_, busy_;
  std::vector<pollfd> polled_;  // as busy_
};

}  // namespace

LoadResult RunLoad(int port, size_t connections, const std::string& path,
                   const std::vector<std::string>& bodies) {
  const SteadyClock clock;
  LoadResult result;
  Connections open(port, std::min(connections, bodies.size()), result);
  const absl::Time start = clock.Now();
  for (size_t next = 0; next < bodies.size() || open.is_busy();) {
    for (; open.has_idle() && next < bodies.size(); ++next)
      open.Send(path, next, bodies[next], clock.Now());
    open.Receive(absl::InfiniteFuture());
  }
  result.wall = clock.Now() - start;
  return result;
}

LoadResult RunOpenLoad(int port, size_t connections, double per_second, const std::string& path,
                       const std::vector<std::string>& bodies) {
  const SteadyClock clock;
  SeededRng rng(1);
  LoadResult result;
  Connections open(port, connections, result);
  const absl::Time start = clock.Now();
  absl::Time due = start;
  for (size_t next = 0; next < bodies.size() || open.is_busy();) {
    while (open.has_idle() && next < bodies.size() && clock.Now() >= due) {
      open.Send(path, next, bodies[next], due);
      ++next;
      due += absl::Seconds(-std::log(1 - rng.Uniform()) / per_second);
    }
    const bool waits_for_time = open.has_idle() && next < bodies.size();
    open.Receive(waits_for_time ? due : absl::InfiniteFuture());
  }
  result.wall = clock.Now() - start;
  return result;
}

}  // namespace baton::bench
