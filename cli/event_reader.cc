#include "cli/event_reader.h"

namespace baton::cli {

void EventReader::Push(std::string_view piece, const OnData& on_data) {
  size_t begin = 0;
  for (size_t end = piece.find('\n'); end != std::string_view::npos;
       end = piece.find('\n', begin)) {
    rest_ += piece.substr(begin, end - begin);
    begin = end + 1;
    if (!rest_.empty() && rest_.back() == '\r') rest_.pop_back();
    Line(rest_, on_data);
    rest_.clear();
  }
  rest_ += piece.substr(begin);
}

void EventReader::Line(std::string_view line, const OnData& on_data) {
  constexpr std::string_view kField = "data:";
  if (line.empty()) {
    if (has_data_) on_data(data_);
    data_.clear();
    has_data_ = false;
    return;
  }
  if (line.substr(0, kField.size()) != kField) return;
  line.remove_prefix(kField.size());
  if (!line.empty() && line.front() == ' ') line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
}

}  // namespace baton::cli
