#include "common/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include <yaml-cpp/yaml.h>

#include "common/check.h"
#include "common/status.h"

namespace baton {
namespace {

template <typename T>
absl::Status ParseNumber(const std::string& text, T least, T most, T& out) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    return absl::InvalidArgumentError(absl::StrFormat("'%s' is not a number", text));
  if (!(value >= least && value <= most))
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s is outside %s..%s", text, absl::FormatStreamed(least), absl::FormatStreamed(most)));
  out = value;
  return absl::OkStatus();
}

template <typename T>
std::string Limits(T least, T most) {
  return absl::StrFormat("%s..%s", absl::FormatStreamed(least), absl::FormatStreamed(most));
}

std::string Join(const std::vector<std::string>& items) {
  std::string out;
  for (const auto& item : items) out += (out.empty() ? "" : ",") + item;
  return out;
}

std::vector<std::string> SplitList(std::string_view text) {
  std::vector<std::string> items;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    if (comma > 0) items.emplace_back(text.substr(0, comma));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return items;
}

// One (key, values) per scalar or list of scalars of the file.
using Assignments = std::vector<std::pair<std::string, std::vector<std::string>>>;

absl::Status Flatten(const YAML::Node& node, const std::string& prefix, Assignments& out) {
  if (node.IsMap()) {
    for (const auto& item : node) {
      const std::string key = item.first.as<std::string>();
      RETURN_IF_ERROR(
          Flatten(item.second, prefix.empty() ? key : absl::StrFormat("%s.%s", prefix, key), out));
    }
    return absl::OkStatus();
  }
  std::vector<std::string> values;
  if (node.IsScalar()) values.push_back(node.as<std::string>());
  if (node.IsSequence()) {
    for (const auto& item : node) {
      if (!item.IsScalar())
        return absl::InvalidArgumentError(
            absl::StrFormat("%s: a list may hold plain values only", prefix));
      values.push_back(item.as<std::string>());
    }
  }
  if (prefix.empty()) {
    if (node.IsNull() || !node.IsDefined()) return absl::OkStatus();
    return absl::InvalidArgumentError("the file must be a map of keys");
  }
  out.emplace_back(prefix, std::move(values));
  return absl::OkStatus();
}

}  // namespace

void ConfigReader::Add(Entry entry) {
  for (const Entry& other : entries_) CHECK(other.key != entry.key);
  entry.initial = entry.print();
  entries_.push_back(std::move(entry));
}

template <typename T>
void ConfigReader::BindInteger(std::string_view key, T* field, T least, T most,
                               std::string_view help) {
  Add({.key = std::string(key),
       .limits = Limits(least, most),
       .help = std::string(help),
       .initial = {},
       .assign = [=](const auto& v) { return ParseNumber(v[0], least, most, *field); },
       .print = [=] { return std::to_string(*field); }});
}

void ConfigReader::Bind(std::string_view key, int* field, int least, int most,
                        std::string_view help) {
  BindInteger(key, field, least, most, help);
}

void ConfigReader::Bind(std::string_view key, int64_t* field, int64_t least, int64_t most,
                        std::string_view help) {
  BindInteger(key, field, least, most, help);
}

void ConfigReader::Bind(std::string_view key, uint64_t* field, uint64_t least, uint64_t most,
                        std::string_view help) {
  BindInteger(key, field, least, most, help);
}

void ConfigReader::Bind(std::string_view key, uint32_t* field, uint32_t least, uint32_t most,
                        std::string_view help) {
  BindInteger(key, field, least, most, help);
}

void ConfigReader::Bind(std::string_view key, double* field, double least, double most,
                        std::string_view help) {
  Add({.key = std::string(key),
       .limits = Limits(least, most),
       .help = std::string(help),
       .initial = {},
       .assign = [=](const auto& v) { return ParseNumber(v[0], least, most, *field); },
       .print = [=] { return absl::StrFormat("%g", *field); }});
}

void ConfigReader::Bind(std::string_view key, bool* field, std::string_view help) {
  Add({.key = std::string(key),
       .limits = "true, false",
       .help = std::string(help),
       .initial = {},
       .assign =
           [=](const auto& v) {
             if (v[0] != "true" && v[0] != "false")
               return absl::InvalidArgumentError(
                   absl::StrFormat("'%s' is neither true nor false", v[0]));
             *field = v[0] == "true";
             return absl::OkStatus();
           },
       .print = [=] { return std::string(*field ? "true" : "false"); }});
}

