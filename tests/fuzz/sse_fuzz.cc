#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/bench_client.h"
#include "cli/event_reader.h"
#include "cli/replies.h"

#include "common/check.h"

namespace baton::cli {
namespace {

using Events = std::vector<std::string>;

Events EventsOf(std::string_view text, size_t piece) {
  Events out;
  EventReader reader;
  for (size_t i = 0; i < text.size(); i += piece)
    reader.Push(text.substr(i, piece), [&](std::string_view data) { out.emplace_back(data); });
  return out;
}

// The same, line by line over the whole text.
Events ExpectedEvents(std::string_view text) {
  Events out;
  std::string data;
  bool has_data = false;
  for (size_t end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) {
      if (has_data) out.push_back(data);
      data.clear();
      has_data = false;
    } else if (line.starts_with("data:")) {
      line.remove_prefix(line.starts_with("data: ") ? 6 : 5);
      data += (has_data ? "\n" : "") + std::string(line);
      has_data = true;
    }
  }
  return out;
}

// The stream's timing and counts, whatever its data are.
void Record(const Events& events) {
  RequestRecord record;
  const absl::Time sent = absl::UnixEpoch();
  absl::Time now = sent;
  StreamRecorder recorder(sent, record);
  for (const std::string& data : events) recorder.OnData(data, now += absl::Milliseconds(1));
  recorder.Finish();
  const auto chunks = static_cast<size_t>(recorder.chunks());
  CHECK(chunks <= events.size());
  CHECK(record.gaps_ms.size() == (chunks == 0 ? 0 : chunks - 1));
  CHECK(record.first_token <= record.total && record.total <= now - sent);
  CHECK(chunks > 0 || !record.error.empty());
}

// Any bytes as what a server streams or answers, cut by the first byte: the events do not depend
// on the cuts, and every datum is read or left.
void ReadOne(size_t piece, std::string_view text) {
  const Events events = EventsOf(text, piece);
  CHECK(events == ExpectedEvents(text));
  Record(events);
  for (const std::string& data : events) {
    const AnswerEvent event = ReadAnswerEvent(data);
    CHECK(event.content.size() + event.reasoning.size() <= data.size());
  }
  CHECK(ErrorMessageOf(text).size() <= text.size());
  CHECK(FirstModelOf(text).size() <= text.size());
  (void)ReadyWorkersOf(text);
  const auto table = ClusterTable(text);
  CHECK(!table || table->starts_with("ready: "));
  CHECK(MetricsTable(text).starts_with("metric"));
}

}  // namespace
}  // namespace baton::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  baton::cli::ReadOne(size_t{1} + data[0], {reinterpret_cast<const char*>(data) + 1, size - 1});
  return 0;
}
