#include "cli/bench.h"

#include <gtest/gtest.h>

namespace baton::cli {
namespace {

// What it says before it asks any server.
std::string Refusal(BenchOptions options) {
  options.load.model = "m";
  options.url = "http://127.0.0.1:1";
  testing::internal::CaptureStderr();
  EXPECT_EQ(RunBench(options), 1);
  return testing::internal::GetCapturedStderr();
}

TEST(RunBench, RefusesPromptsThatItCannotRead) {
  BenchOptions options;
  options.prompts_file = "/proc";
  EXPECT_EQ(Refusal(options), "baton bench: /proc cannot be read\n");
  options.prompts_file = "/nowhere/prompts.jsonl";
  EXPECT_EQ(Refusal(options), "baton bench: /nowhere/prompts.jsonl cannot be read\n");
  options.prompts_file = "/dev/null";
  EXPECT_EQ(Refusal(options), "baton bench: /dev/null: it has no prompts\n");
}

TEST(RunBench, RefusesFilesThatItCannotWriteBeforeTheLoad) {
  BenchOptions options;
  options.csv_file = "/nowhere/rows.csv";
  EXPECT_EQ(Refusal(options), "baton bench: /nowhere/rows.csv cannot be written\n");
  options = {};
  options.svg_file = "/nowhere/plot.svg";
  EXPECT_EQ(Refusal(options), "baton bench: /nowhere/plot.svg cannot be written\n");
}

}  // namespace
}  // namespace baton::cli
