#include "cli/bench_client.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "cli/event_reader.h"
#include "cli/http_connection.h"
#include "cli/replies.h"
#include "cli/tls.h"
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

namespace baton::cli {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);
constexpr size_t kShownError = 120;

// The token of a wait that puts its error there.
auto Into(error_code& error) { return asio::redirect_error(asio::use_awaitable, error); }

std::string JsonText(const nlohmann::json& object, const char* key) {
  return object.is_object() && object.contains(key) && object[key].is_string()
             ? object[key].get<std::string>()
             : std::string();
}

int64_t JsonCount(const nlohmann::json& object, const char* key) {
  return object.is_object() && object.contains(key) && object[key].is_number_integer()
             ? object[key].get<int64_t>()
             : 0;
}

// Whether "choices" is a list that holds something. A quote inside a JSON string is escaped, so the
// key is found without parsing.
bool HasChoices(std::string_view data) {
  constexpr std::string_view kKey = "\"choices\"";
  const size_t at = data.find(kKey);
  if (at == std::string_view::npos) return false;
  const size_t list = data.find_first_not_of(" \t:", at + kKey.size());
  if (list == std::string_view::npos || data[list] != '[') return false;
  const size_t item = data.find_first_not_of(" \t", list + 1);
  return item != std::string_view::npos && data[item] != ']';
}

std::string ErrorKind(int status, const std::string& body) {
  const std::string message = ErrorMessageOf(body);
  return absl::StrFormat("HTTP %d%s%s", status, message.empty() ? "" : ": ",
                         message.substr(0, kShownError));
}

// What one request is about; lives as long as its attempt.
struct Attempt {
  const std::string& request;
  StreamRecorder* recorder = nullptr;
  std::optional<StreamRecorder> made;
  RequestRecord record{};
  error_code error{};
  bool has_answer = false;  // the head of one came
  bool keeps = false;       // the connection may be used again
};

class Load {
 public:
  Load(const BenchTarget& target, const std::vector<PlannedRequest>& load, const Clock& clock,
       const std::function<void(const BenchProgress&)>& on_progress)
      : target_(target),
        load_(load),
        clock_(clock),
        on_progress_(on_progress),
        tls_(MakeTlsClient()),
        signals_(io_, SIGINT, SIGTERM) {}

  absl::StatusOr<BenchOutcome> Run() {
    error_code error;
    tcp::resolver resolver(io_);
    addresses_ = resolver.resolve(target_.url.host, target_.url.port, error);
    if (error)
      return absl::UnavailableError(absl::StrFormat("%s: %s", target_.url.host, error.message()));
    started_ = clock_.Now();
    signals_.async_wait([this](error_code failed, int) {
      if (failed) return;
      outcome_.was_interrupted = true;
      io_.stop();
    });
    const size_t limit =
        target_.concurrency > 0 ? static_cast<size_t>(target_.concurrency) : load_.size();
    num_workers_ = std::min(limit, load_.size());
    for (size_t i = 0; i < num_workers_; ++i) asio::co_spawn(io_, Work(), asio::detached);
    asio::co_spawn(io_, ShowProgress(), asio::detached);
    io_.run();
    outcome_.duration = clock_.Now() - started_;
    return std::move(outcome_);
  }

 private:
  // Takes one planned request after the other, each not before its time.
  asio::awaitable<void> Work() {
    std::unique_ptr<HttpConnection> connection;
    asio::steady_timer timer(io_);
    while (next_ < load_.size()) {
      const PlannedRequest& planned = load_[next_++];
      const absl::Duration wait = started_ + planned.at - clock_.Now();
      if (wait > absl::ZeroDuration()) {
        timer.expires_after(absl::ToChronoNanoseconds(wait));
        error_code ignored;
        co_await timer.async_wait(Into(ignored));
      }
      ++num_running_;
      RequestRecord record;
      co_await Ask(planned.body, connection, record);
      --num_running_;
      if (!record.error.empty()) ++num_failed_;
      outcome_.records.push_back(std::move(record));
    }
    if (--num_workers_ > 0) co_return;
    signals_.cancel();
    io_.stop();
  }

  // A connection kept from the request before may have been closed meanwhile: then once more.
  asio::awaitable<void> Ask(const std::string& body, std::unique_ptr<HttpConnection>& connection,
                            RequestRecord& record) {
    const std::string request = RequestText({.url = target_.url,
                                             .method = "POST",
                                             .body = body,
                                             .api_key = target_.api_key,
                                             .keeps_connection = true});
    const bool is_kept = connection != nullptr;
    Attempt attempt{.request = request, .made = {}};
    co_await Try(connection, attempt);
    if (attempt.error && is_kept && !attempt.has_answer) {
      attempt.error = {};
      connection.reset();
      co_await Try(connection, attempt);
    }
    record = std::move(attempt.record);
    if (attempt.error) record.error = attempt.error.message();
    if (attempt.error || !attempt.keeps) connection.reset();
  }

