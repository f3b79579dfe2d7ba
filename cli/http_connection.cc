#include "cli/http_connection.h"

#include "absl/strings/str_format.h"
#include "cli/tls.h"
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http/error.hpp>

namespace baton::cli {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;

constexpr size_t kReceived = 16 << 10;  // at once; a TLS record

// The token of a wait that puts its error there.
auto Into(HttpConnection::Error& error) { return asio::redirect_error(asio::use_awaitable, error); }

}  // namespace

std::string RequestText(const HttpRequest& request) {
  const HttpUrl& url = request.url;
  const bool is_ipv6 = url.host.find(':') != std::string::npos;
  std::string text = absl::StrFormat("%s %s HTTP/1.1\r\nHost: %s:%s\r\nUser-Agent: baton\r\n",
                                     request.method, url.path.empty() ? "/" : url.path,
                                     is_ipv6 ? "[" + url.host + "]" : url.host, url.port);
  if (!request.api_key.empty())
    absl::StrAppendFormat(&text, "Authorization: Bearer %s\r\n", request.api_key);
  if (!request.keeps_connection) text += "Connection: close\r\n";
  if (!request.body.empty()) text += "Content-Type: application/json\r\n";
  if (!request.body.empty() || request.method == "POST")
    absl::StrAppendFormat(&text, "Content-Length: %d\r\n", request.body.size());
  text += "\r\n";
  text += request.body;
  return text;
}

asio::awaitable<void> HttpConnection::Open(const HttpUrl& url, const Addresses& addresses,
                                           asio::ssl::context& tls, Error& error) {
  tcp_.expires_after(absl::ToChronoNanoseconds(timeout_));
  co_await tcp_.async_connect(addresses, Into(error));
  if (error) co_return;
  tcp_.socket().set_option(asio::ip::tcp::no_delay(true), error);
  if (!url.is_tls || error) co_return;
  tls_.emplace(tcp_, tls);
  error = NameTlsHost(url.host, tls_->native_handle());
  if (error) co_return;
  co_await tls_->async_handshake(asio::ssl::stream_base::client, Into(error));
}

asio::awaitable<void> HttpConnection::Send(std::string_view request, Error& error) {
  tcp_.expires_after(absl::ToChronoNanoseconds(timeout_));
  const asio::const_buffer bytes(request.data(), request.size());
  if (tls_) {
    co_await asio::async_write(*tls_, bytes, Into(error));
  } else {
    co_await asio::async_write(tcp_, bytes, Into(error));
  }
}

asio::awaitable<size_t> HttpConnection::Receive(asio::mutable_buffer room, Error& error) {
  tcp_.expires_after(absl::ToChronoNanoseconds(timeout_));
  size_t received = 0;
  if (tls_) {
    received = co_await tls_->async_read_some(room, Into(error));
  } else {
    received = co_await tcp_.async_read_some(room, Into(error));
  }
  co_return received;
}

asio::awaitable<void> HttpConnection::ReadHeader(Parser& parser, Error& error) {
  while (!error && !parser.is_header_done()) co_await ReadSome(parser, error);
}

asio::awaitable<void> HttpConnection::ReadSome(Parser& parser, Error& error) {
  error = http::error::need_more;
  while (error == http::error::need_more) {
    if (buffer_.size() > 0) {
      error = {};
      buffer_.consume(parser.put(buffer_.data(), error));
      if (error != http::error::need_more) co_return;
    }
    error = {};
    const size_t received = co_await Receive(buffer_.prepare(kReceived), error);
    if (error == asio::error::eof) {
      error = {};
      if (!parser.got_some()) error = http::error::end_of_stream;
      if (!error) parser.put_eof(error);
      co_return;
    }
    if (error) co_return;
    buffer_.commit(received);
    error = http::error::need_more;
  }
}

}  // namespace baton::cli
