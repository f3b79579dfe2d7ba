#pragma once

#include <optional>
#include <string>
#include <sys/types.h>
#include <vector>

#include "kvtransfer/ucx/test_node.h"

namespace baton::kvtransfer {

inline constexpr uint64_t kReceiverIncarnation = 42;

// A process of test_sender that offers a transfer to `address`, killed and reaped at the end
// whatever happened. `environment`: NAME=VALUE, added to the caller's.
class TestSender {
 public:
  TestSender(const std::string& address, const TestShape& shape, const std::string& mode,
             const std::vector<std::string>& environment = {});
  ~TestSender();
  TestSender(const TestSender&) = delete;
  TestSender& operator=(const TestSender&) = delete;

  void Stop();
  void Continue();
  void Kill();
  // The exit status (-1: a signal), once it has ended.
  std::optional<int> Exit();

 private:
  pid_t pid_ = -1;
};

// What a receiving TestNode of these tests is configured with.
UcxConfig ReceiverConfig();

}  // namespace baton::kvtransfer
