#include <cstdio>
#include <string>

#include "worker/hardware.h"
#include "worker/worker_main.h"

// The program behind baton-prefill and baton-decode, which pass --as=ROLE before all else
// (launch.h).
int main(int argc, char** argv) {
  const std::string first = argc > 1 ? argv[1] : "";
  const std::string role = first.substr(0, 5) == "--as=" ? first.substr(5) : "";
  if (role != "prefill" && role != "decode") {
    std::fprintf(stderr, "baton-worker is run by baton-prefill and baton-decode\n");
    return 2;
  }
  return baton::worker::RunWorkerMain(
      {.name = "baton-" + role, .serve = {role}, .backend = baton::worker::BuiltInBackend()},
      argc - 1, argv + 1);
}
