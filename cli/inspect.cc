#include "cli/inspect.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <optional>
#include <unistd.h>

#include "absl/strings/str_format.h"
#include "cli/http_client.h"
#include "cli/replies.h"

#include "common/status.h"

namespace baton::cli {
namespace {

absl::Status InspectUrl(const std::string& target) {
  ASSIGN_OR_RETURN(HttpUrl url, ParseUrl(target));
  url.path = "/ready";
  ASSIGN_OR_RETURN(const HttpReply ready, Fetch({.url = url, .timeout = absl::Seconds(10)}));
  if (const std::optional<std::string> cluster = ClusterTable(ready.body)) {
    std::fputs(cluster->c_str(), stdout);
    return absl::OkStatus();
  }
  url.path = "/metrics";
  ASSIGN_OR_RETURN(const HttpReply metrics, Fetch({.url = url, .timeout = absl::Seconds(10)}));
  if (metrics.status != 200)
    return absl::UnavailableError(
        absl::StrFormat("%s/metrics answered %d", target, metrics.status));
  std::printf("ready: %s (%s)\n\n%s", ready.status == 200 ? "true" : "false",
              ready.body.substr(0, ready.body.find('\n')).c_str(),
              MetricsTable(metrics.body).c_str());
  return absl::OkStatus();
}

}  // namespace

int RunInspect(const std::string& target, const std::string& program_folder) {
  std::error_code ignored;
  if (std::filesystem::is_directory(target, ignored)) {
    const std::string program = program_folder + "/baton-decode";
    execl(program.c_str(), program.c_str(), "--inspect", target.c_str(), nullptr);
    std::fprintf(stderr, "baton inspect: %s: %s\n", program.c_str(), strerror(errno));
    return 1;
  }
  const absl::Status status = InspectUrl(target);
  if (status.ok()) return 0;
  std::fprintf(stderr, "baton inspect: %s\n", std::string(status.message()).c_str());
  return 1;
}

}  // namespace baton::cli
