#include "worker/launch.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace baton::worker {
namespace {

// A program in the place of baton-worker, beside this test: it says how it was called.
class StandIn {
 public:
  StandIn()
      : path_(std::filesystem::read_symlink("/proc/self/exe").replace_filename("baton-worker")) {
    std::ofstream(path_) << "#!/bin/sh\n"
                            "echo \"$*\" UCX_MEMTYPE_CACHE=$UCX_MEMTYPE_CACHE\n"
                            "exit 7\n";
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all);
  }
  ~StandIn() { std::filesystem::remove(path_); }

 private:
  const std::filesystem::path path_;
};

struct Outcome {
  std::string output;
  int code = 0;
};

Outcome Launch(const std::string& role, std::string argument) {
  int ends[2];
  EXPECT_EQ(pipe(ends), 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    std::string name = "any";
    char* argv[] = {name.data(), argument.data(), nullptr};
    _exit(RunWorkerAs(role, 2, argv));
  }
  close(ends[1]);
  Outcome outcome;
  char buffer[256];
  for (ssize_t n = 0; (n = read(ends[0], buffer, sizeof(buffer))) > 0;)
    outcome.output.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  outcome.code = WEXITSTATUS(status);
  return outcome;
}

TEST(RunWorkerAs, BecomesTheWorkerOfTheRole) {
  unsetenv("UCX_MEMTYPE_CACHE");
  const StandIn stand_in;
  const Outcome outcome = Launch("decode", "--set=a=b");
  EXPECT_EQ(outcome.output, "--as=decode --set=a=b UCX_MEMTYPE_CACHE=n\n");
  EXPECT_EQ(outcome.code, 7);
}

TEST(RunWorkerAs, KeepsWhatTheEnvironmentSaysOfUcx) {
  setenv("UCX_MEMTYPE_CACHE", "try", 1);
  const StandIn stand_in;
  EXPECT_EQ(Launch("prefill", "--help").output, "--as=prefill --help UCX_MEMTYPE_CACHE=try\n");
}

TEST(RunWorkerAs, FailsWithoutTheProgram) { EXPECT_EQ(Launch("prefill", "--help").code, 1); }

}  // namespace
}  // namespace baton::worker
