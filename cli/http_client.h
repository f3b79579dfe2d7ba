#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace baton::cli {

struct HttpUrl {
  std::string host, port, path;  // the path begins with '/', or is empty
  bool is_tls = false;
};
// From "http[s]://host[:port][/path]" or "host:port"; an IPv6 host stands in brackets, which are
// taken off; slashes at the end are dropped. kInvalidArgument says what is wrong.
absl::StatusOr<HttpUrl> ParseUrl(std::string_view text);

struct HttpReply {
  int status = 0;
  std::string body;
};
// One request on a connection of its own. `timeout` bounds each wait for the server. kUnavailable:
// no answer. With `on_piece` the body of a 200 goes there as it arrives instead of into the reply.
struct HttpCall {
  HttpUrl url;
  std::string method = "GET";
  std::string body{};     // JSON
  std::string api_key{};  // empty: none
  absl::Duration timeout = absl::Seconds(600);
  std::function<void(std::string_view)> on_piece{};
};
absl::StatusOr<HttpReply> Fetch(const HttpCall& call);

}  // namespace baton::cli
