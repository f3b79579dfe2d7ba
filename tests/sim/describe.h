#pragma once

#include <string>

#include "proto/wire.h"

// One line per session message, for traces.
namespace baton::sim {

std::string Describe(const wire::RouterMessage& message);
// Empty for a message that only beats or tells its load.
std::string Describe(const wire::WorkerMessage& message);

}  // namespace baton::sim
