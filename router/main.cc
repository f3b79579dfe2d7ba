#include <cstdio>
#include <signal.h>
#include <string>

#include "common/clock.h"
#include "common/log.h"
#include "common/program.h"
#include "common/status.h"
#include "router/http/file_limit.h"
#include "router/router_config.h"
#include "router/router_process.h"

namespace {

using baton::ConfigReader;
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

void RunUntilStopped(RouterProcess& process, const sigset_t& signals,
                     absl::Duration drain_timeout) {
  while (!baton::WaitForSignal(signals, absl::Hours(1))) {
  }
  LogF(LogLevel::kInfo, "draining", "timeout_ms=%d", absl::ToInt64Milliseconds(drain_timeout));
  process.Drain();
  const baton::SteadyClock clock;
  const absl::Time until = clock.Now() + drain_timeout;
  while (!process.IsIdle() && clock.Now() < until) {
    if (baton::WaitForSignal(signals, absl::Milliseconds(20))) break;  // the second signal: at once
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
  baton::ProgramArguments arguments;
  const auto set_model = [&reader](const std::string& value) {
    return reader.Set("model=" + value);
  };
  absl::Status status =
      baton::ReadArguments(argc, argv, reader, {{"--model", set_model}}, arguments);
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
  baton::LogConfig(reader);
  const sigset_t signals = baton::BlockStopSignals();
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
