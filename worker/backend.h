#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

#include "common/class_id.h"
#include "common/ids.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kvtransfer/transport.h"

// The hardware interfaces as hardware.cc hands them in: only there a back end and a transport are
// named.
namespace baton::worker {

struct OpsRequest {
  const kernels::ModelConfig& config;
  kernels::NumericsMode mode;
  const kernels::PageLayout& layout;
  std::byte* pages = nullptr;
  int num_pages = 0;
  int num_tail_slots = 0;
  int max_rows = 0;
  int max_sequences = 0;
  int max_head_rows = 0;
  int max_context = 0;
  bool has_graphs = true;
  kernels::ParallelFor parallel;
};

struct DeviceRequest {
  kernels::NumericsMode mode;
  int gpu = 0;                    // of the machine's
  kernels::ParallelFor parallel;  // reads weights; outlives the device
};

// One back end of the operators.
struct ComputeBackend {
  std::string name;  // cpu, cuda
  NumericsClass (*numerics)(bool is_float32) = nullptr;
  // kUnavailable: this machine has none of its devices.
  absl::StatusOr<std::unique_ptr<kernels::Device>> (*make_device)(const DeviceRequest& request) =
      nullptr;
  absl::StatusOr<std::unique_ptr<kernels::Ops>> (*make_ops)(const OpsRequest& request,
                                                            kernels::Device& device) = nullptr;
  // Bytes that make_ops will allocate, pages not among them.
  size_t (*workspace_bytes)(const OpsRequest& request) = nullptr;
  int (*count_promoted_experts)(const kernels::ModelWeights& weights) = nullptr;
};

struct TransportRequest {
  Incarnation incarnation;
  std::string listen, advertise, transports;
};
struct OpenTransport {
  std::unique_ptr<kvtransfer::Transport> transport;
  std::string transports;        // what carries blocks, for the hello and the log
  double self_test_gbps = 0;     // GB/s over loopback; 0: not measured
  bool reaches_devices = false;  // takes regions of device memory
};

struct Backend {
  std::vector<ComputeBackend> compute;  // what this program has, the first that has a device wins
  absl::StatusOr<OpenTransport> (*open_transport)(const TransportRequest& request) = nullptr;
};

}  // namespace baton::worker
