#include "worker/worker_main.h"

#include <cstdio>
#include <ctime>
#include <optional>
#include <signal.h>
#include <string_view>

#include "absl/strings/str_format.h"

#include "common/clock.h"
#include "common/log.h"
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

struct Arguments {
  std::optional<std::string> inspect;
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
    } else if (name == "--config" || name == "--set" || name == "--serve" || name == "--inspect") {
      if (equals == std::string::npos && i + 1 == argc)
        return absl::InvalidArgumentError(absl::StrFormat("%s needs a value", name));
      const std::string value = equals == std::string::npos ? argv[++i] : text.substr(equals + 1);
      if (name == "--config") RETURN_IF_ERROR(reader.ReadFile(value));
      if (name == "--set") RETURN_IF_ERROR(reader.Set(value));
      if (name == "--serve") RETURN_IF_ERROR(reader.Set("serve=" + value));
      if (name == "--inspect") arguments.inspect = value;
    } else {
      return absl::InvalidArgumentError(absl::StrFormat("argument %s is not known", text));
    }
  }
  return absl::OkStatus();
}

int Inspect(const std::string& folder) {
  const absl::StatusOr<engine::Checkpoint> checkpoint = engine::Checkpoint::Open(folder);
  if (!checkpoint.ok()) {
    std::fprintf(stderr, "%s\n", std::string(checkpoint.status().message()).c_str());
    return 1;
  }
  std::printf("%s", engine::InspectCheckpoint(*checkpoint).c_str());
  return 0;
}

void LogConfig(const ConfigReader& reader) {
  const std::string lines = reader.Print();
  size_t from = 0;
  while (from < lines.size()) {
    const size_t end = lines.find('\n', from);
    Log(LogLevel::kInfo, "config", lines.substr(from, end - from));
    from = end == std::string::npos ? lines.size() : end + 1;
  }
}

// Blocked in every thread, so that only WaitForSignal sees them.
sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

bool WaitForSignal(const sigset_t& signals, absl::Duration timeout) {
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
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
  Arguments arguments;
  absl::Status status = ReadArguments(argc, argv, reader, arguments);
  const char* name = program.name.c_str();
  if (arguments.wants_help) return std::printf(kUsage, name, name, name) < 0;
  if (arguments.wants_version) return std::printf("%s %s\n", name, kVersion) < 0;
  if (arguments.wants_keys) return std::printf("%s", reader.Reference().c_str()) < 0;
  if (status.ok() && arguments.inspect) return Inspect(*arguments.inspect);
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
  const sigset_t signals = StopSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const SteadyClock clock;
  auto process = WorkerProcess::Start(config, program.backend, clock);
  if (!process.ok()) {
    LogF(LogLevel::kError, "start_failed", "error=%s", process.status().ToString());
    return 1;
  }
  return RunUntilStopped(**process, signals);
}

}  // namespace baton::worker
