#pragma once

#include <string>
#include <vector>

#include "worker/backend.h"

namespace baton::worker {

struct ProgramFacts {
  std::string name;                // baton-prefill, baton-decode
  std::vector<std::string> serve;  // by default
  Backend backend;
};

// The whole life of a worker program: arguments, start, signals, drain. Exit codes: 0 ended as
// asked, 1 could not start or failed, 2 wrong arguments.
int RunWorkerMain(const ProgramFacts& program, int argc, char** argv);

}  // namespace baton::worker
