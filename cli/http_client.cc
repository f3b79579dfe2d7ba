#include "cli/http_client.h"

#include "absl/strings/str_format.h"
#include "cli/http_connection.h"
#include "cli/tls.h"
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>

namespace baton::cli {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

absl::Status Failed(const HttpUrl& url, const error_code& error) {
  return absl::UnavailableError(absl::StrFormat("%s:%s: %s", url.host, url.port, error.message()));
}

// Asio's timeouts need asynchronous calls.
asio::awaitable<void> Exchange(const HttpCall& call, const std::string& request,
                               HttpConnection& connection, HttpReply& reply, error_code& error) {
  co_await connection.Send(request, error);
  if (error) co_return;
  HttpConnection::Parser parser;
  parser.body_limit(boost::none);
  co_await connection.ReadHeader(parser, error);
  if (error) co_return;
  reply.status = static_cast<int>(parser.get().result_int());
  std::string& body = parser.get().body();
  while (!error && !parser.is_done()) {
    co_await connection.ReadSome(parser, error);
    if (!call.on_piece || reply.status != 200) continue;
    call.on_piece(body);
    body.clear();
  }
  reply.body = std::move(body);
}

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
  error_code error;
  asio::io_context io;
  asio::ip::tcp::resolver resolver(io);
  const auto addresses = resolver.resolve(call.url.host, call.url.port, error);
  if (error) return Failed(call.url, error);
  asio::ssl::context tls = MakeTlsClient();
  HttpConnection connection(io, call.timeout);
  const std::string request = RequestText(
      {.url = call.url, .method = call.method, .body = call.body, .api_key = call.api_key});
  HttpReply reply;
  const auto steps = [&]() -> asio::awaitable<void> {
    co_await connection.Open(call.url, addresses, tls, error);
    if (!error) co_await Exchange(call, request, connection, reply, error);
  };
  asio::co_spawn(io, steps, [](const std::exception_ptr& thrown) {
    if (thrown) std::rethrow_exception(thrown);  // by on_piece
  });
  io.run();
  if (error) return Failed(call.url, error);
  return reply;
}

}  // namespace baton::cli
