#include <algorithm>
#include <cstdio>
#include <ctime>
#include <signal.h>
#include <string>

#include "absl/strings/str_format.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/status.h"
#include "router/http/file_limit.h"
#include "router/router_config.h"
#include "router/router_process.h"

namespace {

using baton::ConfigReader;
using baton::Log;
using baton::LogF;
using baton::LogLevel;
using baton::router::RouterConfig;
using baton::router::RouterProcess;

constexpr char kUsage[] =
    "usage: baton-router --model DIR --set workers=HOST:PORT,... [--config FILE] [--set "
    "KEY=VALUE]...\n"
    "       baton-router --help | --version | --keys\n"
    "\n"
    "The front door: speaks HTTP to clients and gives their requests to prefill and decode "
    "workers.\n"
    "Later arguments win. --keys prints every key with its default, limits and meaning.\n";

struct Arguments {
  bool wants_help = false, wants_version = false, wants_keys = false;
};

// Reads `--name value` or `--name=value`; kInvalidArgument names what is not understood.
absl::Status ReadArguments(int argc, char** argv, ConfigReader& reader, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string text = argv[i];
    const size_t equals = text.find('=');
    const std::string name = text.substr(0, equals);
    if (name == "--help" || name == "-h") {
      arguments.wants_help = true;
    } else if (name == "--version") {
      arguments.wants_version = true;
    } else if (name == "--keys") {
      arguments.wants_keys = true;
    } else if (name == "--config" || name == "--set" || name == "--model") {
      if (equals == std::string::npos && i + 1 == argc)
        return absl::InvalidArgumentError(absl::StrFormat("%s needs a value", name));
      const std::string value = equals == std::string::npos ? argv[++i] : text.substr(equals + 1);
      if (name == "--config") RETURN_IF_ERROR(reader.ReadFile(value));
      if (name == "--set") RETURN_IF_ERROR(reader.Set(value));
      if (name == "--model") RETURN_IF_ERROR(reader.Set("model=" + value));
    } else {
      return absl::InvalidArgumentError(absl::StrFormat("argument %s is not known", text));
    }
  }
  return absl::OkStatus();
}

void LogConfig(const ConfigReader& reader) {
  const std::string lines = reader.Print();
  for (size_t from = 0; from < lines.size();) {
    const size_t end = std::min(lines.find('\n', from), lines.size());
    Log(LogLevel::kInfo, "config", lines.substr(from, end - from));
    from = end + 1;
  }
}

// The next stop signal, or false after `timeout`. They are blocked in every thread, so that only
// this sees them.
bool WaitForSignal(const sigset_t& signals, absl::Duration timeout) {
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
}

void RunUntilStopped(RouterProcess& process, const sigset_t& signals,
                     absl::Duration drain_timeout) {
  while (!WaitForSignal(signals, absl::Hours(1))) {
  }
  LogF(LogLevel::kInfo, "draining", "timeout_ms=%d", absl::ToInt64Milliseconds(drain_timeout));
  process.Drain();
  const baton::SteadyClock clock;
  const absl::Time until = clock.Now() + drain_timeout;
  while (!process.IsIdle() && clock.Now() < until) {
    if (WaitForSignal(signals, absl::Milliseconds(20))) break;  // the second signal: at once
  }
  LogF(LogLevel::kInfo, "stopping", "idle=%s", process.IsIdle() ? "true" : "false");
}

// The default number of connections gives way to a low limit of open files, a chosen one does not.
absl::Status FitFileLimit(RouterConfig& config) {
  const baton::router::HttpLimits defaults;
  const bool is_default = config.http.max_connections == defaults.max_connections;
  ASSIGN_OR_RETURN(config.http.max_connections,
                   baton::router::FitConnections(config.http.max_connections, config.workers.size(),
                                                 is_default, baton::router::RaiseFileLimit()));
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  RouterConfig config;
  ConfigReader reader;
  baton::router::BindConfig(reader, config);
  Arguments arguments;
  absl::Status status = ReadArguments(argc, argv, reader, arguments);
  if (arguments.wants_help) return std::fputs(kUsage, stdout) < 0;
  if (arguments.wants_version) return std::printf("baton-router %s\n", BATON_VERSION) < 0;
  if (arguments.wants_keys) return std::fputs(reader.Reference().c_str(), stdout) < 0;
  if (status.ok()) status = Validate(config);
  const int asked = config.http.max_connections;
  if (status.ok()) status = FitFileLimit(config);
  if (!status.ok()) {
    std::fprintf(stderr, "baton-router: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  LogLevel level = LogLevel::kInfo;
  baton::ParseLogLevel(config.log_level, level);
  baton::InitLog("baton-router", level);
  if (config.http.max_connections < asked)
    LogF(LogLevel::kWarn, "max_connections_lowered", "from=%d to=%d reason=open_files", asked,
         config.http.max_connections);
  LogConfig(reader);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const baton::SteadyClock clock;
  auto process = RouterProcess::Start(config, clock);
  if (!process.ok()) {
    LogF(LogLevel::kError, "start_failed", "error=%s", process.status().ToString());
    return 1;
  }
  LogF(LogLevel::kInfo, "serving", "http_host=%s http_port=%d tls=%s", config.endpoint.host,
       (*process)->port(), config.endpoint.tls_key_file.empty() ? "false" : "true");
  RunUntilStopped(**process, signals, config.drain_timeout);
  process->reset();
  return 0;
}
