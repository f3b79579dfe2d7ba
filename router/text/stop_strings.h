#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace baton::router {

// Watches the raw output text, reasoning included, for stop strings (protocol.md 1.7, 5.4). The
// match that completes first wins; of several that complete at the same byte, the longest. Linear
// in the text. One per choice, one thread.
class StopMatcher {
 public:
  // `stops` hold no empty string (the request was refused). With `include_match` the matched text
  // stays in the output.
  StopMatcher(std::vector<std::string> stops, bool include_match);

  // Text that can no longer become part of a stop string. After a match: the text before it (and
  // the match, if included); what followed it is dropped, and so is every later push.
  std::string Push(std::string_view text);
  // What is still held; call at the end of the output.
  std::string Finish();

  // The stop string that matched; null while none did. Valid as long as this object.
  const std::string* matched() const { return matched_ ? &stops_[*matched_].text : nullptr; }
  size_t held_bytes() const { return held_.size(); }

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> borders;  // Knuth-Morris-Pratt: longest border of each prefix
    size_t progress = 0;          // bytes of `text` that end the input so far
  };
  // Advances all automata by one byte; the index of the winner if one or more completed.
  std::optional<size_t> Advance(char byte);

  std::vector<Stop> stops_;
  const bool include_match_;
  std::string held_;
  std::optional<size_t> matched_;
};

}  // namespace baton::router
