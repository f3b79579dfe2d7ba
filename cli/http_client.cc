#include "cli/http_client.h"

#include "absl/strings/str_format.h"
#include "cli/tls.h"
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/ssl/ssl_stream.hpp>

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
          socket().async_connect(addresses, [done](error_code e, const auto&) { done(e); });
        },
        error);
    if (!error && url_.is_tls) Handshake(error);
    return error ? Failed(url_, error) : absl::OkStatus();
  }

  absl::Status Send(const http::request<http::string_body>& request) {
    error_code error;
    Wait(
        [&](auto done) {
          const auto end = [done](error_code e, size_t) { done(e); };
          OnStream([&](auto& stream) { http::async_write(stream, request, end); });
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
          const auto end = [done](error_code e, size_t) { done(e); };
          OnStream([&](auto& stream) { http::async_read_header(stream, buffer_, parser, end); });
        },
        error);
    const int status = error ? 0 : parser.get().result_int();
    while (!error && !parser.is_done()) {
      Wait(
          [&](auto done) {
            const auto end = [done](error_code e, size_t) { done(e); };
            OnStream([&](auto& stream) { http::async_read_some(stream, buffer_, parser, end); });
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
  beast::tcp_stream& socket() { return stream_.next_layer(); }

  template <typename Action>
  void OnStream(const Action& action) {
    if (url_.is_tls) {
      action(stream_);
    } else {
      action(socket());
    }
  }

  void Handshake(error_code& error) {
    error = NameTlsHost(url_.host, stream_.native_handle());
    if (error) return;
    Wait(
        [&](auto done) {
          stream_.async_handshake(asio::ssl::stream_base::client,
                                  [done](error_code e) { done(e); });
        },
        error);
  }

  template <typename Start>
  void Wait(Start start, error_code& error) {
    socket().expires_after(absl::ToChronoNanoseconds(timeout_));
    start([&error](error_code e) { error = e; });
    io_.restart();
    io_.run();
  }

  const HttpUrl url_;
  const absl::Duration timeout_;
  asio::io_context io_;
  asio::ssl::context tls_ = MakeTlsClient();
  beast::ssl_stream<beast::tcp_stream> stream_{io_, tls_};
  beast::flat_buffer buffer_;
};

}  // namespace

absl::StatusOr<HttpUrl> ParseUrl(std::string_view text) {
  constexpr std::string_view kScheme = "http://", kTlsScheme = "https://";
  std::string_view rest = text;
  HttpUrl url;
  url.is_tls = rest.substr(0, kTlsScheme.size()) == kTlsScheme;
  if (url.is_tls) {
    rest.remove_prefix(kTlsScheme.size());
  } else if (rest.substr(0, kScheme.size()) == kScheme) {
    rest.remove_prefix(kScheme.size());
  }
  if (rest.find("://") != std::string_view::npos)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: only http:// and https:// are spoken", text));
  const size_t slash = std::min(rest.find('/'), rest.size());
  url.path = std::string(rest.substr(slash));
  while (!url.path.empty() && url.path.back() == '/') url.path.pop_back();
  const std::string_view authority = rest.substr(0, slash);
  const size_t bracket = authority.find(']');
  const size_t colon = authority.find(':', bracket == std::string_view::npos ? 0 : bracket);
  std::string_view host = authority.substr(0, std::min(colon, authority.size()));
  if (bracket != std::string_view::npos && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  url.host = std::string(host);
  url.port = colon == std::string_view::npos ? (url.is_tls ? "443" : "80")
                                             : std::string(authority.substr(colon + 1));
  const bool is_number =
      !url.port.empty() && url.port.find_first_not_of("0123456789") == std::string::npos;
  if (url.host.empty() || url.host.find_first_of("[]") != std::string::npos || !is_number)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: want http://host:port or https://host:port", text));
  return url;
}

absl::StatusOr<HttpReply> Fetch(const HttpCall& call) {
  Connection connection(call.url, call.timeout);
  RETURN_IF_ERROR(connection.Open());
  http::request<http::string_body> request(http::string_to_verb(call.method),
                                           call.url.path.empty() ? "/" : call.url.path, 11);
  SetCommonHeaders(call.url, call.api_key, request);
  request.set(http::field::connection, "close");
  if (!call.body.empty()) request.set(http::field::content_type, "application/json");
  request.body() = call.body;
  request.prepare_payload();
  RETURN_IF_ERROR(connection.Send(request));
  return connection.Receive(call.on_piece);
}

}  // namespace baton::cli
