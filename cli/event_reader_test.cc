#include "cli/event_reader.h"

#include <gtest/gtest.h>
#include <vector>

namespace baton::cli {
namespace {

using Events = std::vector<std::string>;

Events Read(const std::string& text, size_t piece) {
  Events out;
  EventReader reader;
  for (size_t i = 0; i < text.size(); i += piece)
    reader.Push(std::string_view(text).substr(i, piece),
                [&](std::string_view data) { out.emplace_back(data); });
  return out;
}

TEST(EventReader, GivesTheSameEventsHoweverTheTextIsCut) {
  const std::string text =
      ": ping\n\nevent: x\r\ndata: {\"a\":1}\r\n\r\ndata:no space\ndata: second\n\n"
      "id: 7\n\ndata:\n\ndata: [DONE]\n\ndata: unfinished\n";
  const Events want = {"{\"a\":1}", "no space\nsecond", "", "[DONE]"};
  for (size_t piece = 1; piece <= text.size(); ++piece) EXPECT_EQ(Read(text, piece), want) << piece;
}

}  // namespace
}  // namespace baton::cli
