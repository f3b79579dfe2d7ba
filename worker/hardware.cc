#include "worker/hardware.h"

#include <memory>
#include <utility>

#include "common/clock.h"
#include "common/status.h"
#include "kernels/cpu/cpu_ops.h"
#include "kvtransfer/ucx/self_test.h"
#include "kvtransfer/ucx/ucx_transport.h"
#ifdef BATON_CUDA
#include "kernels/cuda/cuda_ops.h"
#endif

// The one file that names back ends and a transport.
namespace baton::worker {
namespace {

ComputeBackend CpuBackend() {
  ComputeBackend backend;
  backend.name = "cpu";
  backend.numerics = CpuNumericsClass;
  backend.make_device =
      [](const DeviceRequest& request) -> absl::StatusOr<std::unique_ptr<kernels::Device>> {
    return kernels::cpu::MakeCpuDevice(request.mode);
  };
  backend.make_ops = [](const OpsRequest& request, kernels::Device& device) {
    return kernels::cpu::MakeCpuOps({.config = request.config,
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
  };
  backend.workspace_bytes = [](const OpsRequest&) { return size_t{0}; };
  backend.count_promoted_experts = kernels::cpu::CountPromotedExperts;
  return backend;
}

#ifdef BATON_CUDA
kernels::cuda::CudaOptions CudaOptionsOf(const OpsRequest& request) {
  return {.config = request.config,
          .layout = request.layout,
          .pages = request.pages,
          .num_pages = request.num_pages,
          .num_tail_slots = request.num_tail_slots,
          .max_rows = request.max_rows,
          .max_sequences = request.max_sequences,
          .max_head_rows = request.max_head_rows,
          .max_context = request.max_context,
          .has_graphs = request.has_graphs};
}

ComputeBackend CudaBackend() {
  ComputeBackend backend;
  backend.name = "cuda";
  backend.numerics = [](bool is_float32) {
    NumericsClass numerics = CpuNumericsClass(is_float32);
    numerics.arch = "sm_90a";
    numerics.kernels = 2;
    return numerics;
  };
  backend.make_device =
      [](const DeviceRequest& request) -> absl::StatusOr<std::unique_ptr<kernels::Device>> {
    if (request.mode != kernels::NumericsMode::kOfficial) {
      return absl::UnavailableError("mode float32: the CUDA back end has official numerics only");
    }
    return kernels::cuda::MakeCudaDevice(request.gpu, request.parallel);
  };
  backend.make_ops = [](const OpsRequest& request, kernels::Device& device) {
    return kernels::cuda::MakeCudaOps(CudaOptionsOf(request), device);
  };
  backend.workspace_bytes = [](const OpsRequest& request) {
    return kernels::cuda::CudaWorkspaceBytes(CudaOptionsOf(request));
  };
  backend.count_promoted_experts = kernels::cuda::CountPromotedExperts;
  return backend;
}
#endif

absl::StatusOr<OpenTransport> OpenUcx(const TransportRequest& request) {
  kvtransfer::UcxConfig config;
  config.incarnation = request.incarnation;
  config.listen = request.listen;
  config.advertise = request.advertise;
  config.tls = request.transports;
  config.can_pull_devices = request.transports.find("cuda_ipc") != std::string::npos;
  ASSIGN_OR_RETURN(auto transport, kvtransfer::UcxTransport::Create(config));
  const SteadyClock clock;
  RETURN_IF_ERROR(kvtransfer::SelfTest(*transport, clock, {}));
  const auto facts = transport->Facts({});
  return OpenTransport{.transport = std::move(transport),
                       .transports = facts.transports,
                       .self_test_gbps = facts.self_test_gbps,
                       .reaches_devices = config.can_pull_devices};
}

}  // namespace

Backend BuiltInBackend() {
  Backend backend;
#ifdef BATON_CUDA
  backend.compute.push_back(CudaBackend());
#endif
  backend.compute.push_back(CpuBackend());
  backend.open_transport = OpenUcx;
  return backend;
}

}  // namespace baton::worker
