// TLS over real sockets, with a certificate that signs itself, made here.
#include <array>
#include <filesystem>
#include <fstream>
#include <future>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/write.hpp>

#include "router/http/http_server.h"

namespace baton::router {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;
using boost::system::error_code;

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Free<X509, X509_free>>;

std::string PemOf(const std::function<int(BIO*)>& write) {
  const std::unique_ptr<BIO, Free<BIO, BIO_free_all>> memory(BIO_new(BIO_s_mem()));
  EXPECT_EQ(write(memory.get()), 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);
  return {data, static_cast<size_t>(size)};
}

struct Pair {
  std::string certificate, key;  // PEM
};

Pair MakeCertificate() {
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate(X509_new());
  X509_set_version(certificate.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate.get()), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), key.get());
  X509_NAME* const name = X509_get_subject_name(certificate.get());
  const auto* text = reinterpret_cast<const unsigned char*>("localhost");
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, text, -1, -1, 0);
  X509_set_issuer_name(certificate.get(), name);
  EXPECT_GT(X509_sign(certificate.get(), key.get(), EVP_sha256()), 0);
  return {
      .certificate = PemOf([&](BIO* out) { return PEM_write_bio_X509(out, certificate.get()); }),
      .key = PemOf([&](BIO* out) {
        return PEM_write_bio_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
      })};
}

class EchoHandler final : public HttpHandler {
 public:
  bool AdmitHead(HttpRequest&, HttpExchange&) override { return true; }
  void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) override {
    if (request.path == "/stream") {
      exchange->StartStream(200, {});
      exchange->Write("one");
      exchange->PostAfter(absl::Milliseconds(2), [exchange] {
        exchange->Write("two");
        exchange->EndStream();
      });
    } else if (request.path == "/wait") {
      exchange->OnGone([this, exchange] { gone.set_value(); });
    } else {
      exchange->Respond(200, {}, request.path + "|" + request.body);
    }
  }
  void Refuse(const HttpRefusal& refusal, HttpExchange& exchange) override {
    exchange.Respond(refusal.status, {}, refusal.message + "}");
  }
  std::promise<void> gone;
};

class HttpsTest : public testing::Test {
 protected:
  HttpsTest() : folder_(fs::path(testing::TempDir()) / "baton_https_test") {
    fs::create_directories(folder_);
  }
  ~HttpsTest() override { fs::remove_all(folder_); }

  std::string File(const std::string& name, const std::string& text) const {
    std::string path = folder_ / name;
    std::ofstream(path, std::ios::binary) << text;
    return path;
  }
  void Start(HttpLimits limits = {}) {
    pair_ = MakeCertificate();
    auto started =
        HttpServer::Start({.host = "127.0.0.1",
                           .port = 0,
                           .tls_certificate_file = File("certificate.pem", pair_.certificate),
                           .tls_key_file = File("key.pem", pair_.key)},
                          limits, handler_, clock_);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
    client_tls_.add_certificate_authority(asio::buffer(pair_.certificate));
    client_tls_.set_verify_mode(asio::ssl::verify_peer);
  }
  asio::ip::tcp::socket Connect() {
    asio::ip::tcp::socket socket(io_);
    socket.connect({asio::ip::make_address("127.0.0.1"), static_cast<uint16_t>(server_->port())});
    return socket;
  }
  using Stream = asio::ssl::stream<asio::ip::tcp::socket>;
  std::unique_ptr<Stream> ConnectTls() {
    auto stream = std::make_unique<Stream>(Connect(), client_tls_);
    stream->handshake(Stream::client);
    return stream;
  }
  // Reads until `end` has been seen; what follows it stays for the next call.
  std::string ReadUntil(Stream& stream, const std::string& end) {
    error_code error;
    const size_t size = asio::read_until(stream, asio::dynamic_buffer(received_), end, error);
    std::string out = received_.substr(0, error ? received_.size() : size);
    received_.erase(0, out.size());
    return out;
  }

