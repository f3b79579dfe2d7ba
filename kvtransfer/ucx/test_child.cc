#include "kvtransfer/ucx/test_child.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/check.h"

extern char** environ;

namespace baton::kvtransfer {

TestSender::TestSender(const std::string& address, const TestShape& shape, const std::string& mode,
                       const std::vector<std::string>& environment) {
  std::vector<std::string> arguments = {BATON_TEST_SENDER,
                                        address,
                                        std::to_string(kReceiverIncarnation),
                                        std::to_string(shape.num_pages),
                                        std::to_string(shape.page_bytes),
                                        std::to_string(shape.tail_bytes),
                                        mode};
  std::vector<char*> argv, envp;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  for (char** entry = environ; *entry != nullptr; ++entry) envp.push_back(*entry);
  for (const std::string& entry : environment) envp.push_back(const_cast<char*>(entry.data()));
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  CHECK(posix_spawn(&pid_, BATON_TEST_SENDER, nullptr, nullptr, argv.data(), envp.data()) == 0);
}

TestSender::~TestSender() {
  if (pid_ > 0) Kill();
}

void TestSender::Stop() {
  kill(pid_, SIGSTOP);
  int status = 0;
  waitpid(pid_, &status, WUNTRACED);
  CHECK(WIFSTOPPED(status));
}

void TestSender::Continue() { kill(pid_, SIGCONT); }

void TestSender::Kill() {
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

std::optional<int> TestSender::Exit() {
  int status = 0;
  if (waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

UcxConfig ReceiverConfig() {
  UcxConfig config;
  config.incarnation = Incarnation{kReceiverIncarnation};
  return config;
}

}  // namespace baton::kvtransfer
