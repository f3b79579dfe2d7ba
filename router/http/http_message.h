#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/time/time.h"

// What HTTP mechanics and endpoints say to each other. No API knowledge here, no sockets there.
namespace baton::router {

class KeyAccount;  // router/http/api_keys.h

struct HttpRequest {
  std::string method;
  std::string path;                            // without the query, as received
  std::string query;                           // without '?'
  std::map<std::string, std::string> headers;  // names in lower case; of repeated ones the last
  std::string body;
  absl::Time arrival;           // of the first byte, router's clock
  std::shared_ptr<void> lease;  // counts the body's bytes while this or a copy of it lives
  std::shared_ptr<KeyAccount> account = nullptr;  // of the API key; null: none was asked for

  // Whether its head announces one.
  bool HasBody() const;
  // The header's value, or empty.
  std::string_view Header(const std::string& lower_case_name) const {
    const auto header = headers.find(lower_case_name);
    return header == headers.end() ? std::string_view() : std::string_view(header->second);
  }
};

// What HTTP mechanics refuse on their own: 400, 413, 429, 431.
struct HttpRefusal {
  int status = 0;
  std::string message;     // names the value and the limit
  std::string field;       // of the request, where one is at fault
  std::string request_id;  // the header x-request-id as it came, if it did
  std::string path{};      // as far as it was read
  std::string origin{};    // the header
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

// The answer to one request. Lives on its connection's thread: call it there only (Post brings you
// there). Calls after the client has gone are ignored.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  // A whole answer. Once, and not after StartStream.
  virtual void Respond(int status, HttpHeaders headers, std::string body) = 0;
  // An answer in pieces, each sent as it comes.
  virtual void StartStream(int status, HttpHeaders headers) = 0;
  virtual void Write(std::string piece) = 0;
  virtual void EndStream() = 0;
  // Called once, on the connection's thread, when the client is gone before the answer was
  // complete: closed its side, reset, or read so slowly that its backlog passed the limit.
  virtual void OnGone(std::function<void()> callback) = 0;
  // Runs `task` on the connection's thread. Any thread.
  virtual void Post(std::function<void()> task) = 0;
  // Runs `task` there after a delay, unless the exchange is over by then.
  virtual void PostAfter(absl::Duration delay, std::function<void()> task) = 0;
};

class RequestHandler {
 public:
  virtual ~RequestHandler() = default;
  // On the connection's thread; must not block. The exchange may be kept until it is answered.
  virtual void Handle(HttpRequest request, std::shared_ptr<HttpExchange> exchange) = 0;
};

// What a server hands its requests to; Handle gets those that were admitted, whole.
class HttpHandler : public RequestHandler {
 public:
  // Called with a request's head before any of its body is read or asked for; may change it. False:
  // refused, and answered with Respond. On the connection's thread.
  virtual bool AdmitHead(HttpRequest& head, HttpExchange& exchange) = 0;
  // Answers with Respond before it returns; the connection closes after it.
  virtual void Refuse(const HttpRefusal& refusal, HttpExchange& exchange) = 0;
};

std::string_view HttpReason(int status);

}  // namespace baton::router
