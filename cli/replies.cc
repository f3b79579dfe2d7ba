#include "cli/replies.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_format.h"
#include <nlohmann/json.hpp>

namespace baton::cli {
namespace {

using nlohmann::json;
using Rows = std::vector<std::vector<std::string>>;

json Parsed(std::string_view text) {
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

// The member, or null.
const json& Member(const json& object, const char* key) {
  static const json kNull;
  const auto found = object.is_object() ? object.find(key) : object.end();
  return object.is_object() && found != object.end() ? *found : kNull;
}

const json& First(const json& list) {
  static const json kNull;
  return list.is_array() && !list.empty() ? list.front() : kNull;
}

std::string Text(const json& object, const char* key) {
  const json& value = Member(object, key);
  return value.is_string() ? value.get<std::string>() : std::string();
}

int64_t Count(const json& object, const char* key) {
  const json& value = Member(object, key);
  return value.is_number_integer() ? value.get<int64_t>() : 0;
}

bool IsTrue(const json& object, const char* key) {
  const json& value = Member(object, key);
  return value.is_boolean() && value.get<bool>();
}

// A scalar as it is shown.
std::string Shown(const json& object, const char* key) {
  const json& value = Member(object, key);
  if (value.is_string()) return value.get<std::string>();
  return value.is_number() || value.is_boolean() ? value.dump() : "-";
}

std::string Table(const Rows& rows) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string out;
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      out += row[i];
      if (i + 1 < row.size()) out.append(widths[i] + 2 - row[i].size(), ' ');
    }
    out += '\n';
  }
  return out;
}

std::string Serves(const json& worker) {
  std::string serves;
  if (IsTrue(worker, "serves_prefill")) serves = "prefill";
  if (IsTrue(worker, "serves_decode")) serves += serves.empty() ? "decode" : ",decode";
  return serves;
}

}  // namespace

AnswerEvent ReadAnswerEvent(std::string_view data) {
  const json event = Parsed(data);
  AnswerEvent out;
  if (const json& error = Member(event, "error"); !error.is_null()) {
    out.error = error.is_string() ? error.get<std::string>() : Text(error, "message");
    if (out.error.empty()) out.error = "the server reported an error";
  }
  const json& delta = Member(First(Member(event, "choices")), "delta");
  out.reasoning = Text(delta, "reasoning_content");
  out.content = Text(delta, "content");
  return out;
}

std::string ErrorMessageOf(std::string_view body) {
  const json root = Parsed(body);
  const std::string message = Text(Member(root, "error"), "message");
  return message.empty() ? Text(root, "message") : message;
}

std::string FirstModelOf(std::string_view body) {
  return Text(First(Member(Parsed(body), "data")), "id");
}

ReadyWorkers ReadyWorkersOf(std::string_view body) {
  const json view = Parsed(body);
  return {.prefill = Count(view, "prefill_ready"), .decode = Count(view, "decode_ready")};
}

std::optional<std::string> ClusterTable(std::string_view body) {
  const json view = Parsed(body);
  const json& workers = Member(view, "workers");
  if (!workers.is_array()) return std::nullopt;
  Rows rows = {{"worker", "address", "state", "serves", "pages", "free", "leased", "cached",
                "running", "waiting", "queued prompt tokens"}};
  for (const json& worker : workers)
    rows.push_back({Shown(worker, "name"), Shown(worker, "address"), Shown(worker, "state"),
                    Serves(worker), Shown(worker, "pages"), Shown(worker, "free_pages"),
                    Shown(worker, "leased_pages"), Shown(worker, "cached_pages"),
                    Shown(worker, "running"), Shown(worker, "waiting"),
                    Shown(worker, "queued_prompt_tokens")});
  return absl::StrFormat("ready: %s    in flight: %s    queued: %s\n\n%s", Shown(view, "ready"),
                         Shown(view, "in_flight"), Shown(view, "queued"), Table(rows));
}

std::string MetricsTable(std::string_view metrics) {
  Rows rows = {{"metric", "value"}};
  for (size_t begin = 0; begin < metrics.size();) {
    const size_t end = std::min(metrics.find('\n', begin), metrics.size());
    const std::string_view line = metrics.substr(begin, end - begin);
    begin = end + 1;
    const size_t space = line.rfind(' ');
    if (line.empty() || line[0] == '#' || space == std::string_view::npos ||
        line.find("_bucket{") != std::string_view::npos)
      continue;
    rows.push_back({std::string(line.substr(0, space)), std::string(line.substr(space + 1))});
  }
  return Table(rows);
}

}  // namespace baton::cli
