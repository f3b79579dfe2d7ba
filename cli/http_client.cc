#include "cli/http_client.h"

#include "absl/strings/str_format.h"
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>

#include "common/status.h"

namespace baton::cli {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using boost::system::error_code;

absl::Status Failed(const HttpUrl& url, const error_code& error) {
  return absl::UnavailableError(absl::StrFormat("%s:%s: %s", url.host, url.port, error.message()));
}

// Beast's timeouts need asynchronous calls: each is started and the loop run until it is over.
class Connection {
 public:
  Connection(const HttpUrl& url, absl::Duration timeout) : url_(url), timeout_(timeout) {}

  absl::Status Open() {
    error_code error;
    asio::ip::tcp::resolver resolver(io_);
    const auto addresses = resolver.resolve(url_.host, url_.port, error);
    if (error) return Failed(url_, error);
    Wait(
        [&](auto done) {
          stream_.async_connect(addresses, [done](error_code e, const auto&) { done(e); });
        },
        error);
    return error ? Failed(url_, error) : absl::OkStatus();
  }

  absl::Status Send(const http::request<http::string_body>& request) {
    error_code error;
    Wait(
        [&](auto done) {
          http::async_write(stream_, request, [done](error_code e, size_t) { done(e); });
        },
        error);
    return error ? Failed(url_, error) : absl::OkStatus();
  }

  absl::StatusOr<HttpReply> Receive(const std::function<void(std::string_view)>& on_piece) {
    http::response_parser<http::string_body> parser;
    parser.body_limit(boost::none);
    error_code error;
    Wait(
        [&](auto done) {
          http::async_read_header(stream_, buffer_, parser,
                                  [done](error_code e, size_t) { done(e); });
        },
        error);
    const int status = error ? 0 : parser.get().result_int();
    while (!error && !parser.is_done()) {
      Wait(
          [&](auto done) {
            http::async_read_some(stream_, buffer_, parser,
                                  [done](error_code e, size_t) { done(e); });
          },
          error);
      std::string& body = parser.get().body();
      if (!on_piece || status != 200) continue;
      on_piece(body);
      body.clear();
    }
    if (error) return Failed(url_, error);
    return HttpReply{.status = status, .body = parser.get().body()};
  }

 private:
  template <typename Start>
  void Wait(Start start, error_code& error) {
    stream_.expires_after(absl::ToChronoNanoseconds(timeout_));
    start([&error](error_code e) { error = e; });
    io_.restart();
    io_.run();
  }

  const HttpUrl url_;
  const absl::Duration timeout_;
  asio::io_context io_;
  beast::tcp_stream stream_{io_};
  beast::flat_buffer buffer_;
};

}  // namespace

absl::StatusOr<HttpUrl> ParseUrl(std::string_view text) {
  constexpr std::string_view kScheme = "http://";
  std::string_view rest = text;
  if (rest.substr(0, kScheme.size()) == kScheme) rest.remove_prefix(kScheme.size());
  if (rest.find("://") != std::string_view::npos)
    return absl::InvalidArgumentError(absl::StrFormat("%s: only http:// is spoken", text));
  const size_t slash = std::min(rest.find('/'), rest.size());
  HttpUrl url;
  url.path = std::string(rest.substr(slash));
  const std::string_view authority = rest.substr(0, slash);
  const size_t colon = authority.rfind(':');
  url.host = std::string(authority.substr(0, std::min(colon, authority.size())));
  url.port = colon == std::string_view::npos ? "80" : std::string(authority.substr(colon + 1));
  const bool is_number =
      !url.port.empty() && url.port.find_first_not_of("0123456789") == std::string::npos;
  if (url.host.empty() || !is_number)
    return absl::InvalidArgumentError(absl::StrFormat("%s: want http://host:port", text));
  return url;
}

absl::StatusOr<HttpReply> Fetch(const HttpCall& call) {
  Connection connection(call.url, call.timeout);
  RETURN_IF_ERROR(connection.Open());
  http::request<http::string_body> request(http::string_to_verb(call.method),
                                           call.url.path.empty() ? "/" : call.url.path, 11);
  request.set(http::field::host, call.url.host + ":" + call.url.port);
  request.set(http::field::connection, "close");
  if (!call.body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = call.body;
  request.prepare_payload();
  RETURN_IF_ERROR(connection.Send(request));
  return connection.Receive(call.on_piece);
}

}  // namespace baton::cli
