#pragma once

#include <memory>
#include <optional>
#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "router/http/http_server.h"
#include "router/http/http_stream.h"

namespace baton::router {

// What the connections of a server share.
struct HttpShared {
  const HttpLimits limits;
  HttpHandler& handler;
  const Clock& clock;
  HttpCounters counters;
};

// Bytes of a body, counted for as long as somebody holds it: the connection, what became of the
// request, or an answer. Must not outlive the server. Any thread, one at a time.
class BodyLease {
 public:
  explicit BodyLease(HttpCounters& counters) : counters_(counters) {}
  BodyLease(const BodyLease&) = delete;
  BodyLease& operator=(const BodyLease&) = delete;
  ~BodyLease() { counters_.bodies_bytes -= bytes_; }
  void Hold(size_t bytes) {
    counters_.bodies_bytes += static_cast<int64_t>(bytes) - bytes_;
    bytes_ = static_cast<int64_t>(bytes);
  }

 private:
  HttpCounters& counters_;
  int64_t bytes_ = 0;
};

// One answer in progress; see HttpExchange. The connection's coroutine takes what is queued and
// writes it.
class HttpAnswer final : public HttpExchange, public std::enable_shared_from_this<HttpAnswer> {
 public:
  HttpAnswer(boost::asio::io_context& io, HttpShared& shared, bool is_http11, bool keep_alive,
             bool is_head);

  void Respond(int status, HttpHeaders headers, std::string body) override;
  void StartStream(int status, HttpHeaders headers) override;
  void Write(std::string piece) override;
  void EndStream() override;
  void OnGone(std::function<void()> callback) override;
  void Post(std::function<void()> task) override;
  void PostAfter(absl::Duration delay, std::function<void()> task) override;

  // For the connection.
  void KeepAlive(bool keep_alive) { keep_alive_ = keep_alive; }  // before anything is answered
  bool is_over() const { return is_ended_ || is_gone_; }
  bool is_gone() const { return is_gone_; }
  bool keep_alive() const { return keep_alive_; }
  std::string TakeQueued();  // to be written, when what was taken before is
  bool has_queued() const { return !queued_.empty(); }
  void Gone();
  boost::asio::steady_timer& changed() { return changed_; }

 private:
  void Head(int status, const HttpHeaders& headers);
  void Changed();

  boost::asio::io_context& io_;
  HttpShared& shared_;
  const bool is_http11_, is_head_;
  bool keep_alive_;
  bool is_stream_ = false, is_chunked_ = false;
  bool is_started_ = false, is_ended_ = false, is_gone_ = false;
  std::string queued_;
  size_t bulk_ = 0, taken_bulk_ = 0;  // large pieces of a stream: queued, being written
  BodyLease lease_;  // of a large whole answer, or of such pieces, until they are written
  std::function<void()> on_gone_;
  boost::asio::steady_timer changed_;  // never expires; cancelled to wake the connection
};

// One client connection: reads requests, hands them on, writes the answers in order.
class HttpConnection final : public std::enable_shared_from_this<HttpConnection> {
 public:
  // `tls` null: plain HTTP; else it outlives the connection.
  HttpConnection(boost::asio::io_context& io, boost::asio::ip::tcp::socket socket,
                 HttpShared& shared, boost::asio::ssl::context* tls);
  ~HttpConnection();
  // Until the connection is done with. It is held by the coroutine, which starts whenever the loop
  // comes to it.
  static boost::asio::awaitable<void> Run(std::shared_ptr<HttpConnection> connection);

 private:
  boost::asio::awaitable<void> Serve();
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  // The head of the next request, null when the client left or `refusal` says why there is none.
  boost::asio::awaitable<std::optional<HttpRequest>> ReadHead(Parser& parser, HttpRefusal& refusal);
  boost::asio::awaitable<bool> ReadBody(Parser& parser, HttpRefusal& refusal);
  // Reads one request and has it answered; null: there is nothing to answer. False in `is_whole`:
  // bytes of it may be unread.
  boost::asio::awaitable<std::shared_ptr<HttpAnswer>> Exchange(bool& is_whole);
  // A close over unread bytes is a reset, which may take the last answer with it.
  boost::asio::awaitable<void> Linger();
  // Writes the answer until it is over; false when the connection cannot be used further.
  boost::asio::awaitable<bool> WriteAnswer(std::shared_ptr<HttpAnswer> answer);
  static boost::asio::awaitable<void> WatchClient(std::shared_ptr<HttpConnection> connection,
                                                  std::shared_ptr<HttpAnswer> answer);
  boost::asio::awaitable<bool> WriteAll(std::string bytes);

  boost::asio::io_context& io_;
  HttpStream stream_;
  HttpShared& shared_;
  boost::beast::flat_buffer buffer_;
  std::shared_ptr<BodyLease> lease_;  // of the body that is being read
  boost::asio::steady_timer watch_;   // WatchClient's pause; cancelled to end it
};

}  // namespace baton::router
