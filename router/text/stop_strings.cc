#include "router/text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "common/check.h"

namespace baton::router {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_match)
    : include_match_(include_match) {
  for (std::string& text : stops) {
    CHECK(!text.empty());
    std::vector<size_t> borders(text.size(), 0);
    for (size_t i = 1, k = 0; i < text.size(); ++i) {
      while (k > 0 && text[i] != text[k]) k = borders[k - 1];
      if (text[i] == text[k]) ++k;
      borders[i] = k;
    }
    stops_.push_back({.text = std::move(text), .borders = std::move(borders), .progress = 0});
  }
}

std::optional<size_t> StopMatcher::Advance(char byte) {
  std::optional<size_t> winner;
  for (size_t i = 0; i < stops_.size(); ++i) {
    Stop& stop = stops_[i];
    while (stop.progress > 0 && stop.text[stop.progress] != byte) {
      stop.progress = stop.borders[stop.progress - 1];
    }
    if (stop.text[stop.progress] == byte) ++stop.progress;
    if (stop.progress < stop.text.size()) continue;
    if (!winner || stop.text.size() > stops_[*winner].text.size()) winner = i;
  }
  return winner;
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return {};
  if (stops_.empty()) return std::string(text);
  for (size_t i = 0; i < text.size(); ++i) {
    matched_ = Advance(text[i]);
    if (!matched_) continue;
    held_ += text.substr(0, i + 1);
    if (!include_match_) held_.resize(held_.size() - stops_[*matched_].text.size());
    return std::exchange(held_, {});
  }
  held_ += text;
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.progress);
  std::string out = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return out;
}

std::string StopMatcher::Finish() { return std::exchange(held_, {}); }

}  // namespace baton::router
