#pragma once

#include <string>

namespace baton::cli {

// Shows what `target` is: a checkpoint's folder (by way of baton-decode --inspect), or the URL of a
// router or of a worker's metrics port. Exit code 0, or 1 when it could not be read.
int RunInspect(const std::string& target, const std::string& program_folder);

}  // namespace baton::cli
