#include "common/log.h"

#include <spdlog/spdlog.h>

#include <spdlog/sinks/stdout_sinks.h>

namespace baton {
namespace {

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarn:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::string Escape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x20 && c != 0x7f) {
      out += c;
    } else {
      out += absl::StrFormat("\\x%02x", static_cast<unsigned char>(c));
    }
  }
  return out;
}

}  // namespace

void InitLog(std::string_view program, LogLevel level) {
  auto logger = spdlog::stderr_logger_mt(std::string(program));
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%fZ %L %n %v", spdlog::pattern_time_type::utc);
  logger->set_level(ToSpdlog(level));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

std::string_view LogLevelName(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return "debug";
    case LogLevel::kInfo:
      return "info";
    case LogLevel::kWarn:
      return "warn";
    case LogLevel::kError:
      return "error";
  }
  return "error";
}

bool ParseLogLevel(std::string_view name, LogLevel& level) {
  for (const LogLevel candidate :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarn, LogLevel::kError}) {
    if (name == LogLevelName(candidate)) {
      level = candidate;
      return true;
    }
  }
  return false;
}

std::string QuotedForLog(std::string_view text) {
  constexpr size_t kMostBytes = 256;
  std::string out = "\"";
  for (const char c : text.substr(0, kMostBytes)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + (text.size() > kMostBytes ? "...\"" : "\"");
}

void Log(LogLevel level, std::string_view event, std::string_view pairs) {
  const auto at = ToSpdlog(level);
  if (!spdlog::should_log(at)) return;
  if (pairs.empty()) {
    spdlog::log(at, "{}", Escape(event));
  } else {
    spdlog::log(at, "{} {}", Escape(event), Escape(pairs));
  }
}

}  // namespace baton
