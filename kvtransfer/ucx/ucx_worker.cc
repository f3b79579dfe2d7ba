#include "kvtransfer/ucx/ucx_worker.h"

#include <algorithm>
#include <arpa/inet.h>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <netinet/in.h>

#include "absl/strings/str_format.h"

#include "common/status.h"

namespace baton::kvtransfer {
namespace {

absl::Status ApplySettings(ucp_config_t* settings, const UcxConfig& config) {
  // The receiver reads; with put_zcopy a write could land after its endpoint was closed
  // (contracts.md 4.6).
  std::vector<std::pair<std::string, std::string>> all = {{"TLS", config.tls},
                                                          {"RNDV_SCHEME", "get_zcopy"}};
  all.insert(all.end(), config.overrides.begin(), config.overrides.end());
  for (const auto& [name, value] : all) {
    const ucs_status_t status = ucp_config_modify(settings, name.c_str(), value.c_str());
    if (status != UCS_OK)
      return UcxError(status, absl::StrFormat("UCX setting %s=%s", name, value));
  }
  return absl::OkStatus();
}

// Device memory can be pulled only by a UCX that knows it for what it is: with its cache of
// allocations it copies pages like host memory, and the process ends (seen with UCX 1.22).
absl::Status CheckKnowsDevices(ucp_context_h context, const UcxConfig& config) {
  const char* cache = std::getenv("UCX_MEMTYPE_CACHE");
  if (cache == nullptr || std::string_view(cache) != "n") {
    return absl::FailedPreconditionError(absl::StrFormat(
        "transports %s need UCX_MEMTYPE_CACHE=n in the environment, which the worker programs set",
        config.tls));
  }
  ucp_context_attr_t attributes{};
  attributes.field_mask = UCP_ATTR_FIELD_MEMORY_TYPES;
  const ucs_status_t status = ucp_context_query(context, &attributes);
  if (status != UCS_OK) return UcxError(status, "asking UCX for its kinds of memory");
  if ((attributes.memory_types & (uint64_t{1} << UCS_MEMORY_TYPE_CUDA)) != 0) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrFormat("transports %s: UCX %s here cannot reach GPU memory (built without CUDA, or "
                      "no driver); leave cuda_ipc out and pages are staged",
                      config.tls, ucp_get_version_string()));
}

}  // namespace

absl::Status UcxError(ucs_status_t status, std::string_view what) {
  return absl::UnavailableError(absl::StrFormat("%s: UCX says %s (%d)", std::string(what),
                                                ucs_status_string(status),
                                                static_cast<int>(status)));
}

std::string TransportsOfLanes(std::string_view description) {
  // "#  lane[1]:  0:rc_mlx5/mlx5_0:1.0 md[3] -> ..."; a lane of the connection manager has no
  // number
  std::vector<std::string_view> found;
  while (!description.empty()) {
    std::string_view line = description.substr(0, description.find('\n'));
    description.remove_prefix(std::min(description.size(), line.size() + 1));
    const size_t label = line.find("lane[");
    const size_t number = label == std::string_view::npos ? label : line.find("]:", label);
    if (number == std::string_view::npos) continue;
    line.remove_prefix(number + 2);
    const size_t colon = line.find(':');
    const size_t slash = line.find('/');
    if (colon >= slash || slash == std::string_view::npos) continue;
    const std::string_view name = line.substr(colon + 1, slash - colon - 1);
    if (std::find(found.begin(), found.end(), name) == found.end()) found.push_back(name);
  }
  std::string joined;
  for (const std::string_view name : found) {
    if (!joined.empty()) joined += ',';
    joined += name;
  }
  return joined;
}

std::string EndpointTransports(ucp_ep_h endpoint) {
  char* text = nullptr;
  size_t size = 0;
  FILE* stream = open_memstream(&text, &size);
  if (stream == nullptr) return {};
  ucp_ep_print_info(endpoint, stream);
  std::fclose(stream);
  std::string transports = TransportsOfLanes({text, size});
  std::free(text);
  return transports;
}

