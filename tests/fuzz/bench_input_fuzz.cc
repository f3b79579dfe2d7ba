#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cli/bench_load.h"
#include "cli/event_reader.h"

#include "common/check.h"
#include "common/rng.h"

namespace baton::cli {
namespace {

std::vector<std::string> EventsOf(std::string_view text, size_t piece) {
  std::vector<std::string> out;
  EventReader reader;
  for (size_t i = 0; i < text.size(); i += piece)
    reader.Push(text.substr(i, piece), [&](std::string_view data) { out.emplace_back(data); });
  return out;
}

// Any bytes as a file of prompts: refused with a reason, or every prompt can be sent. Any bytes as
// a stream: its events do not depend on the cuts.
void ReadOne(std::string_view text) {
  const auto prompts = ReadPrompts(text);
  CHECK(prompts.ok() || !prompts.status().message().empty());
  if (prompts.ok()) {
    LoadOptions options;
    options.num_prompts = 3;
    SeededRng rng(1);
    const auto load = PlanLoad(options, *prompts, rng);
    CHECK(load.ok() && load->size() == 3);
  }
  CHECK(EventsOf(text, 3) == EventsOf(text, text.size() + 1));
}

}  // namespace
}  // namespace baton::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::cli::ReadOne({reinterpret_cast<const char*>(data), size});
  return 0;
}
