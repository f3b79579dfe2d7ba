#include <memory>
#include <utility>

#include "common/clock.h"
#include "common/status.h"
#include "kernels/cpu/cpu_ops.h"
#include "kvtransfer/ucx/self_test.h"
#include "kvtransfer/ucx/ucx_transport.h"
#include "worker/worker_main.h"

namespace {

using baton::worker::OpenTransport;

absl::StatusOr<std::unique_ptr<baton::kernels::Ops>> MakeOps(
    const baton::worker::OpsRequest& request, baton::kernels::Device& device) {
  return baton::kernels::cpu::MakeCpuOps({.config = request.config,
                                          .mode = request.mode,
                                          .layout = request.layout,
                                          .pages = request.pages,
                                          .num_pages = request.num_pages,
                                          .num_tail_slots = request.num_tail_slots,
                                          .max_rows = request.max_rows,
                                          .max_sequences = request.max_sequences,
                                          .max_head_rows = request.max_head_rows,
                                          .max_context = request.max_context,
                                          .parallel = request.parallel},
                                         device);
}

absl::StatusOr<OpenTransport> OpenUcx(const baton::worker::TransportRequest& request) {
  baton::kvtransfer::UcxConfig config;
  config.incarnation = request.incarnation;
  config.listen = request.listen;
  config.advertise = request.advertise;
  config.tls = request.transports;
  ASSIGN_OR_RETURN(auto transport, baton::kvtransfer::UcxTransport::Create(config));
  const baton::SteadyClock clock;
  RETURN_IF_ERROR(baton::kvtransfer::SelfTest(*transport, clock, {}));
  const auto facts = transport->Facts({});
  return OpenTransport{.transport = std::move(transport),
                       .transports = facts.transports,
                       .self_test_gbps = facts.self_test_gbps};
}

}  // namespace

int main(int argc, char** argv) {
  return baton::worker::RunWorkerMain(
      {.name = "baton-prefill",
       .serve = {"prefill"},
       .backend = {.numerics = baton::CpuNumericsClass,
                   .make_device = baton::kernels::cpu::MakeCpuDevice,
                   .make_ops = MakeOps,
                   .count_promoted_experts = baton::kernels::cpu::CountPromotedExperts,
                   .open_transport = OpenUcx}},
      argc, argv);
}
