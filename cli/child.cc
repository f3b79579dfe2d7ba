#include "cli/child.h"

#include <arpa/inet.h>
#include <cerrno>
#include <cstring>
#include <deque>
#include <fcntl.h>
#include <fstream>
#include <netinet/in.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_format.h"

#include "common/rng.h"

namespace baton::cli {
namespace {

// In the child, between fork and exec: only calls that are safe there.
[[noreturn]] void Become(const char* program, char* const* arguments, int log, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127);  // the parent ended before the line above
  setpgid(0, 0);  // Ctrl-C goes to the parent alone, which stops its children in order
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  dup2(log, STDOUT_FILENO);
  dup2(log, STDERR_FILENO);
  execv(program, arguments);
  _exit(127);
}

}  // namespace

absl::StatusOr<Child> Child::Start(Spec spec) {
  Child child(std::move(spec));
  const std::string& program = child.spec_.program;
  if (access(program.c_str(), X_OK) != 0)
    return absl::NotFoundError(absl::StrFormat("%s: %s", program, strerror(errno)));
  const int log = open(child.log_path().c_str(), O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
  if (log < 0)
    return absl::UnavailableError(absl::StrFormat("%s: %s", child.log_path(), strerror(errno)));
  std::vector<char*> arguments = {const_cast<char*>(program.c_str())};
  for (const std::string& argument : child.spec_.arguments)
    arguments.push_back(const_cast<char*>(argument.c_str()));
  arguments.push_back(nullptr);
  const pid_t parent = getpid();
  child.pid_ = fork();
  if (child.pid_ == 0) Become(program.c_str(), arguments.data(), log, parent);
  const int error = errno;
  close(log);
  if (child.pid_ < 0)
    return absl::UnavailableError(absl::StrFormat("%s: fork: %s", program, strerror(error)));
  child.is_running_ = true;
  return child;
}

bool Child::Reap() {
  if (!is_running_ || waitpid(pid_, &wait_status_, WNOHANG) != pid_) return false;
  is_running_ = false;
  return true;
}

std::string Child::HowItEnded() const {
  if (WIFSIGNALED(wait_status_))
    return absl::StrFormat("was killed by signal %d", WTERMSIG(wait_status_));
  return absl::StrFormat("exited with %d", WEXITSTATUS(wait_status_));
}

void Child::Signal(int number) const {
  if (is_running_) kill(pid_, number);
}

std::string Child::LogTail(int num_lines) const {
  std::ifstream file(log_path());
  std::deque<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (line.find(" config ") != std::string::npos) continue;  // the effective configuration
    lines.push_back(line);
    if (static_cast<int>(lines.size()) > num_lines) lines.pop_front();
  }
  std::string out;
  for (const std::string& line : lines) out += "  " + line + "\n";
  return out;
}

absl::Status CheckPortIsFree(const std::string& host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1)
    return absl::OkStatus();  // the router judges other forms itself
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrFormat("socket: %s", strerror(errno)));
  const int on = 1;  // as the router does: what waits for its last packets is no listener
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const bool is_free =
      bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 && listen(fd, 1) == 0;
  const int error = errno;
  close(fd);
  if (is_free) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrFormat("port %d of %s is taken: %s", port, host, strerror(error)));
}

absl::StatusOr<int> FreePort(std::set<int>& given) {
  // Below the ports that the system gives to clients: one of those would be taken by any connection
  // between now and the listening, and connecting to it may meet itself.
  constexpr int kFirst = 10240, kTries = 100;
  int end = 32768;
  std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> end;
  if (end <= kFirst) end = 32768;
  SystemRng rng;
  for (int i = 0; i < kTries; ++i) {
    const int port = kFirst + static_cast<int>(rng.Next() % static_cast<uint64_t>(end - kFirst));
    if (CheckPortIsFree("127.0.0.1", port).ok() && given.insert(port).second) return port;
  }
  return absl::UnavailableError(
      absl::StrFormat("no free port in %d tries of %d..%d", kTries, kFirst, end - 1));
}

}  // namespace baton::cli
