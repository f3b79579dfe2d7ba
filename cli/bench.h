#pragma once

#include <cstdint>
#include <string>

#include "cli/bench_load.h"

namespace baton::cli {

struct BenchOptions {
  LoadOptions load;
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;
  std::string prompts_file;  // empty: random prompts
  std::string csv_file;      // the row is added to it; a new one gets its header
  std::string svg_file;
  std::string label;    // a column of the row
  int concurrency = 0;  // 0: as many as the rate brings
  int num_warmups = 1;  // requests before, which do not count
  int timeout_s = 600;
  uint64_t seed = 1;
};

// Loads any server with OpenAI's API and prints what it measured. Exit code: 0 when every request
// succeeded, 1 when one did not or Ctrl-C ended it, which still shows what there is.
int RunBench(const BenchOptions& options);

}  // namespace baton::cli
