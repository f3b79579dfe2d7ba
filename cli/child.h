#pragma once

#include <set>
#include <string>
#include <sys/types.h>
#include <vector>

#include "absl/status/statusor.h"

namespace baton::cli {

// One program started by `baton up`; its output goes to a file of its own. Dies with us.
class Child {
 public:
  struct Spec {
    std::string name;  // router, prefill-0, ...
    std::string role;  // router, prefill, decode
    std::string program;
    std::vector<std::string> arguments;
    std::string log_path;
  };
  // Errors name the program.
  static absl::StatusOr<Child> Start(Spec spec);

  const std::string& name() const { return spec_.name; }
  const std::string& role() const { return spec_.role; }
  const std::string& log_path() const { return spec_.log_path; }
  pid_t pid() const { return pid_; }
  bool is_running() const { return is_running_; }
  // Looks whether it has ended; true once, when it just did.
  bool Reap();
  // "exited with 1", "was killed by signal 9".
  std::string HowItEnded() const;
  void Signal(int number) const;
  // The end of its log, without the lines of its configuration.
  std::string LogTail(int num_lines) const;

 private:
  explicit Child(Spec spec) : spec_(std::move(spec)) {}
  Spec spec_;
  pid_t pid_ = -1;
  bool is_running_ = false;
  int wait_status_ = 0;
};

// kUnavailable naming the address if it cannot be listened on.
absl::Status CheckPortIsFree(const std::string& host, int port);
// A TCP port of 127.0.0.1 that nobody listens on now, no client is given and is not in `given`,
// which it joins: what gets it listens later.
absl::StatusOr<int> FreePort(std::set<int>& given);

}  // namespace baton::cli
