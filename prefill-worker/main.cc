#include "worker/launch.h"

int main(int argc, char** argv) { return baton::worker::RunWorkerAs("prefill", argc, argv); }