absl::Status CheckDeviceLane(ucp_ep_h endpoint, std::string_view tls) {
  const std::string lanes = EndpointTransports(endpoint);
  if (lanes.find("cuda_ipc") != std::string::npos) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrFormat("peer is reached by %s, not by cuda_ipc as kv.transports %s promises: leave "
                      "cuda_ipc out where "
                      "workers do not share a machine's GPUs",
                      lanes, tls));
}

absl::StatusOr<SocketAddress> SocketAddress::Parse(std::string_view text) {
  const auto invalid = [&] {
    return absl::InvalidArgumentError(
        absl::StrFormat("\"%s\" is not a numeric host:port", std::string(text)));
  };
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return invalid();
  uint16_t port = 0;
  const std::string_view digits = text.substr(colon + 1);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (digits.empty() || error != std::errc() || end != digits.data() + digits.size())
    return invalid();
  std::string host(text.substr(0, colon));
  SocketAddress address;
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
    sockaddr_in6 v6{};
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    if (inet_pton(AF_INET6, host.c_str(), &v6.sin6_addr) != 1) return invalid();
    std::memcpy(&address.storage, &v6, sizeof(v6));
    address.length = sizeof(v6);
    return address;
  }
  sockaddr_in v4{};
  v4.sin_family = AF_INET;
  v4.sin_port = htons(port);
  if (inet_pton(AF_INET, host.c_str(), &v4.sin_addr) != 1) return invalid();
  std::memcpy(&address.storage, &v4, sizeof(v4));
  address.length = sizeof(v4);
  return address;
}

std::string FormatSocketAddress(const sockaddr_storage& address, std::string_view host_override) {
  char host[INET6_ADDRSTRLEN] = {};
  uint16_t port = 0;
  if (address.ss_family == AF_INET6) {
    sockaddr_in6 v6;
    std::memcpy(&v6, &address, sizeof(v6));
    inet_ntop(AF_INET6, &v6.sin6_addr, host, sizeof(host));
    port = ntohs(v6.sin6_port);
  } else {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof(v4));
    inet_ntop(AF_INET, &v4.sin_addr, host, sizeof(host));
    port = ntohs(v4.sin_port);
  }
  const std::string name = host_override.empty() ? std::string(host) : std::string(host_override);
  const bool is_v6 = name.find(':') != std::string::npos;
  return is_v6 ? absl::StrFormat("[%s]:%d", name, port) : absl::StrFormat("%s:%d", name, port);
}

absl::StatusOr<std::unique_ptr<UcxWorker>> UcxWorker::Create(const UcxConfig& config) {
  std::unique_ptr<UcxWorker> self(new UcxWorker());
  ucp_config_t* settings = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &settings);
  if (status != UCS_OK) return UcxError(status, "reading the UCX configuration");
  const absl::Status applied = ApplySettings(settings, config);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  if (applied.ok()) status = ucp_init(&params, settings, &self->context_);
  ucp_config_release(settings);
  if (!applied.ok()) return applied;
  if (status != UCS_OK)
    return UcxError(status, absl::StrFormat("UCX context with transports %s", config.tls));
  if (config.can_pull_devices) RETURN_IF_ERROR(CheckKnowsDevices(self->context_, config));
  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  status = ucp_worker_create(self->context_, &worker_params, &self->worker_);
  if (status != UCS_OK) return UcxError(status, "UCX worker");
  status = ucp_worker_get_efd(self->worker_, &self->event_fd_);
  if (status != UCS_OK) return UcxError(status, "UCX event descriptor");
  return self;
}

UcxWorker::~UcxWorker() {
  Shutdown();
  for (const ucp_mem_h map : maps_) ucp_mem_unmap(context_, map);
  if (context_ != nullptr) ucp_cleanup(context_);
}

void UcxWorker::Shutdown() {
  if (listener_ != nullptr) ucp_listener_destroy(listener_);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  listener_ = nullptr;
  worker_ = nullptr;
}

