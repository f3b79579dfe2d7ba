#pragma once

#include <string>

namespace baton::worker {

// Becomes baton-worker, the program in the same folder that holds all that both workers share
// (engine, kernels, transports), as the worker of `role` ("prefill" or "decode"): it is called
// baton-<role> and serves that role by default. Returns the exit code 1 if there is no such
// program.
int RunWorkerAs(const std::string& role, int argc, char** argv);

}  // namespace baton::worker
