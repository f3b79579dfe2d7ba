#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/check.h"
#include "router/text/parsed_text.h"

namespace baton::router {
namespace {

// The first bytes choose how the rest, a model's output, is cut and read.
constexpr size_t kNumCuts = 6;
constexpr size_t kHeadBytes = 1 + kNumCuts;

ToolSchemas MakeSchemas() {
  ToolSchemas schemas;
  schemas.Add(*JsonValue::Parse(
      R"({"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}})"));
  return schemas;
}

// Any bytes as an output: the result does not depend on the cuts, complete calls have JSON
// arguments, and no text is invented.
int ParseOne(const uint8_t* data, size_t size) {
  static const ToolSchemas schemas = MakeSchemas();
  if (size < kHeadBytes) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + kHeadBytes, size - kHeadBytes);
  const TextToParse in = {.text = text,
                          .starts_in_reasoning = (data[0] & 1) != 0,
                          .tools = (data[0] & 2) != 0 ? nullptr : &schemas,
                          .finish = (data[0] & 4) != 0 ? "length" : "stop"};
  std::vector<size_t> cuts;
  for (size_t i = 0; i < kNumCuts; ++i) cuts.push_back(data[1 + i] * text.size() / 255);
  std::sort(cuts.begin(), cuts.end());
  const ParsedText whole = ParseText(in, {});
  CHECK(ParseText(in, cuts) == whole);
  CHECK(ParseTextStreamed(in, cuts) == ParseTextStreamed(in, {}));
  CHECK(whole.reasoning.size() + whole.content.size() <= text.size());
  for (const ParsedCall& call : whole.calls) {
    // Bytes of a JSON text are checked as UTF-8, which the output of a tokenizer always is.
    const auto parsed = JsonValue::Parse(call.arguments);
    CHECK(!call.arguments.empty() && call.arguments.front() == '{');
    CHECK(!parsed.ok() || parsed->is_object());
  }
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::ParseOne(data, size);
}
