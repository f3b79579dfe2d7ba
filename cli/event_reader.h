#pragma once

#include <functional>
#include <string>
#include <string_view>

namespace baton::cli {

// Cuts a stream of server-sent events into their data. Comments and other fields are skipped,
// several data lines of one event are joined by a line feed; lines end with LF or CR LF.
class EventReader {
 public:
  using OnData = std::function<void(std::string_view)>;
  void Push(std::string_view piece, const OnData& on_data);

 private:
  void Line(std::string_view line, const OnData& on_data);

  std::string rest_;  // a line that has not ended
  std::string data_;  // of the event so far
  bool has_data_ = false;
};

}  // namespace baton::cli
