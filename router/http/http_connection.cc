#include "router/http/http_connection.h"

#include <algorithm>
#include <array>
#include <poll.h>
#include <sys/socket.h>
#include <utility>

#include "absl/strings/str_format.h"
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/read.hpp>

namespace baton::router {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

// How often a client is looked at whose next bytes are here already; and what of an unread request
// is taken in after a refusal, in bytes and time: a body of a few MB is on its way within a second.
constexpr auto kWatchInterval = std::chrono::milliseconds(250);
constexpr size_t kLingerBytes = 8 << 20;
constexpr auto kLingerTime = std::chrono::seconds(2);

bool HasLeft(int socket) {
  pollfd state{.fd = socket, .events = POLLRDHUP, .revents = 0};
  return poll(&state, 1, 0) > 0;
}

bool IsMalformed(const error_code& error) {
  return error && error.category() == http::make_error_code(http::error::bad_value).category() &&
         error != http::error::end_of_stream && error != http::error::partial_message;
}

auto Into(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

std::string LowerCase(boost::beast::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) {
    return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  });
  return out;
}

// Without scheme and authority, which a client that takes us for a proxy sends (RFC 9112 3.2.2).
std::string OriginForm(boost::beast::string_view target) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (LowerCase(target.substr(0, scheme.size())) != scheme) continue;
    const std::string rest(target.substr(scheme.size()));
    const std::string path = rest.substr(std::min(rest.find_first_of("/?"), rest.size()));
    return path.starts_with('/') ? path : "/" + path;
  }
  return std::string(target);
}

std::string PathOf(const std::string& target) {
  return target.substr(0, std::min(target.find('?'), target.size()));
}

HttpRequest HeadOf(const http::request<http::string_body>& message, absl::Time arrival) {
  HttpRequest request;
  request.method = std::string(message.method_string());
  const std::string target = OriginForm(message.target());
  request.path = PathOf(target);
  request.query = target.substr(std::min(request.path.size() + 1, target.size()));
  for (const auto& field : message)
    request.headers[LowerCase(field.name_string())] = std::string(field.value());
  request.arrival = arrival;
  return request;
}

}  // namespace

HttpConnection::HttpConnection(asio::io_context& io, asio::ip::tcp::socket socket,
                               HttpShared& shared, asio::ssl::context* tls)
    : io_(io),
      stream_(std::move(socket), tls),
      shared_(shared),
      buffer_(shared.limits.max_header_bytes + (64 << 10)),
      watch_(io) {
  ++shared_.counters.connections;
}

HttpConnection::~HttpConnection() { --shared_.counters.connections; }

asio::awaitable<void> HttpConnection::Run(std::shared_ptr<HttpConnection> connection) {
  HttpStream& stream = connection->stream_;
  stream.expires_after(absl::ToChronoNanoseconds(connection->shared_.limits.header_timeout));
  const bool is_open = co_await stream.Handshake();
  if (is_open) co_await connection->Serve();
}

asio::awaitable<void> HttpConnection::Serve() {
  while (true) {
    bool is_whole = false;
    const std::shared_ptr<HttpAnswer> answer = co_await Exchange(is_whole);
    if (answer == nullptr) break;
    const bool is_usable = co_await WriteAnswer(answer);
    --shared_.counters.exchanges;
    lease_.reset();
    if (!is_whole) {
      co_await Linger();
      co_return;
    }
    if (!is_usable) break;
  }
  co_await stream_.ShutDownSend();
}

asio::awaitable<std::shared_ptr<HttpAnswer>> HttpConnection::Exchange(bool& is_whole) {
  Parser parser;
  HttpRefusal refusal;
  std::optional<HttpRequest> request = co_await ReadHead(parser, refusal);
  if (!request && refusal.status == 0) co_return nullptr;  // the client left between requests
  const bool has_head = request.has_value();
  const bool is_http11 = !has_head || parser.get().version() >= 11;
  const bool is_head = has_head && request->method == "HEAD";
  auto answer = std::make_shared<HttpAnswer>(io_, shared_, is_http11, false, is_head);
  is_whole = has_head && parser.is_done();
  answer->KeepAlive(is_whole && parser.keep_alive());
  if (has_head && !shared_.handler.AdmitHead(*request, *answer)) {
    ++shared_.counters.exchanges;
    co_return answer;
  }
  if (has_head) is_whole = co_await ReadBody(parser, refusal);
  if (!is_whole && refusal.status == 0) co_return nullptr;  // the client left within its request
  ++shared_.counters.exchanges;
  if (is_whole) {
    ++shared_.counters.requests;
    answer->KeepAlive(parser.keep_alive());
    request->body = std::move(parser.get().body());
    request->lease = std::exchange(lease_, nullptr);
    asio::co_spawn(io_, WatchClient(shared_from_this(), answer), asio::detached);
    shared_.handler.Handle(*std::move(request), answer);
  } else {
    shared_.handler.Refuse(refusal, *answer);
  }
  co_return answer;
}