absl::Status UcxWorker::Listen(const SocketAddress& address,
                               ucp_listener_conn_callback_t on_connect, void* arg) {
  ucp_listener_params_t params{};
  params.field_mask = UCP_LISTENER_PARAM_FIELD_SOCK_ADDR | UCP_LISTENER_PARAM_FIELD_CONN_HANDLER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address.storage);
  params.sockaddr.addrlen = address.length;
  params.conn_handler.cb = on_connect;
  params.conn_handler.arg = arg;
  const ucs_status_t status = ucp_listener_create(worker_, &params, &listener_);
  if (status == UCS_OK) return absl::OkStatus();
  return UcxError(status,
                  absl::StrFormat("listening at %s", FormatSocketAddress(address.storage, "")));
}

std::string UcxWorker::ListenAddress(std::string_view host_override) const {
  ucp_listener_attr_t attributes{};
  attributes.field_mask = UCP_LISTENER_ATTR_FIELD_SOCKADDR;
  if (ucp_listener_query(listener_, &attributes) != UCS_OK) return "";
  return FormatSocketAddress(attributes.sockaddr, host_override);
}

absl::Status UcxWorker::Handle(unsigned id, ucp_am_recv_callback_t callback, void* arg,
                               bool is_data_kept) {
  ucp_am_handler_param_t params{};
  params.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                      UCP_AM_HANDLER_PARAM_FIELD_ARG | UCP_AM_HANDLER_PARAM_FIELD_FLAGS;
  params.id = id;
  params.cb = callback;
  params.arg = arg;
  params.flags =
      is_data_kept ? UCP_AM_FLAG_WHOLE_MSG | UCP_AM_FLAG_PERSISTENT_DATA : UCP_AM_FLAG_WHOLE_MSG;
  const ucs_status_t status = ucp_worker_set_am_recv_handler(worker_, &params);
  return status == UCS_OK ? absl::OkStatus() : UcxError(status, "active message handler");
}

absl::StatusOr<ucp_ep_h> UcxWorker::Connect(const SocketAddress& address,
                                            ucp_err_handler_cb_t on_error, void* arg) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_FLAGS | UCP_EP_PARAM_FIELD_SOCK_ADDR |
                      UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE | UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.flags = UCP_EP_PARAMS_FLAGS_CLIENT_SERVER;
  params.sockaddr.addr = reinterpret_cast<const sockaddr*>(&address.storage);
  params.sockaddr.addrlen = address.length;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {on_error, arg};
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint);
  if (status != UCS_OK)
    return UcxError(status,
                    absl::StrFormat("connecting to %s", FormatSocketAddress(address.storage, "")));
  return endpoint;
}

absl::StatusOr<ucp_ep_h> UcxWorker::Accept(ucp_conn_request_h request,
                                           ucp_err_handler_cb_t on_error, void* arg) {
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_CONN_REQUEST | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.conn_request = request;
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler = {on_error, arg};
  ucp_ep_h endpoint = nullptr;
  const ucs_status_t status = ucp_ep_create(worker_, &params, &endpoint);
  if (status != UCS_OK) return UcxError(status, "accepting a connection");
  return endpoint;
}

void UcxWorker::Reject(ucp_conn_request_h request) { ucp_listener_reject(listener_, request); }

absl::StatusOr<ucp_mem_h> UcxWorker::Map(void* address, size_t bytes, bool is_device) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH |
                      UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE;
  params.address = address;
  params.length = bytes;
  params.memory_type = is_device ? UCS_MEMORY_TYPE_CUDA : UCS_MEMORY_TYPE_HOST;
  ucp_mem_h map = nullptr;
  const ucs_status_t status = ucp_mem_map(context_, &params, &map);
  if (status != UCS_OK) return UcxError(status, absl::StrFormat("registering %d bytes", bytes));
  maps_.push_back(map);
  return map;
}

void UcxWorker::Unmap(ucp_mem_h map) {
  if (std::erase(maps_, map) > 0) ucp_mem_unmap(context_, map);
}

}  // namespace baton::kvtransfer
