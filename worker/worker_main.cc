#include "worker/worker_main.h"

#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "common/clock.h"
#include "common/log.h"
#include "common/program.h"
#include "common/status.h"
#include "engine/load/inspect.h"
#include "worker/version.h"
#include "worker/worker_config.h"
#include "worker/worker_process.h"

namespace baton::worker {
namespace {

constexpr char kUsage[] =
    "usage: %s [--config FILE] [--set KEY=VALUE]... [--serve prefill,decode]\n"
    "       %s --inspect DIR      says what a checkpoint holds\n"
    "       %s --help | --version | --keys\n"
    "\n"
    "Later arguments win. --keys prints every key with its default, limits and meaning.\n";

int Inspect(const std::string& folder) {
  const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(folder);
  if (!checkpoint.ok()) {
    std::fprintf(stderr, "%s\n", std::string(checkpoint.status().message()).c_str());
    return 1;
  }
  std::printf("%s", engine::InspectCheckpoint(*checkpoint).c_str());
  return 0;
}

int RunUntilStopped(WorkerProcess& process, const sigset_t& signals) {
  constexpr absl::Duration kCheckEvery = absl::Milliseconds(100);
  bool is_draining = false;
  while (!process.IsDone()) {
    if (!WaitForSignal(signals, kCheckEvery)) continue;
    if (is_draining) {
      Log(LogLevel::kWarn, "stopped", "reason=second_signal");
      return 1;
    }
    is_draining = true;
    process.Drain();
  }
  const absl::Status result = process.result();
  Log(LogLevel::kInfo, "stopped", result.ok() ? "reason=drained" : "reason=engine_failed");
  return result.ok() ? 0 : 1;
}

}  // namespace

int RunWorkerMain(const ProgramFacts& program, int argc, char** argv) {
  WorkerConfig config;
  config.serve = program.serve;
  ConfigReader reader;
  BindConfig(reader, config);
  ProgramArguments arguments;
  std::optional<std::string> inspect;
  const std::vector<ProgramOption> options = {
      {"--serve", [&reader](const std::string& value) { return reader.Set("serve=" + value); }},
      {"--inspect", [&inspect](const std::string& value) {
         inspect = value;
         return absl::OkStatus();
       }}};
  absl::Status status = ReadArguments(argc, argv, reader, options, arguments);
  const char* name = program.name.c_str();
  if (arguments.wants_help) return std::printf(kUsage, name, name, name) < 0;
  if (arguments.wants_version) return std::printf("%s %s\n", name, kVersion) < 0;
  if (arguments.wants_keys) return std::printf("%s", reader.Reference().c_str()) < 0;
  if (status.ok() && inspect) return Inspect(*inspect);
  LogLevel level = LogLevel::kInfo;
  if (status.ok()) status = Validate(config);
  if (status.ok() && !ParseLogLevel(config.log_level, level)) {
    status = absl::InvalidArgumentError(
        absl::StrFormat("log_level is \"%s\": debug, info, warn or error", config.log_level));
  }
  if (!status.ok()) {
    std::fprintf(stderr, "%s: %s\n", name, std::string(status.message()).c_str());
    return 2;
  }
  InitLog(program.name, level);
  LogConfig(reader);
  const sigset_t signals = BlockStopSignals();
  const SteadyClock clock;
  auto process = WorkerProcess::Start(config, program.backend, clock);
  if (!process.ok()) {
    LogF(LogLevel::kError, "start_failed", "error=%s", process.status().ToString());
    return 1;
  }
  return RunUntilStopped(**process, signals);
}

}  // namespace baton::worker
