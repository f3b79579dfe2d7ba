#include <cstddef>
#include <cstdint>
#include <string_view>

#include "cli/bench_load.h"
#include "cli/http_client.h"

#include "common/check.h"
#include "common/rng.h"

namespace baton::cli {
namespace {

// Any bytes as a file of prompts, as --extra-body or as a URL: refused with a reason, or every
// prompt can be sent.
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
  LoadOptions options;
  options.num_prompts = 1;
  options.extra_body = text;
  SeededRng rng(1);
  const auto load = PlanLoad(options, {}, rng);
  CHECK(load.ok() ? load->size() == 1 : !load.status().message().empty());
  const auto url = ParseUrl(text);
  CHECK(!url.ok() || (!url->host.empty() && !url->port.empty()));
}

}  // namespace
}  // namespace baton::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  baton::cli::ReadOne({reinterpret_cast<const char*>(data), size});
  return 0;
}