  asio::awaitable<void> Try(std::unique_ptr<HttpConnection>& connection, Attempt& attempt) {
    attempt.record = {};
    const absl::Time sent = clock_.Now();  // connecting counts
    attempt.made.emplace(sent, attempt.record);
    attempt.recorder = &*attempt.made;
    if (connection == nullptr) {
      connection = std::make_unique<HttpConnection>(io_, target_.timeout);
      co_await connection->Open(target_.url, addresses_, tls_, attempt.error);
    }
    if (!attempt.error) co_await Exchange(*connection, attempt);
  }

  asio::awaitable<void> Exchange(HttpConnection& connection, Attempt& attempt) {
    co_await connection.Send(attempt.request, attempt.error);
    if (attempt.error) co_return;
    HttpConnection::Parser parser;
    parser.body_limit(boost::none);
    co_await connection.ReadHeader(parser, attempt.error);
    if (attempt.error) co_return;
    attempt.has_answer = true;
    const int status = static_cast<int>(parser.get().result_int());
    EventReader events;
    while (!parser.is_done()) {
      co_await connection.ReadSome(parser, attempt.error);
      if (attempt.error) co_return;
      if (status == 200) TakePiece(parser.get().body(), events, attempt);
    }
    attempt.keeps = parser.keep_alive();
    if (status == 200) {
      TakePiece(parser.get().body(), events, attempt);
      attempt.recorder->Finish();
    } else {
      attempt.record.error = ErrorKind(status, parser.get().body());
    }
  }

  void TakePiece(std::string& body, EventReader& events, Attempt& attempt) {
    const absl::Time now = clock_.Now();
    const int64_t before = attempt.recorder->chunks();
    events.Push(body, [&](std::string_view data) { attempt.recorder->OnData(data, now); });
    chunks_ += attempt.recorder->chunks() - before;
    body.clear();
  }

  asio::awaitable<void> ShowProgress() {
    asio::steady_timer timer(io_);
    while (num_workers_ > 0) {
      on_progress_({.num_planned = load_.size(),
                    .num_ended = outcome_.records.size(),
                    .num_failed = num_failed_,
                    .num_running = num_running_,
                    .chunks = chunks_,
                    .elapsed = clock_.Now() - started_});
      timer.expires_after(absl::ToChronoNanoseconds(kProgressInterval));
      error_code ignored;
      co_await timer.async_wait(Into(ignored));
    }
  }

  const BenchTarget& target_;
  const std::vector<PlannedRequest>& load_;
  const Clock& clock_;
  const std::function<void(const BenchProgress&)>& on_progress_;
  absl::Time started_;
  size_t next_ = 0, num_workers_ = 0, num_running_ = 0, num_failed_ = 0;
  int64_t chunks_ = 0;
  BenchOutcome outcome_;
  tcp::resolver::results_type addresses_;
  asio::ssl::context tls_;
  asio::io_context io_{1};  // after what its coroutines use: they end with it
  asio::signal_set signals_;
};

}  // namespace

void StreamRecorder::OnData(std::string_view data, absl::Time now) {
  if (data == "[DONE]") {
    is_done_ = true;
    return;
  }
  if (HasChoices(data)) {
    if (chunks_ == 0) {
      record_.first_token = now - sent_;
    } else {
      record_.gaps_ms.push_back(absl::ToDoubleMilliseconds(now - last_));
    }
    ++chunks_;
    last_ = now;
    record_.total = now - sent_;
  }
  const bool may_matter = data.find("\"usage\"") != std::string_view::npos ||
                          data.find("\"error\"") != std::string_view::npos;
  if (may_matter) ReadUsage(data);
}

void StreamRecorder::ReadUsage(std::string_view data) {
  const nlohmann::json event = nlohmann::json::parse(data, nullptr, /*allow_exceptions=*/false);
  if (!event.is_object()) return;
  if (event.contains("error") && !event["error"].is_null() && record_.error.empty())
    record_.error = "in the stream: " + JsonText(event["error"], "message").substr(0, kShownError);
  if (!event.contains("usage") || !event["usage"].is_object()) return;
  const nlohmann::json& usage = event["usage"];
  has_usage_ = true;
  record_.prompt_tokens = JsonCount(usage, "prompt_tokens");
  record_.completion_tokens = JsonCount(usage, "completion_tokens");
  if (usage.contains("prompt_tokens_details"))
    record_.cached_tokens = JsonCount(usage["prompt_tokens_details"], "cached_tokens");
}

void StreamRecorder::Finish() {
  record_.has_usage = has_usage_;
  if (!has_usage_) record_.completion_tokens = chunks_;
  if (!record_.error.empty()) return;
  if (!is_done_) {
    record_.error = "the stream ended without [DONE]";
  } else if (chunks_ == 0) {
    record_.error = "the stream had no tokens";
  }
}

absl::StatusOr<BenchOutcome> RunLoad(const BenchTarget& target,
                                     const std::vector<PlannedRequest>& load, const Clock& clock,
                                     const std::function<void(const BenchProgress&)>& on_progress) {
  Load running(target, load, clock, on_progress);
  return running.Run();
}

}  // namespace baton::cli