  const fs::path folder_;
  SteadyClock clock_;
  EchoHandler handler_;
  Pair pair_;
  std::unique_ptr<HttpServer> server_;
  asio::io_context io_;
  asio::ssl::context client_tls_{asio::ssl::context::tls_client};
  std::string received_;
};

TEST_F(HttpsTest, AnswersPipelinedRequestsAndStreams) {
  Start();
  const auto stream = ConnectTls();
  const std::string body(100'000, 'x');  // more than one TLS record
  asio::write(*stream,
              asio::buffer("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + body +
                           "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"
                           "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"));
  EXPECT_EQ(ReadUntil(*stream, "/a|" + body).rfind("HTTP/1.1 200 OK\r\n", 0), 0u);
  EXPECT_NE(ReadUntil(*stream, "0\r\n\r\n").find("3\r\none\r\n3\r\ntwo\r\n"), std::string::npos);
  EXPECT_EQ(ReadUntil(*stream, "/last|").rfind("HTTP/1.1 200 OK\r\n", 0), 0u);
  std::array<char, 1> byte;
  error_code error;
  stream->read_some(asio::buffer(byte), error);
  EXPECT_EQ(error, asio::error::eof) << error.message();  // closed as TLS wants it, not cut
}

TEST_F(HttpsTest, TellsWhenTheClientLeaves) {
  Start();
  auto gone = handler_.gone.get_future();
  {
    const auto stream = ConnectTls();
    asio::write(*stream, asio::buffer(std::string("GET /wait HTTP/1.1\r\nHost: h\r\n\r\n")));
    EXPECT_EQ(gone.wait_for(std::chrono::milliseconds(50)), std::future_status::timeout);
  }
  EXPECT_EQ(gone.wait_for(std::chrono::seconds(5)), std::future_status::ready);
}

TEST_F(HttpsTest, ClosesOnClientsThatSpeakNoTls) {
  Start({.header_timeout = absl::Milliseconds(100), .idle_timeout = absl::Milliseconds(100)});
  asio::ip::tcp::socket plain = Connect();
  asio::write(plain, asio::buffer(std::string("GET / HTTP/1.1\r\nHost: h\r\n\r\n")));
  std::string got;
  error_code error;
  asio::read_until(plain, asio::dynamic_buffer(got), "HTTP/1.1 ", error);
  EXPECT_TRUE(error) << got;
  asio::ip::tcp::socket silent = Connect();  // and on those that say nothing
  asio::read_until(silent, asio::dynamic_buffer(got), "HTTP/1.1 ", error);
  EXPECT_TRUE(error) << got;
  EXPECT_EQ(ReadUntil(*ConnectTls(), "never"), "");  // idle, then closed; the server goes on
}

TEST_F(HttpsTest, RefusesOldProtocols) {
  Start();
  asio::ssl::context old(asio::ssl::context::tls_client);
  SSL_CTX_set_max_proto_version(old.native_handle(), TLS1_1_VERSION);
  Stream stream(Connect(), old);
  error_code error;
  stream.handshake(Stream::client, error);
  EXPECT_TRUE(error);
}

TEST_F(HttpsTest, NamesTheFileThatDoesNotFit) {
  const Pair one = MakeCertificate(), two = MakeCertificate();
  const auto error = [&](const std::string& certificate, const std::string& key) {
    const auto server = HttpServer::Start(
        {.host = "127.0.0.1", .port = 0, .tls_certificate_file = certificate, .tls_key_file = key},
        {}, handler_, clock_);
    EXPECT_EQ(server.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(server.status().message());
  };
  const std::string certificate = File("one.pem", one.certificate);
  EXPECT_NE(error("/nowhere.pem", File("one.key", one.key)).find("/nowhere.pem is no PEM cert"),
            std::string::npos);
  EXPECT_NE(error(certificate, File("two.key", two.key)).find("two.key is no PEM private key of"),
            std::string::npos);
}

}  // namespace
}  // namespace baton::router
