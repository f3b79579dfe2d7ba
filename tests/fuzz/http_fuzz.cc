#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "common/check.h"
#include "common/log.h"
#include "router/front/front_door.h"
#include "router/http/http_connection.h"

// Any bytes as what a client sends on one connection, its requests' lines, headers and bodies: the
// connection answers each, ends, and gives back every byte that it counted.
namespace baton::router {
namespace {

constexpr size_t kMaxInput = 64 << 10;  // what a socket takes before anybody reads

// Repeats what it was asked, streamed where the query says so.
class Echo final : public RequestHandler {
 public:
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override {
    if (request.query != "stream") return exchange->Respond(200, {}, request.path + request.body);
    exchange->StartStream(200, {});
    exchange->Write(request.path);
    exchange->Write(request.body);
    exchange->EndStream();
  }
};

class Server {
 public:
  Server() { InitLog("http_fuzz", LogLevel::kError); }

  void Serve(std::string_view bytes) {
    boost::asio::io_context io(1);
    std::array<int, 2> ends = {-1, -1};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    CHECK(send(ends[0], bytes.data(), bytes.size(), MSG_NOSIGNAL) ==
          static_cast<ssize_t>(bytes.size()));
    CHECK(shutdown(ends[0], SHUT_WR) == 0);
    boost::asio::ip::tcp::socket socket(io, boost::asio::ip::tcp::v4(), ends[1]);
    auto connection =
        std::make_shared<HttpConnection>(io, std::move(socket), shared_, /*tls=*/nullptr);
    boost::asio::co_spawn(io, HttpConnection::Run(std::move(connection)), boost::asio::detached);
    io.run();
    CheckAnswers(ends[0]);
    close(ends[0]);
    CHECK(shared_.counters.connections == 0 && shared_.counters.exchanges == 0);
    CHECK(shared_.counters.bodies_bytes == 0);
  }

 private:
  static void CheckAnswers(int end) {
    std::string answers(1 << 20, '\0');
    ssize_t got = recv(end, answers.data(), answers.size(), 0);
    // Said first where bytes behind the last request were not read; the answers are there.
    if (got < 0 && errno == ECONNRESET) got = recv(end, answers.data(), answers.size(), 0);
    CHECK(got >= 0);
    answers.resize(static_cast<size_t>(got));
    CHECK(answers.empty() || answers.starts_with("HTTP/1.1 "));
  }

  SteadyClock clock_;
  Echo echo_;
  ApiKeys keys_{{{.name = "a", .hash = Sha256Of("sk-fuzz-1"), .requests_per_minute = 1 << 30}},
                clock_};
  FrontDoor door_{{.keys = keys_,
                   .openai = echo_,
                   .anthropic = echo_,
                   .operators = echo_,
                   .cors_origins = {"https://a"},
                   .serves_admin = true}};
  HttpShared shared_{
      .limits = {.max_header_bytes = 4096, .max_body_bytes = 8192, .max_bodies_bytes = 16384},
      .handler = door_,
      .clock = clock_,
      .counters = {}};
};

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static baton::router::Server server;
  if (size > baton::router::kMaxInput) return 0;
  server.Serve(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
