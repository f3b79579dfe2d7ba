#include "absl/strings/str_format.h"
#include <boost/asio/post.hpp>

#include "common/check.h"
#include "router/http/http_connection.h"

namespace baton::router {
namespace {

constexpr auto kNever = std::chrono::hours(24 * 365);
// A piece of a stream of more than this share of its backlog says again what was said before, as
// the last events of a long answer do: it says nothing of the reader, and is counted like a large
// whole answer.
constexpr size_t kBulkShare = 8;
// So many backlogs of such pieces may wait: a reader that leaves more is gone.
constexpr size_t kMostBulk = 16;

bool IsHeaderSafe(const std::string& text) {
  return text.find_first_of("\r\n") == std::string::npos;
}

}  // namespace

std::string_view HttpReason(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 304:
      return "Not Modified";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 529:
      return "Overloaded";
    default:
      return "Status";
  }
}

bool HttpRequest::HasBody() const {
  const std::string_view length = Header("content-length");
  const bool is_empty = length.find_first_not_of('0') == std::string_view::npos;
  return !is_empty || !Header("transfer-encoding").empty();
}

HttpAnswer::HttpAnswer(boost::asio::io_context& io, HttpShared& shared, bool is_http11,
                       bool keep_alive, bool is_head)
    : io_(io),
      shared_(shared),
      is_http11_(is_http11),
      is_head_(is_head),
      keep_alive_(keep_alive),
      lease_(shared.counters),
      changed_(io) {
  changed_.expires_after(kNever);
}

void HttpAnswer::Head(int status, const HttpHeaders& headers) {
  CHECK(!is_started_);
  is_started_ = true;
  queued_ += absl::StrFormat("HTTP/1.1 %d %s\r\n", status, HttpReason(status));
  for (const auto& [name, value] : headers) {
    CHECK(IsHeaderSafe(name) && IsHeaderSafe(value));
    queued_ += name + ": " + value + "\r\n";
  }
  queued_ += keep_alive_ ? "Connection: keep-alive\r\n" : "Connection: close\r\n";
}

void HttpAnswer::Respond(int status, HttpHeaders headers, std::string body) {
  if (is_over()) return;
  Head(status, headers);
  // RFC 9110 8.6: then it has no length either.
  const bool has_no_body = status == 204 || status == 304;
  queued_ += has_no_body ? "\r\n" : absl::StrFormat("Content-Length: %d\r\n\r\n", body.size());
  // An answer that a slow reader leaves here takes room from new requests; a small one is bounded
  // like a stream's backlog.
  if (body.size() > shared_.limits.max_backlog_bytes) lease_.Hold(body.size());
  if (!is_head_ && !has_no_body) queued_ += body;
  is_ended_ = true;
  Changed();
}

void HttpAnswer::StartStream(int status, HttpHeaders headers) {
  if (is_over()) return;
  is_stream_ = true;
  is_chunked_ = is_http11_;
  if (!is_chunked_) keep_alive_ = false;
  Head(status, headers);
  queued_ += is_chunked_ ? "Transfer-Encoding: chunked\r\n\r\n" : "\r\n";
  Changed();
}

void HttpAnswer::Write(std::string piece) {
  if (is_over() || piece.empty()) return;
  const size_t limit = shared_.limits.max_backlog_bytes;
  const bool is_bulk = piece.size() > limit / kBulkShare;
  const bool is_behind = is_bulk ? bulk_ > 0 && bulk_ + piece.size() > kMostBulk * limit
                                 : queued_.size() - bulk_ + piece.size() > limit;
  if (is_behind) {
    keep_alive_ = false;
    Gone();
    return;
  }
  if (is_bulk) {
    bulk_ += piece.size();
    lease_.Hold(taken_bulk_ + bulk_);
  }
  queued_ += is_chunked_ ? absl::StrFormat("%x\r\n%s\r\n", piece.size(), piece) : piece;
  Changed();
}

std::string HttpAnswer::TakeQueued() {
  if (is_stream_) {
    taken_bulk_ = std::exchange(bulk_, 0);
    lease_.Hold(taken_bulk_);
  }
  return std::exchange(queued_, {});
}

void HttpAnswer::EndStream() {
  if (is_over()) return;
  if (is_chunked_) queued_ += "0\r\n\r\n";
  is_ended_ = true;
  Changed();
}

void HttpAnswer::OnGone(std::function<void()> callback) {
  if (is_gone_) {
    callback();
  } else {
    on_gone_ = std::move(callback);
  }
}

void HttpAnswer::Post(std::function<void()> task) {
  boost::asio::post(io_, [self = shared_from_this(), task = std::move(task)] { task(); });
}

void HttpAnswer::PostAfter(absl::Duration delay, std::function<void()> task) {
  auto timer = std::make_shared<boost::asio::steady_timer>(io_, absl::ToChronoNanoseconds(delay));
  timer->async_wait([self = weak_from_this(), timer,
                     task = std::move(task)](const boost::system::error_code& error) {
    const auto answer = self.lock();
    if (!error && answer && !answer->is_over()) task();
  });
}

void HttpAnswer::Gone() {
  if (is_over()) return;
  is_gone_ = true;
  ++shared_.counters.clients_gone;
  if (on_gone_) std::exchange(on_gone_, nullptr)();
  Changed();
}

void HttpAnswer::Changed() { changed_.cancel(); }

}  // namespace baton::router
