// The sending process of quarantine_test and socket_faults_test: offers every block of a fixed
// transfer to the address it is given. usage: test_sender ADDRESS INCARNATION PAGES PAGE_BYTES
// TAIL_BYTES pull|eager Exit status: 0 all acked, 3 the send failed, 4 neither within a minute.
#include <cstdio>
#include <cstdlib>
#include <signal.h>
#include <string>
#include <sys/prctl.h>

#include "kvtransfer/ucx/test_node.h"

namespace baton::kvtransfer {
namespace {

int Send(char** argv) {
  const TestShape shape{.num_pages = static_cast<uint32_t>(std::atoi(argv[3])),
                        .page_bytes = static_cast<uint64_t>(std::atoll(argv[4])),
                        .tail_bytes = static_cast<uint64_t>(std::atoll(argv[5]))};
  UcxConfig config;
  config.incarnation = Incarnation{7};
  config.can_pull_hosts = std::string(argv[6]) == "pull";
  TestNode node(shape, config, TransferLimits::Dev());
  node.OpenSendTo(argv[1], Incarnation{static_cast<uint64_t>(std::atoll(argv[2]))});
  node.OfferAll();
  const size_t all = shape.num_pages + size_t{1};
  const auto is_over = [&] {
    return node.Count<BlockAcked>() == all || node.Count<SendFailed>() > 0;
  };
  if (!node.RunUntil(is_over, absl::Minutes(1))) return 4;
  node.agent().Execute(CloseSend{TestTransfer()});
  if (!node.RunUntil([&] { return node.Count<SendReleased>() > 0; }, absl::Minutes(1))) return 4;
  return node.Count<BlockAcked>() == all ? 0 : 3;
}

}  // namespace
}  // namespace baton::kvtransfer

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // a stopped helper must not outlive its test
  if (argc != 7) {
    std::fprintf(stderr, "test_sender: %d arguments, 6 expected\n", argc - 1);
    return 2;
  }
  return baton::kvtransfer::Send(argv);
}
