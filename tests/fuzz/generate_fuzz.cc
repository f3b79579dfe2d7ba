#include <cstddef>
#include <cstdint>
#include <string_view>

#include "common/check.h"
#include "router/openai/generate_params.h"
#include "router/openai/sglang_request.h"
#include "router/text/test_data.h"

namespace baton::router {
namespace {

// Any bytes as a body of /generate: refused with 400, or translated into a completion's JSON, whose
// members are refused with 400 in the client's names, or taken.
int TranslateOne(const uint8_t* data, size_t size) {
  const auto body = JsonValue::Parse(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!body.ok() || !body->is_object()) return 0;
  const auto generate = TranslateGenerate(*body);
  if (!generate.ok()) {
    CHECK(generate.error().http_status == 400 && !generate.error().message.empty());
    return 0;
  }
  CHECK(generate->prompt != nullptr);
  const auto completion = JsonValue::Parse(generate->completion);
  CHECK(completion.ok() && completion->is_object());
  const auto params =
      ParseGenerateParams(*completion, CompletionKind::kText, RealTokenizer(), /*eos=*/1);
  if (params.ok()) {
    CHECK(params->max_tokens && *params->max_tokens >= 1);
    return 0;
  }
  const ApiError error = InGenerateNames(params.error(), generate->prompt_name);
  CHECK(error.http_status == 400);
  CHECK(error.param.starts_with("sampling_params.") || error.param == "priority");
  return 0;
}

}  // namespace
}  // namespace baton::router

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return baton::router::TranslateOne(data, size);
}
