#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "cli/http_client.h"
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

namespace baton::cli {

// An HTTP/1.1 request as it goes over the wire; `body` is JSON, empty for none.
struct HttpRequest {
  const HttpUrl& url;
  std::string_view method, body, api_key;
  bool keeps_connection = false;
};
std::string RequestText(const HttpRequest& request);

// A connection to a server, plain or under TLS. One call at a time, each waits at most `timeout`
// for the server and says in `error` how it ended. Requests are sent as text and answers given to a
// parser piece by piece: Beast's own operations on streams made 1 MB of code, here and in bench.
class HttpConnection {
 public:
  using Parser = boost::beast::http::response_parser<boost::beast::http::string_body>;
  using Addresses = boost::asio::ip::tcp::resolver::results_type;
  using Error = boost::system::error_code;

  HttpConnection(boost::asio::io_context& io, absl::Duration timeout)
      : timeout_(timeout), tcp_(io) {}

  // `tls` is used for a URL under TLS only, and outlives the connection.
  boost::asio::awaitable<void> Open(const HttpUrl& url, const Addresses& addresses,
                                    boost::asio::ssl::context& tls, Error& error);
  boost::asio::awaitable<void> Send(std::string_view request, Error& error);
  // Both go on where the call before ended; an answer may be over (is_done) after either.
  boost::asio::awaitable<void> ReadHeader(Parser& parser, Error& error);
  boost::asio::awaitable<void> ReadSome(Parser& parser, Error& error);

 private:
  boost::asio::awaitable<size_t> Receive(boost::asio::mutable_buffer room, Error& error);

  const absl::Duration timeout_;
  boost::beast::tcp_stream tcp_;
  std::optional<boost::asio::ssl::stream<boost::beast::tcp_stream&>> tls_;
  boost::beast::flat_buffer buffer_;  // received, not parsed yet
};

}  // namespace baton::cli