asio::awaitable<std::optional<HttpRequest>> HttpConnection::ReadHead(Parser& parser,
                                                                     HttpRefusal& refusal) {
  error_code error;
  if (buffer_.size() == 0) {  // idle until the first byte
    stream_.expires_after(absl::ToChronoNanoseconds(shared_.limits.idle_timeout));
    const size_t got = co_await stream_.async_read_some(buffer_.prepare(4096), Into(error));
    buffer_.commit(got);
    if (error) co_return std::nullopt;
  }
  const absl::Time arrival = shared_.clock.Now();
  parser.header_limit(static_cast<uint32_t>(shared_.limits.max_header_bytes));
  parser.body_limit(boost::none);  // judged in ReadBody, with a clear answer
  stream_.expires_after(absl::ToChronoNanoseconds(shared_.limits.header_timeout));
  co_await http::async_read_header(stream_, buffer_, parser, Into(error));
  if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    refusal = {.status = 431,
               .message = absl::StrFormat("the request's head has more than %d bytes, the limit "
                                          "(http.max_header_bytes)",
                                          shared_.limits.max_header_bytes),
               .field = "head",
               .request_id = {}};
  } else if (IsMalformed(error)) {
    refusal = {.status = 400,
               .message = absl::StrFormat("malformed HTTP request: %s", error.message()),
               .field = "head",
               .request_id = {}};
  }
  if (error) co_return std::nullopt;
  refusal.request_id = std::string(parser.get()["x-request-id"]);
  refusal.path = PathOf(OriginForm(parser.get().target()));
  refusal.origin = std::string(parser.get()[http::field::origin]);
  co_return HeadOf(parser.get(), arrival);
}

asio::awaitable<bool> HttpConnection::ReadBody(Parser& parser, HttpRefusal& refusal) {
  lease_ = std::make_shared<BodyLease>(shared_.counters);
  const size_t announced =
      parser.content_length() ? static_cast<size_t>(*parser.content_length()) : 0;
  if (announced > shared_.limits.max_body_bytes) {
    refusal.status = 413;
    refusal.message =
        absl::StrFormat("the body has %d bytes, the limit is %d (http.max_body_bytes)", announced,
                        shared_.limits.max_body_bytes);
    refusal.field = "body";
    co_return false;
  }
  const bool wants_continue = LowerCase(parser.get()[http::field::expect]) == "100-continue";
  if (!parser.is_done() && wants_continue) {
    const bool is_written = co_await WriteAll("HTTP/1.1 100 Continue\r\n\r\n");
    if (!is_written) co_return false;
  }
  while (!parser.is_done()) {
    error_code error;
    stream_.expires_after(absl::ToChronoNanoseconds(shared_.limits.body_timeout));
    co_await http::async_read_some(stream_, buffer_, parser, Into(error));
    refusal.field = "body";
    if (IsMalformed(error)) {
      refusal.status = 400;
      refusal.message = absl::StrFormat("malformed body: %s", error.message());
    }
    if (error) co_return false;
    const size_t held = parser.get().body().size();
    lease_->Hold(held);
    const int64_t all = shared_.counters.bodies_bytes.load();
    if (held > shared_.limits.max_body_bytes) {
      refusal.status = 413;
      refusal.message =
          absl::StrFormat("the body has %d bytes and more, the limit is %d (http.max_body_bytes)",
                          held, shared_.limits.max_body_bytes);
    } else if (all > static_cast<int64_t>(shared_.limits.max_bodies_bytes)) {
      refusal.status = 429;
      refusal.message = absl::StrFormat(
          "the bodies in flight have %d bytes, the limit is %d (http.max_bodies_bytes)", all,
          shared_.limits.max_bodies_bytes);
    }
    if (refusal.status != 0) co_return false;
  }
  co_return true;
}

asio::awaitable<bool> HttpConnection::WriteAll(std::string bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    error_code error;
    stream_.expires_after(absl::ToChronoNanoseconds(shared_.limits.write_timeout));
    sent += co_await stream_.async_write_some(
        asio::buffer(bytes.data() + sent, bytes.size() - sent), Into(error));
    if (error) co_return false;
  }
  co_return true;
}

asio::awaitable<bool> HttpConnection::WriteAnswer(std::shared_ptr<HttpAnswer> answer) {
  while (true) {
    if (answer->has_queued()) {
      const bool is_written = co_await WriteAll(answer->TakeQueued());
      if (!is_written) {
        answer->Gone();
        break;
      }
      continue;
    }
    if (answer->is_over()) break;
    stream_.expires_never();
    error_code woken;
    co_await answer->changed().async_wait(Into(woken));
  }
  error_code ignored;
  stream_.socket().cancel(ignored);  // ends WatchClient
  watch_.cancel();
  co_return answer->keep_alive() && !answer->is_gone();
}

asio::awaitable<void> HttpConnection::WatchClient(std::shared_ptr<HttpConnection> connection,
                                                  std::shared_ptr<HttpAnswer> answer) {
  tcp::socket& socket = connection->stream_.socket();
  asio::steady_timer& watch = connection->watch_;
  bool is_polling = false;
  while (!answer->is_over()) {
    error_code error;
    if (is_polling) {  // readable without news: its next request waits its turn
      watch.expires_after(kWatchInterval);
      co_await watch.async_wait(Into(error));
    } else {
      co_await socket.async_wait(tcp::socket::wait_read, Into(error));
    }
    if (error || answer->is_over()) co_return;
    char byte = 0;
    const int fd = socket.native_handle();
    const ssize_t peeked = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (peeked < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) continue;
    is_polling = peeked > 0;
    if (!is_polling || HasLeft(fd)) answer->Gone();
  }
}

asio::awaitable<void> HttpConnection::Linger() {
  co_await stream_.ShutDownSend();
  error_code error;
  std::array<char, 16 << 10> scratch;
  stream_.expires_after(kLingerTime);
  for (size_t taken = 0; !error && taken < kLingerBytes;)
    taken += co_await stream_.async_read_some(asio::buffer(scratch), Into(error));
}

}  // namespace baton::router
