#pragma once

#include <span>
#include <string>

#include "absl/status/statusor.h"

#include "common/ids.h"
#include "engine/load/checkpoint.h"

namespace baton::engine {

// The id of a checkpoint's weights (contracts.md 1.1): reads every byte of every tensor. `tensors`
// ascending by name.
WeightsId WeightsIdOf(std::span<const HostTensor* const> tensors);

// The same, kept in `<cache_folder>/<key>.weights_id`; the key covers each file's path, size and
// modification time, so a changed file is read again. A cache that cannot be written costs the next
// start its time, not this one its id.
absl::StatusOr<WeightsId> CachedWeightsId(std::span<const HostTensor* const> tensors,
                                          std::span<const std::string> files,
                                          const std::string& cache_folder);

}  // namespace baton::engine
