#pragma once

#include <string>
#include <string_view>

#include "absl/strings/str_format.h"

namespace baton {

enum class LogLevel { kDebug, kInfo, kWarn, kError };

// Sets the least level printed and the program's name; called once by main before threads start.
// Lines go to stderr.
void InitLog(std::string_view program, LogLevel level);
std::string_view LogLevelName(LogLevel level);
// False for a name that is none of debug, info, warn, error.
bool ParseLogLevel(std::string_view name, LogLevel& level);

// One line: time, level, program, `event`, then ` key=value` pairs. Any thread. Control characters
// in the text are escaped, so that nothing a client sent can forge a line.
void Log(LogLevel level, std::string_view event, std::string_view pairs = {});

// A client's text as one value of a line: in quotes, cut at 256 bytes.
std::string QuotedForLog(std::string_view text);

// Log(level, "event", "key=%d", value): formats only what is printed.
template <typename... Args>
void LogF(LogLevel level, std::string_view event, const absl::FormatSpec<Args...>& format,
          const Args&... args) {
  Log(level, event, absl::StrFormat(format, args...));
}

}  // namespace baton
