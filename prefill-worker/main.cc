#include "worker/hardware.h"
#include "worker/worker_main.h"

int main(int argc, char** argv) {
  return baton::worker::RunWorkerMain(
      {.name = "baton-prefill", .serve = {"prefill"}, .backend = baton::worker::BuiltInBackend()},
      argc, argv);
}
