#include "router/http/http_server.h"

#include <future>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/write.hpp>

#include "router/http/file_limit.h"

namespace baton::router {
namespace {

namespace asio = boost::asio;

// Echoes what it got; streams on /stream; answers nothing on /wait until the client leaves; floods
// on /flood.
class EchoHandler final : public HttpHandler {
 public:
  bool AdmitHead(HttpRequest& head, HttpExchange& exchange) override {
    if (head.path != "/locked") return true;
    exchange.Respond(401, {}, "locked}");
    return false;
  }
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override {
    if (request.path == "/stream") {
      exchange->StartStream(200, {{"Content-Type", "text/event-stream"}});
      exchange->Write("data: a\n\n");
      exchange->PostAfter(absl::Milliseconds(5), [exchange] {
        exchange->Write("data: b\n\n");
        exchange->EndStream();
      });
    } else if (request.path == "/wait") {
      exchange->OnGone([this, exchange] { gone.set_value(); });
    } else if (request.path == "/keep") {
      kept = request.lease;
      exchange->Respond(200, {}, "kept");
    } else if (request.path == "/none") {
      exchange->Respond(204, {}, "");
    } else if (request.path == "/same") {
      exchange->Respond(304, {}, "");
    } else if (request.path == "/large") {
      exchange->Respond(200, {}, std::string(32 << 20, 'x'));
    } else if (request.path == "/repeats") {  // as the last events of a long answer
      exchange->StartStream(200, {});
      for (const char c : {'a', 'b', 'c'}) exchange->Write(std::string(3 << 20, c));
      exchange->Write("the end");
      exchange->EndStream();
    } else if (request.path == "/repeats_on") {  // as the events of a long /generate
      exchange->OnGone([this] { gone.set_value(); });
      exchange->StartStream(200, {});
      for (int i = 0; i < 64; ++i) exchange->Write(std::string(1 << 20, 'r'));
      exchange->EndStream();
    } else if (request.path == "/flood") {
      exchange->OnGone([this] { gone.set_value(); });
      exchange->StartStream(200, {});
      Flood(exchange);
    } else {
      exchange->Respond(200, {{"X-Method", request.method}},
                        request.path + "|" + request.query + "|" + request.body);
    }
  }
  void Refuse(const HttpRefusal& refusal, HttpExchange& exchange) override {
    exchange.Respond(refusal.status,
                     {{"x-request-id", refusal.request_id}, {"x-origin", refusal.origin}},
                     absl::StrFormat("{\"path\":\"%s\",\"field\":\"%s\",\"message\":\"%s\"}",
                                     refusal.path, refusal.field, refusal.message));
  }

  std::promise<void> gone;
  std::shared_ptr<void> kept;

 private:
  static void Flood(const std::shared_ptr<HttpExchange>& exchange) {
    exchange->Write(std::string(64 << 10, 'x'));
    exchange->PostAfter(absl::ZeroDuration(), [exchange] { Flood(exchange); });
  }
};

class HttpServerTest : public testing::Test {
 protected:
  void Start(HttpLimits limits) {
    auto started = HttpServer::Start({.host = "127.0.0.1", .port = 0}, limits, handler_, clock_);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    Connect();
  }
  void Connect() {
    socket_ = asio::ip::tcp::socket(io_);
    socket_.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
  }
  void Send(const std::string& bytes) { asio::write(socket_, asio::buffer(bytes)); }
  // Reads until `end` has been seen; what follows it stays for the next call.
  std::string ReadUntil(const std::string& end) {
    boost::system::error_code error;
    const size_t size = asio::read_until(socket_, asio::dynamic_buffer(received_), end, error);
    const std::string out = received_.substr(0, error ? received_.size() : size);
    received_.erase(0, out.size());
    return out;
  }

