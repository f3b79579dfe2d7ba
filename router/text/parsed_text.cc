#include "router/text/parsed_text.h"

#include <ostream>

#include "common/check.h"
#include "router/text/markup_scanner.h"

namespace baton::router {
namespace {

// Everything one run leaves behind.
struct Run {
  explicit Run(const TextToParse& in) : calls(in.tools == nullptr ? kNoTools : *in.tools, 0) {}

  static const ToolSchemas kNoTools;
  ToolCallParser calls;
  std::vector<OutputDelta> deltas;
};
const ToolSchemas Run::kNoTools;

void Parse(const TextToParse& in, std::span<const size_t> cuts, Run& run) {
  MarkupScanner scanner;
  ReasoningParser parser(in.starts_in_reasoning, in.tools == nullptr ? nullptr : &run.calls);
  const auto pass_on = [&](const std::vector<MarkupScanner::Piece>& pieces) {
    for (const auto& piece : pieces) {
      // Each piece on its own, so that nothing depends on what came before in the same batch.
      std::vector<OutputDelta> out;
      parser.Push({.text = piece.text, .markup = piece.markup}, out);
      run.deltas.insert(run.deltas.end(), out.begin(), out.end());
    }
  };
  size_t begin = 0;
  for (const size_t cut : cuts) {
    pass_on(scanner.Push(in.text.substr(begin, cut - begin)));
    begin = cut;
  }
  pass_on(scanner.Push(in.text.substr(begin)));
  pass_on(scanner.Finish());
  parser.Finish(run.deltas);
}

// Reasoning, content and opened calls of the deltas; checks that they can be streamed.
ParsedText AddUp(const std::vector<OutputDelta>& deltas) {
  ParsedText out;
  for (const OutputDelta& delta : deltas) {
    switch (delta.field) {
      case OutputField::kReasoning:
        out.reasoning += delta.text;
        break;
      case OutputField::kContent:
        out.content += delta.text;
        break;
      case OutputField::kCallName:
        CHECK(delta.call == static_cast<int>(out.calls.size()));
        out.calls.push_back({.name = delta.text, .arguments = {}});
        break;
      case OutputField::kCallArguments:
        CHECK(delta.call + 1 == static_cast<int>(out.calls.size()));
        CHECK(!out.calls.back().is_complete);
        out.calls.back().arguments += delta.text;
        break;
      case OutputField::kCallEnd:
        CHECK(delta.call + 1 == static_cast<int>(out.calls.size()));
        out.calls.back().is_complete = true;
        break;
    }
  }
  return out;
}

}  // namespace

std::ostream& operator<<(std::ostream& out, const ParsedText& parsed) {
  out << "reasoning \"" << parsed.reasoning << "\" content \"" << parsed.content << '"';
  for (const ParsedCall& call : parsed.calls) {
    out << (call.is_complete ? " call " : " open call ") << call.name << ' ' << call.arguments;
  }
  return out << " finish " << parsed.finish_reason;
}

ParsedText ParseTextStreamed(const TextToParse& in, std::span<const size_t> cuts) {
  Run run(in);
  Parse(in, cuts, run);
  ParsedText out = AddUp(run.deltas);
  out.finish_reason =
      run.calls.num_complete() > 0 && in.finish == "stop" ? "tool_calls" : in.finish;
  return out;
}

ParsedText ParseText(const TextToParse& in, std::span<const size_t> cuts) {
  Run run(in);
  Parse(in, cuts, run);
  ParsedText out = AddUp(run.deltas);
  CHECK(out.calls == run.calls.calls());
  std::erase_if(out.calls, [](const ParsedCall& call) { return !call.is_complete; });
  if (in.tools != nullptr) out.content += run.calls.fallback_text();
  out.finish_reason = !out.calls.empty() && in.finish == "stop" ? "tool_calls" : in.finish;
  return out;
}

ToolSchemas SchemasOf(const JsonValue* tools) {
  ToolSchemas schemas;
  if (tools == nullptr) return schemas;
  for (const JsonValue& tool : tools->items()) {
    if (const JsonValue* function = tool.Find("function")) schemas.Add(*function);
  }
  return schemas;
}

}  // namespace baton::router
