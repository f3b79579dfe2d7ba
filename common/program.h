#pragma once

#include <functional>
#include <signal.h>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

#include "common/config.h"

// What the mains of programs share that run until a signal. One thread, at start and end.
namespace baton {

struct ProgramArguments {
  bool wants_help = false, wants_version = false, wants_keys = false;
};

// An argument with a value that only this program takes.
struct ProgramOption {
  std::string name;  // "--model"
  std::function<absl::Status(const std::string& value)> take;
};

// Reads `--name value` or `--name=value`: --config and --set into `reader`, `options`, --help,
// --version and --keys, in their order. kInvalidArgument names what is not understood.
absl::Status ReadArguments(int argc, const char* const* argv, ConfigReader& reader,
                           const std::vector<ProgramOption>& options, ProgramArguments& arguments);

// A line of the log for each key.
void LogConfig(const ConfigReader& reader);

// SIGTERM and SIGINT, from here on blocked in every thread that starts, so that only WaitForSignal
// sees them.
sigset_t BlockStopSignals();
// Whether one came within `timeout`.
bool WaitForSignal(const sigset_t& signals, absl::Duration timeout);

}  // namespace baton
