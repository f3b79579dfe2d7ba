#pragma once

#include <string>
#include <vector>

namespace baton::cli {

struct UpOptions {
  int num_prefill = 1;
  int num_decode = 1;
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any
  std::string model = "models/demo";
  std::vector<std::string> settings;  // router.KEY=VALUE, prefill.KEY=VALUE, decode.KEY=VALUE
  std::string log_folder;             // empty: a new one under the temporary folder
  std::string state_file;  // where pids and ports are written when all is ready; empty: nowhere
};

// Starts a cluster on this machine as separate processes and watches it until SIGINT or SIGTERM.
// Exit code: 0 when it was stopped, 1 when it could not start or lost its router or the last worker
// of a kind; the log's end is then printed.
int RunUp(const UpOptions& options, const std::string& program_folder);

}  // namespace baton::cli