  SteadyClock clock_;
  EchoHandler handler_;
  std::unique_ptr<HttpServer> server_;
  asio::io_context io_;
  asio::ip::tcp::socket socket_{io_};
  std::string received_;
};

TEST_F(HttpServerTest, AnswersSeveralRequestsOnOneConnection) {
  Start({});
  Send("GET /a?x=1 HTTP/1.1\r\nHost: h\r\n\r\n");
  const std::string first = ReadUntil("/a|x=1|");
  EXPECT_EQ(first.rfind("HTTP/1.1 200 OK\r\n", 0), 0u);
  EXPECT_NE(first.find("X-Method: GET\r\n"), std::string::npos);
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_NE(ReadUntil("/b||hello").find("Content-Length: 9\r\n"), std::string::npos);
}

TEST_F(HttpServerTest, ReportsAPortThatIsTaken) {
  Start({});
  const auto second =
      HttpServer::Start({.host = "127.0.0.1", .port = server_->port()}, {}, handler_, clock_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

TEST_F(HttpServerTest, AHeadThatIsRefusedGetsNoBodyReadAndNo100) {
  Start({});
  Send("POST /locked HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n");
  const std::string answer = ReadUntil("}");
  EXPECT_EQ(answer.rfind("HTTP/1.1 401", 0), 0u) << answer;
  EXPECT_NE(answer.find("Connection: close"), std::string::npos) << answer;
  Connect();
  Send("POST /locked HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 401", 0), 0u);
  Connect();  // without a body the connection goes on
  Send("GET /locked HTTP/1.1\r\nHost: h\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_NE(ReadUntil("}").find("Connection: keep-alive"), std::string::npos);
  EXPECT_EQ(ReadUntil("/a||").rfind("HTTP/1.1 200", 0), 0u);
}

TEST_F(HttpServerTest, TakesTargetsInAbsoluteForm) {
  Start({});
  for (const auto& [target, echo] :
       std::map<std::string, std::string>{{"http://h:1/a?x=1", "/a|x=1|"},
                                          {"HTTPS://h/b", "/b||"},
                                          {"http://h", "/||"},
                                          {"http://h?x=/2", "/|x=/2|"}}) {
    Send("GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n");
    const std::string answer = ReadUntil(echo);
    EXPECT_NE(answer.find("\r\n\r\n" + echo), std::string::npos) << target << "\n" << answer;
  }
}

TEST_F(HttpServerTest, AnswersPipelinedRequestsInOrder) {
  Start({});
  Send("GET /stream HTTP/1.1\r\nHost: h\r\n\r\nGET /second HTTP/1.1\r\nHost: h\r\n\r\n");
  const std::string stream = ReadUntil("0\r\n\r\n");
  EXPECT_NE(stream.find("9\r\ndata: a\n\n\r\n"), std::string::npos);
  EXPECT_NE(stream.find("data: b"), std::string::npos);
  EXPECT_EQ(ReadUntil("/second||").rfind("HTTP/1.1 200", 0), 0u);
}

TEST_F(HttpServerTest, StreamsToOldClientsUntilClose) {
  Start({});
  Send("GET /stream HTTP/1.0\r\n\r\n");
  const std::string stream = ReadUntil("never");
  EXPECT_EQ(stream.find("Transfer-Encoding"), std::string::npos);
  EXPECT_NE(stream.find("\r\n\r\ndata: a\n\ndata: b\n\n"), std::string::npos);
}

TEST_F(HttpServerTest, ContinuesWhenAskedAndAnswersHeadWithoutBody) {
  Start({});
  Send("POST /b HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
  EXPECT_EQ(ReadUntil("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  Send("ok");
  ReadUntil("/b||ok");
  Send("HEAD /c HTTP/1.1\r\nHost: h\r\n\r\nGET /d HTTP/1.1\r\nHost: h\r\n\r\n");
  const std::string head = ReadUntil("\r\n\r\n");
  EXPECT_NE(head.find("Content-Length: 4\r\n"), std::string::npos);
  EXPECT_EQ(ReadUntil("/d||").rfind("HTTP/1.1 200", 0), 0u);
}

// RFC 9110 8.6: no length, and the next answer follows at once.
TEST_F(HttpServerTest, AnAnswerWithoutContentHasNoLength) {
  Start({});
  Send("OPTIONS /none HTTP/1.1\r\nHost: h\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_EQ(ReadUntil("\r\n\r\n"), "HTTP/1.1 204 No Content\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(ReadUntil("/next||").rfind("HTTP/1.1 200", 0), 0u);
  Send("GET /same HTTP/1.1\r\nHost: h\r\n\r\nGET /last HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_EQ(ReadUntil("\r\n\r\n"), "HTTP/1.1 304 Not Modified\r\nConnection: keep-alive\r\n\r\n");
  EXPECT_EQ(ReadUntil("/last||").rfind("HTTP/1.1 200", 0), 0u);
}

TEST_F(HttpServerTest, ARefusalSaysWhatWasAskedForAndFromWhere) {
  Start({.max_body_bytes = 100});
  Send("POST /b?x=1 HTTP/1.1\r\nHost: h\r\nOrigin: https://o\r\nContent-Length: 101\r\n\r\n");
  const std::string answer = ReadUntil("}");
  EXPECT_NE(answer.find("\"path\":\"/b\""), std::string::npos) << answer;
  EXPECT_NE(answer.find("x-origin: https://o\r\n"), std::string::npos) << answer;
}

TEST_F(HttpServerTest, RefusesWhatPassesItsLimits) {
  Start({.max_header_bytes = 1024, .max_body_bytes = 100});
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 101\r\n\r\n");
  EXPECT_NE(ReadUntil("}").find("the body has 101 bytes, the limit is 100"), std::string::npos);
  Connect();
  Send("POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n80\r\n" +
       std::string(128, 'x') + "\r\n0\r\n\r\n");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 413", 0), 0u);
  Connect();
  Send("GET / HTTP/1.1\r\nHost: h\r\nX: " + std::string(2000, 'x') + "\r\n\r\n");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 431", 0), 0u);
  Connect();
  Send("NOT HTTP AT ALL\r\n\r\n");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 400", 0), 0u);
}

TEST_F(HttpServerTest, RefusesBodiesThatTogetherAreTooLarge) {
  Start({.max_body_bytes = 1000, .max_bodies_bytes = 50});
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n" + std::string(100, 'x'));
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 429", 0), 0u);
}

TEST_F(HttpServerTest, TellsWhenTheClientLeaves) {
  Start({});
  Send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
  auto gone = handler_.gone.get_future();
  EXPECT_EQ(gone.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  socket_.close();
  EXPECT_EQ(gone.wait_for(std::chrono::seconds(5)), std::future_status::ready);
}

// Unread bytes, a pipelined request's or a stray line end's, do not hide that the client left.
TEST_F(HttpServerTest, TellsWhenTheClientLeavesBytesUnread) {
  for (const std::string rest : {"\r\n", "GET /next HTTP/1.1\r\nHost: h\r\n\r\n"}) {
    handler_.gone = std::promise<void>();
    Start({});
    Send("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n");
    auto gone = handler_.gone.get_future();
    EXPECT_EQ(gone.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
    Send(rest);
    EXPECT_EQ(gone.wait_for(std::chrono::milliseconds(400)), std::future_status::timeout);
    socket_.close();
    EXPECT_EQ(gone.wait_for(std::chrono::seconds(1)), std::future_status::ready);
  }
}

TEST_F(HttpServerTest, CountsABodyUntilNobodyHoldsIt) {
  Start({});
  Send("POST /keep HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n" + std::string(1000, 'x'));
  ReadUntil("kept");
  socket_.close();
  EXPECT_EQ(server_->counters().bodies_bytes.load(), 1000);
  handler_.kept.reset();
  EXPECT_EQ(server_->counters().bodies_bytes.load(), 0);
}

TEST_F(HttpServerTest, ALargeAnswerThatNobodyReadsTakesRoomFromNewBodies) {
  Start({.max_body_bytes = 1000, .max_bodies_bytes = 16 << 20, .max_backlog_bytes = 1 << 20});
  Send("GET /large HTTP/1.1\r\nHost: h\r\n\r\n");
  ReadUntil("\r\n\r\n");
  asio::ip::tcp::socket slow = std::exchange(socket_, asio::ip::tcp::socket(io_));
  received_.clear();
  Connect();
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 429", 0), 0u);
}

TEST_F(HttpServerTest, AnswersAMalformedChunkedBody) {
  Start({});
  Send(
      "POST /b HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n"
      "zz\r\nhello\r\n");
  const std::string answer = ReadUntil("}");
  EXPECT_EQ(answer.rfind("HTTP/1.1 400", 0), 0u) << answer;
  EXPECT_NE(answer.find("x-request-id: mine\r\n"), std::string::npos) << answer;
  EXPECT_NE(answer.find("\"field\":\"body\""), std::string::npos) << answer;
}

// A close over unread bytes is a reset, which may take the answer with it.
TEST_F(HttpServerTest, ARefusalReachesAClientThatStillSends) {
  Start({.max_body_bytes = 1000});
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n");
  boost::system::error_code error;
  asio::write(socket_, asio::buffer(std::string(1'000'000, 'x')), error);
  EXPECT_FALSE(error) << error.message();
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 413", 0), 0u);
}

TEST(FileLimit, NamesTheSettingThatAsksForTooMuchAndWhatWouldFit) {
  EXPECT_EQ(FitConnections(900, 10, false, 1024).value_or(0), 900);
  const absl::Status status = FitConnections(1000, 10, false, 1024).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("http.max_connections is 1000, at most 950"), std::string::npos)
      << status;
  EXPECT_NE(status.message().find("1024"), std::string::npos) << status;
}

TEST(FileLimit, LowersWhatNobodyAskedForUnlessNothingIsLeft) {
  EXPECT_EQ(FitConnections(4096, 36, true, 1024).value_or(0), 924);
  EXPECT_EQ(FitConnections(924, 36, true, 1024).value_or(0), 924);
  EXPECT_FALSE(FitConnections(4096, 960, true, 1024).ok());
}

TEST_F(HttpServerTest, GivesUpOnAReaderThatStops) {
  Start({.max_backlog_bytes = 1 << 20});
  Send("GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_EQ(handler_.gone.get_future().wait_for(std::chrono::seconds(20)),
            std::future_status::ready);
  EXPECT_EQ(server_->counters().clients_gone.load(), 1u);
}

TEST_F(HttpServerTest, LargePiecesSayNothingOfTheReaderButTakeRoom) {
  Start({.max_body_bytes = 1000, .max_bodies_bytes = 8 << 20, .max_backlog_bytes = 1 << 20});
  Send("GET /repeats HTTP/1.1\r\nHost: h\r\n\r\n");
  ReadUntil("\r\n\r\n");
  asio::ip::tcp::socket slow = std::exchange(socket_, asio::ip::tcp::socket(io_));
  std::string seen = std::exchange(received_, {});
  Connect();
  Send("POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
  EXPECT_EQ(ReadUntil("}").rfind("HTTP/1.1 429", 0), 0u);
  socket_ = std::move(slow);
  received_ = std::move(seen);
  EXPECT_GT(ReadUntil("the end").size(), size_t{9} << 20);
  EXPECT_EQ(server_->counters().clients_gone.load(), 0u);
}

TEST_F(HttpServerTest, GivesUpOnAReaderThatLeavesManyLargePieces) {
  Start({.max_backlog_bytes = 1 << 20});
  Send("GET /repeats_on HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_EQ(handler_.gone.get_future().wait_for(std::chrono::seconds(20)),
            std::future_status::ready);
  EXPECT_EQ(server_->counters().clients_gone.load(), 1u);
}

TEST_F(HttpServerTest, ClosesOnHeadsAndBodiesThatTakeTooLong) {
  Start({.header_timeout = absl::Milliseconds(30), .body_timeout = absl::Milliseconds(30)});
  Send("GET / HT");
  EXPECT_EQ(ReadUntil("never"), "");
  Connect();
  Send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhel");
  EXPECT_EQ(ReadUntil("never"), "");
}

}  // namespace
}  // namespace baton::router