void ConfigReader::Bind(std::string_view key, std::string* field, std::string_view help) {
  Add({.key = std::string(key),
       .limits = "text",
       .help = std::string(help),
       .initial = {},
       .assign =
           [=](const auto& v) {
             *field = v[0];
             return absl::OkStatus();
           },
       .print = [=] { return *field; }});
}

void ConfigReader::BindChoice(std::string_view key, std::string* field,
                              const std::vector<std::string>& choices, std::string_view help) {
  const std::string limits = Join(choices);
  Add({.key = std::string(key),
       .limits = limits,
       .help = std::string(help),
       .initial = {},
       .assign =
           [=](const auto& v) {
             if (std::find(choices.begin(), choices.end(), v[0]) == choices.end())
               return absl::InvalidArgumentError(
                   absl::StrFormat("'%s' is none of %s", v[0], limits));
             *field = v[0];
             return absl::OkStatus();
           },
       .print = [=] { return *field; }});
}

void ConfigReader::Bind(std::string_view key, std::vector<std::string>* field,
                        std::string_view help) {
  Add({.key = std::string(key),
       .limits = "list",
       .help = std::string(help),
       .initial = {},
       .is_list = true,
       .assign =
           [=](const auto& v) {
             *field = v;
             return absl::OkStatus();
           },
       .print = [=] { return Join(*field); }});
}

void ConfigReader::BindMs(std::string_view key, absl::Duration* field, absl::Duration least,
                          absl::Duration most, std::string_view help) {
  CHECK(key.size() > 3 && key.substr(key.size() - 3) == "_ms");
  const int64_t low = absl::ToInt64Milliseconds(least);
  const int64_t high = absl::ToInt64Milliseconds(most);
  Add({.key = std::string(key),
       .limits = Limits(low, high),
       .help = std::string(help),
       .initial = {},
       .assign =
           [=](const auto& v) {
             int64_t ms = 0;
             RETURN_IF_ERROR(ParseNumber(v[0], low, high, ms));
             *field = absl::Milliseconds(ms);
             return absl::OkStatus();
           },
       .print = [=] { return std::to_string(absl::ToInt64Milliseconds(*field)); }});
}

absl::Status ConfigReader::Assign(const std::string& key, const std::vector<std::string>& values,
                                  const std::string& origin) {
  const auto entry =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  if (entry == entries_.end())
    return absl::InvalidArgumentError(absl::StrFormat("%s: unknown key %s", origin, key));
  if (!entry->is_list && values.size() != 1)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s wants one value, got %d", origin, key, values.size()));
  if (const absl::Status status = entry->assign(values); !status.ok())
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s: %s", origin, key, std::string(status.message())));
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadText(const std::string& yaml, const std::string& origin) {
  Assignments assignments;
  try {
    if (const absl::Status status = Flatten(YAML::Load(yaml), "", assignments); !status.ok())
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: %s", origin, std::string(status.message())));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", origin, error.what()));
  }
  for (const auto& [key, values] : assignments) RETURN_IF_ERROR(Assign(key, values, origin));
  return absl::OkStatus();
}

absl::Status ConfigReader::ReadFile(const std::string& path) {
  Assignments assignments;
  try {
    if (const absl::Status status = Flatten(YAML::LoadFile(path), "", assignments); !status.ok())
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: %s", path, std::string(status.message())));
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, error.what()));
  }
  for (const auto& [key, values] : assignments) RETURN_IF_ERROR(Assign(key, values, path));
  return absl::OkStatus();
}

absl::Status ConfigReader::Set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  if (equals == std::string_view::npos)
    return absl::InvalidArgumentError(absl::StrFormat("--set %s: want key=value", assignment));
  const std::string key(assignment.substr(0, equals));
  const std::string_view value = assignment.substr(equals + 1);
  const auto entry =
      std::find_if(entries_.begin(), entries_.end(), [&](const Entry& e) { return e.key == key; });
  const bool is_list = entry != entries_.end() && entry->is_list;
  return Assign(key, is_list ? SplitList(value) : std::vector<std::string>{std::string(value)},
                "--set");
}

std::string ConfigReader::Print() const {
  std::string out;
  for (const Entry& entry : entries_) out += entry.key + "=" + entry.print() + "\n";
  return out;
}

std::string ConfigReader::Reference() const {
  std::string out = "| key | default | limits | meaning |\n| --- | --- | --- | --- |\n";
  for (const Entry& entry : entries_)
    out += absl::StrFormat("| `%s` | `%s` | %s | %s |\n", entry.key, entry.initial, entry.limits,
                           entry.help);
  return out;
}

}  // namespace baton
