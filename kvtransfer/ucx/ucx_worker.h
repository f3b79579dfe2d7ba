#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <sys/socket.h>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include <ucp/api/ucp.h>

#include "common/ids.h"

namespace baton::kvtransfer {

struct UcxConfig {
  Incarnation incarnation;             // of this process
  std::string listen = "127.0.0.1:0";  // numeric address and port; port 0: any
  std::string advertise;               // host that peers use; empty: the one of `listen`
  std::string tls = "tcp,self";        // UCX_TLS: CPU-only default (contracts.md 4.6)
  std::vector<std::pair<std::string, std::string>>
      overrides;  // further UCX settings, without "UCX_"
  // Device memory is registered and goes by rendezvous: tls has cuda_ipc, and every peer but this
  // process itself must be reached by it. Refused where UCX was built without CUDA.
  bool can_pull_devices = false;
  bool can_pull_hosts = false;    // tls has rc: host blocks too
  size_t max_open_frames = 4096;  // per peer, not yet taken by UCX
  size_t max_peers = 4096;
};

// A numeric "host:port" ("[host]:port" for IPv6), and back.
struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  static absl::StatusOr<SocketAddress> Parse(std::string_view text);
};
std::string FormatSocketAddress(const sockaddr_storage& address, std::string_view host_override);

absl::Status UcxError(ucs_status_t status, std::string_view what);

// The transports that carry an endpoint's messages, in the order of its lanes, each once: "tcp".
std::string EndpointTransports(ucp_ep_h endpoint);
// The same from UCX's description of the endpoint (`ucp_ep_print_info`: 1.13 has no other way).
std::string TransportsOfLanes(std::string_view description);

// Whether an endpoint's device blocks go by cuda_ipc; kFailedPrecondition names what carries it.
absl::Status CheckDeviceLane(ucp_ep_h endpoint, std::string_view tls);

// Context, worker and listener with their order of destruction. One thread.
class UcxWorker {
 public:
  static absl::StatusOr<std::unique_ptr<UcxWorker>> Create(const UcxConfig& config);
  ~UcxWorker();

  // `on_connect` runs in progress for every client; it must Accept or Reject.
  absl::Status Listen(const SocketAddress& address, ucp_listener_conn_callback_t on_connect,
                      void* arg);
  absl::Status Handle(unsigned id, ucp_am_recv_callback_t callback, void* arg, bool is_data_kept);
  absl::StatusOr<ucp_ep_h> Connect(const SocketAddress& address, ucp_err_handler_cb_t on_error,
                                   void* arg);
  absl::StatusOr<ucp_ep_h> Accept(ucp_conn_request_h request, ucp_err_handler_cb_t on_error,
                                  void* arg);
  void Reject(ucp_conn_request_h request);
  // Host or device memory, mapped until Unmap or destruction.
  absl::StatusOr<ucp_mem_h> Map(void* address, size_t bytes, bool is_device);
  void Unmap(ucp_mem_h map);

  // False if there is work: progress first.
  bool Arm() { return ucp_worker_arm(worker_) == UCS_OK; }
  ucp_worker_h get() const { return worker_; }
  int event_fd() const { return event_fd_; }
  std::string ListenAddress(std::string_view host_override) const;
  // Destroys listener and worker; their callbacks may run.
  void Shutdown();

 private:
  UcxWorker() = default;

  ucp_context_h context_ = nullptr;
  ucp_worker_h worker_ = nullptr;
  ucp_listener_h listener_ = nullptr;
  std::vector<ucp_mem_h> maps_;
  int event_fd_ = -1;  // the worker's
};

}  // namespace baton::kvtransfer
