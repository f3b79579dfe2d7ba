#pragma once

#include <string>

#include "absl/status/statusor.h"

#include "kernels/model_config.h"
#include "kernels/page_layout.h"
#include "kernels/tensor.h"

namespace baton::engine {

using kernels::ModelConfig;

// Parses config.json's text. Refuses V4.1 and unknown architectures by name, missing and wrong
// fields by name, value and limit; `path` is for the messages.
absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& json, const std::string& path);

// What a page of this model holds in that mode (contracts.md 3.1).
kernels::LayoutShape LayoutShapeOf(const ModelConfig& config, kernels::NumericsMode mode);

}  // namespace baton::engine
