#include <cstddef>
#include <cstdint>
#include <string>

#include "common/check.h"
#include "engine/load/tensor_table.h"
#include "engine/model/config.h"
#include "router/model_facts.h"

// Any text, for a worker and for the router: refused with a reason, or a configuration whose layout
// and tensor table can be built. Models too large to list are only laid out.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr int kMaxListedExperts = 64;
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto facts = baton::router::ParseModelFacts(text, "fuzz");
  CHECK(!facts.ok() || (facts->max_context > 0 && facts->vocab_size > 0));
  const auto config = baton::engine::ParseModelConfig(text, "fuzz");
  if (!config.ok()) {
    CHECK(!config.status().message().empty());
    return 0;
  }
  const baton::kernels::PageLayout layout(
      baton::engine::LayoutShapeOf(*config, baton::kernels::NumericsMode::kOfficial));
  CHECK(layout.stride_bytes() >= layout.payload_bytes());
  CHECK(baton::kernels::MaxTailBytes(layout, 1) > 0);
  if (config->n_routed_experts > kMaxListedExperts) return 0;
  for (const auto& tensor : baton::engine::ExpectedTensors(*config)) {
    for (int64_t dimension : tensor.shape) CHECK(dimension > 0);
  }
  return 0;
}
