#pragma once

#include "worker/backend.h"

namespace baton::worker {

// What this build has: the back ends (cuda before cpu, where it was built in) and UCX.
Backend BuiltInBackend();

}  // namespace baton::worker
