#include "common/program.h"

#include <algorithm>
#include <ctime>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"

namespace baton {
namespace {

absl::Status TakeValue(ConfigReader& reader, const std::vector<ProgramOption>& options,
                       const std::string& name, const std::string& value) {
  if (name == "--config") return reader.ReadFile(value);
  if (name == "--set") return reader.Set(value);
  return std::ranges::find(options, name, &ProgramOption::name)->take(value);
}

}  // namespace

absl::Status ReadArguments(int argc, const char* const* argv, ConfigReader& reader,
                           const std::vector<ProgramOption>& options, ProgramArguments& arguments) {
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
    } else if (name == "--config" || name == "--set" ||
               std::ranges::count(options, name, &ProgramOption::name) > 0) {
      if (equals == std::string::npos && i + 1 == argc)
        return absl::InvalidArgumentError(absl::StrFormat("%s needs a value", name));
      const std::string value = equals == std::string::npos ? argv[++i] : text.substr(equals + 1);
      RETURN_IF_ERROR(TakeValue(reader, options, name, value));
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

sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

bool WaitForSignal(const sigset_t& signals, absl::Duration timeout) {
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
}

}  // namespace baton
