#include "router/http/http_stream.h"

#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace baton::router {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;

// For the client to answer our close of TLS; nothing depends on it.
constexpr auto kCloseTime = std::chrono::seconds(1);

}  // namespace

asio::awaitable<bool> HttpStream::Handshake() {
  if (!tls_) co_return true;
  error_code error;
  co_await tls_->async_handshake(asio::ssl::stream_base::server,
                                 asio::redirect_error(asio::use_awaitable, error));
  co_return !error;
}

asio::awaitable<void> HttpStream::ShutDownSend() {
  error_code ignored;
  if (tls_) {
    tcp_.expires_after(kCloseTime);
    co_await tls_->async_shutdown(asio::redirect_error(asio::use_awaitable, ignored));
  }
  tcp_.socket().shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

}  // namespace baton::router
