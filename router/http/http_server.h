#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "common/clock.h"
#include "router/http/http_message.h"

namespace baton::router {

// Where to listen, and in which way.
struct HttpEndpoint {
  std::string host = "0.0.0.0";  // numeric
  int port = 8000;               // 0: any
  // PEM files: the certificate and those above it, and its private key. Both empty: no TLS.
  std::string tls_certificate_file{};
  std::string tls_key_file{};
};

struct HttpLimits {
  int threads = 2;
  int max_connections = 4096;
  size_t max_header_bytes = 64 << 10;
  size_t max_body_bytes = 64 << 20;     // one body: above it 413
  size_t max_bodies_bytes = 512 << 20;  // all being read, handled or answered: above it 429
  size_t max_backlog_bytes = 8 << 20;   // unsent bytes of one answer: above it the client is gone
  // A passed timeout closes the connection without an answer.
  absl::Duration header_timeout = absl::Seconds(15);  // from the first byte to the last of the head
  absl::Duration body_timeout = absl::Seconds(60);    // without a byte of the body
  absl::Duration idle_timeout = absl::Seconds(75);    // keep-alive
  absl::Duration write_timeout = absl::Seconds(60);   // without a byte taken by the client
};

// Readable from any thread.
struct HttpCounters {
  std::atomic<int64_t> connections = 0;   // open now
  std::atomic<int64_t> exchanges = 0;     // requests read whose answer is not out yet
  std::atomic<int64_t> bodies_bytes = 0;  // held now
  std::atomic<uint64_t> accepted = 0;
  std::atomic<uint64_t> refused = 0;  // for max_connections
  std::atomic<uint64_t> requests = 0;
  std::atomic<uint64_t> clients_gone = 0;
};

// HTTP/1.1 with keep-alive and pipelining, in plain or under TLS 1.2 and 1.3. One io_context per
// thread; a connection lives and dies on one of them.
class HttpServer {
 public:
  // `handler` and `clock` outlive the server. kUnavailable names the address, kInvalidArgument the
  // file that is no certificate or key, or does not fit the other.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpEndpoint& endpoint,
                                                           HttpLimits limits, HttpHandler& handler,
                                                           const Clock& clock);
  ~HttpServer();  // closes every connection

  int port() const;
  const HttpCounters& counters() const;
  // Accepts no new connections; open exchanges go on.
  void StopAccepting();

 private:
  class Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace baton::router
