#include "router/text/stop_strings.h"

#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

#include "common/rng.h"

namespace baton::router {
namespace {

struct Result {
  std::string text;
  std::string matched;
  bool operator==(const Result&) const = default;
};

std::ostream& operator<<(std::ostream& out, const Result& result) {
  return out << '"' << result.text << "\" matched \"" << result.matched << '"';
}

// Pushes `text` in pieces of at most `step` bytes.
Result Watch(const std::vector<std::string>& stops, bool include, std::string_view text,
             size_t step) {
  StopMatcher matcher(stops, include);
  Result result;
  for (size_t at = 0; at < text.size(); at += step)
    result.text += matcher.Push(text.substr(at, step));
  result.text += matcher.Finish();
  if (matcher.matched() != nullptr) result.matched = *matcher.matched();
  return result;
}

// The definition: the smallest end wins, then the longest.
Result Reference(const std::vector<std::string>& stops, bool include, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const std::string* best = nullptr;
    for (const std::string& stop : stops) {
      const bool ends_here = std::string_view(text).substr(0, end).ends_with(stop);
      if (ends_here && (best == nullptr || stop.size() > best->size())) best = &stop;
    }
    if (best != nullptr) return {text.substr(0, include ? end : end - best->size()), *best};
  }
  return {text, ""};
}

TEST(StopMatcher, AgreesWithTheDefinitionHoweverTheTextIsCut) {
  SeededRng rng(11);
  for (int round = 0; round < 300; ++round) {
    std::vector<std::string> stops;
    for (uint64_t i = 1 + rng.Below(4); i > 0; --i) {
      std::string stop;
      for (uint64_t left = 1 + rng.Below(5); left > 0; --left) stop += "ab"[rng.Below(2)];
      stops.push_back(stop);
    }
    std::string text;
    for (uint64_t left = rng.Below(30); left > 0; --left) text += "aabbc"[rng.Below(5)];
    const bool include = rng.Below(2) == 1;
    for (size_t step = 1; step < 6; ++step) {
      EXPECT_EQ(Watch(stops, include, text, step), Reference(stops, include, text)) << text;
    }
  }
}

TEST(StopMatcher, HoldsBackOnlyWhatCanStillMatch) {
  StopMatcher matcher({"STOP"}, false);
  EXPECT_EQ(matcher.Push("a ST"), "a ");
  EXPECT_EQ(matcher.held_bytes(), 2u);
  EXPECT_EQ(matcher.Push("S"), "ST");
  EXPECT_EQ(matcher.Push("TOP and more"), "");
  ASSERT_NE(matcher.matched(), nullptr);
  EXPECT_EQ(*matcher.matched(), "STOP");
  EXPECT_EQ(matcher.Push("ignored"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcher, KeepsTheMatchWhenAsked) {
  EXPECT_EQ(Watch({"\n\n"}, true, "x\n\ny", 1), (Result{"x\n\n", "\n\n"}));
  EXPECT_EQ(Watch({"\n\n"}, false, "x\n\ny", 1), (Result{"x", "\n\n"}));
}

TEST(StopMatcher, PassesEverythingWithoutStops) {
  EXPECT_EQ(Watch({}, false, "abc", 2), (Result{"abc", ""}));
}

TEST(StopMatcher, ReleasesTheHeldTailAtTheEnd) {
  EXPECT_EQ(Watch({"abc"}, false, "xab", 1), (Result{"xab", ""}));
}

}  // namespace
}  // namespace baton::router
