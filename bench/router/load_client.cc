#include "bench/router/load_client.h"

#include <algorithm>
#include <arpa/inet.h>
#include <memory>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/clock.h"

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
  bool is_busy() const { return is_busy_; }

  void Send(const std::string& path, const std::string& body, absl::Time now) {
    const std::string request = absl::StrFormat(
        "POST %s HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: "
        "%d\r\n\r\n%s",
        path, body.size(), body);
    for (size_t sent = 0; sent < request.size();) {
      const ssize_t now_sent = send(socket_, request.data() + sent, request.size() - sent, 0);
      CHECK(now_sent > 0);
      sent += static_cast<size_t>(now_sent);
    }
    sent_at_ = now;
    is_busy_ = true;
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
        result.first.push_back(now - sent_at_);
        is_started_ = true;
      }
      ++result.num_events;
    }
    const bool is_complete = kept_.ends_with(kEnd);
    CHECK(is_started_ || !is_complete);
    if (is_started_ && kept_.size() > kEnd.size())
      kept_.erase(0, std::max(from, kept_.size() - kEnd.size()));
    if (!is_complete) return false;
    result.whole.push_back(now - sent_at_);
    is_busy_ = false;
    return true;
  }

 private:
  const int socket_;
  bool is_busy_ = false, is_started_ = false;
  absl::Time sent_at_;
  std::string kept_;
};

}  // namespace

LoadResult RunLoad(int port, size_t connections, const std::string& path,
                   const std::vector<std::string>& bodies) {
  const SteadyClock clock;
  LoadResult result;
  std::vector<std::unique_ptr<Connection>> open;
  std::vector<pollfd> polled;
  for (size_t i = 0; i < std::min(connections, bodies.size()); ++i) {
    open.push_back(std::make_unique<Connection>(port));
    polled.push_back({.fd = open.back()->socket_fd(), .events = POLLIN, .revents = 0});
  }
  const absl::Time start = clock.Now();
  size_t next = 0, num_busy = 0;
  const auto send_next = [&](Connection& connection) {
    if (next == bodies.size()) return;
    connection.Send(path, bodies[next++], clock.Now());
    ++num_busy;
  };
  for (const auto& connection : open) send_next(*connection);
  while (num_busy > 0) {
    CHECK(poll(polled.data(), polled.size(), 60'000) > 0);
    for (size_t i = 0; i < polled.size(); ++i) {
      if (polled[i].revents == 0 || !open[i]->Receive(clock.Now(), result)) continue;
      --num_busy;
      send_next(*open[i]);
    }
  }
  result.wall = clock.Now() - start;
  return result;
}

}  // namespace baton::bench
