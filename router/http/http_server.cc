#include "router/http/http_server.h"

#include <thread>
#include <utility>

#include "absl/strings/str_format.h"
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "common/status.h"
#include "router/http/http_connection.h"

namespace baton::router {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

// Asio's defaults, without what is older than TLS 1.2; OpenSSL's ciphers.
absl::StatusOr<std::unique_ptr<asio::ssl::context>> LoadTls(const HttpEndpoint& endpoint) {
  using Context = asio::ssl::context;
  auto context = std::make_unique<Context>(Context::tls_server);
  context->set_options(Context::default_workarounds | Context::no_sslv2 | Context::no_sslv3 |
                       Context::no_tlsv1 | Context::no_tlsv1_1 | Context::single_dh_use);
  error_code error;
  context->use_certificate_chain_file(endpoint.tls_certificate_file, error);
  if (error)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is no PEM certificate (http.tls_certificate_file): %s",
                        endpoint.tls_certificate_file, error.message()));
  context->use_private_key_file(endpoint.tls_key_file, Context::pem, error);
  if (error)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s is no PEM private key of %s (http.tls_key_file): %s",
                        endpoint.tls_key_file, endpoint.tls_certificate_file, error.message()));
  return context;
}

}  // namespace

class HttpServer::Impl {
 public:
  Impl(HttpLimits limits, HttpHandler& handler, const Clock& clock)
      : shared_{.limits = limits, .handler = handler, .clock = clock, .counters = {}} {}

  ~Impl() {
    for (auto& loop : loops_) loop->io.stop();
    for (auto& loop : loops_)
      if (loop->thread.joinable()) loop->thread.join();  // not started if listening failed
  }

  absl::Status Listen(const HttpEndpoint& where) {
    if (!where.tls_certificate_file.empty() || !where.tls_key_file.empty()) {
      ASSIGN_OR_RETURN(tls_, LoadTls(where));
    }
    for (int i = 0; i < shared_.limits.threads; ++i) loops_.push_back(std::make_unique<Loop>());
    error_code error;
    const auto address = asio::ip::make_address(where.host, error);
    acceptor_ = std::make_unique<tcp::acceptor>(loops_[0]->io);
    const tcp::endpoint endpoint(address, static_cast<uint16_t>(where.port));
    if (!error) acceptor_->open(endpoint.protocol(), error);
    if (!error) acceptor_->set_option(tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_->bind(endpoint, error);
    if (!error) acceptor_->listen(1024, error);
    if (error)
      return absl::UnavailableError(
          absl::StrFormat("cannot listen on %s:%d: %s", where.host, where.port, error.message()));
    port_ = acceptor_->local_endpoint().port();
    asio::co_spawn(loops_[0]->io, Accept(), asio::detached);
    for (auto& loop : loops_) loop->thread = std::thread([&io = loop->io] { io.run(); });
    return absl::OkStatus();
  }

  void StopAccepting() {
    asio::post(loops_[0]->io, [this] {
      error_code ignored;
      acceptor_->close(ignored);
    });
  }

  int port() const { return port_; }
  const HttpCounters& counters() const { return shared_.counters; }

 private:
  struct Loop {
    asio::io_context io{1};
    asio::executor_work_guard<asio::io_context::executor_type> work{io.get_executor()};
    std::thread thread;
  };

  asio::awaitable<void> Accept() {
    size_t next = 0;
    while (acceptor_->is_open()) {
      asio::io_context& io = loops_[next++ % loops_.size()]->io;
      error_code error;
      tcp::socket socket =
          co_await acceptor_->async_accept(io, asio::redirect_error(asio::use_awaitable, error));
      if (error == asio::error::operation_aborted) co_return;
      if (error) {  // the client has gone already, or no file descriptor is free: not a busy loop
        asio::steady_timer pause(loops_[0]->io, std::chrono::milliseconds(20));
        co_await pause.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      if (shared_.counters.connections.load() >= shared_.limits.max_connections) {
        ++shared_.counters.refused;
        continue;  // the socket closes
      }
      ++shared_.counters.accepted;
      socket.set_option(tcp::no_delay(true), error);
      auto connection =
          std::make_shared<HttpConnection>(io, std::move(socket), shared_, tls_.get());
      asio::post(io, [&io, connection] {
        asio::co_spawn(io, HttpConnection::Run(connection), asio::detached);
      });
    }
  }

  HttpShared shared_;
  std::unique_ptr<asio::ssl::context> tls_;  // null: plain HTTP; outlives the connections
  std::vector<std::unique_ptr<Loop>> loops_;
  std::unique_ptr<tcp::acceptor> acceptor_;
  int port_ = 0;
};

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() = default;

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpEndpoint& endpoint,
                                                              HttpLimits limits,
                                                              HttpHandler& handler,
                                                              const Clock& clock) {
  auto impl = std::make_unique<Impl>(limits, handler, clock);
  if (const absl::Status status = impl->Listen(endpoint); !status.ok()) return status;
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

int HttpServer::port() const { return impl_->port(); }
const HttpCounters& HttpServer::counters() const { return impl_->counters(); }
void HttpServer::StopAccepting() { impl_->StopAccepting(); }

}  // namespace baton::router
