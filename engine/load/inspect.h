#pragma once

#include <string>
#include <string_view>

#include "engine/load/checkpoint.h"

namespace baton::engine {

// What a tensor counts as in the report: the categories of model.md 9.4.
std::string_view CategoryOf(std::string_view tensor_name);

// A report for people: configuration, tensors, bytes by category and dtype, ids (weights, layout,
// class) of the CPU back end. Reads every byte unless `cache_folder` knows the weights id
// (Checkpoint::ComputeWeightsId).
std::string InspectCheckpoint(const Checkpoint& checkpoint, const std::string& cache_folder = "");

}  // namespace baton::engine
