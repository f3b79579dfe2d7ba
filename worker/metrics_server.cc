#include "worker/metrics_server.h"

#include <civetweb.h>
#include <utility>

#include "absl/strings/str_format.h"

namespace baton::worker {
namespace {

void Write(mg_connection* connection, int code, const char* type, const std::string& body) {
  const std::string head = absl::StrFormat(
      "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n", code,
      code == 200 ? "OK" : "Service Unavailable", type, body.size());
  mg_write(connection, head.data(), head.size());
  mg_write(connection, body.data(), body.size());
}

int OnMetrics(mg_connection* connection, void* arg) {
  Write(connection, 200, "text/plain; version=0.0.4; charset=utf-8",
        static_cast<ProbePages*>(arg)->metrics());
  return 200;
}

int OnProbe(mg_connection* connection, void* arg) {
  const ProbeAnswer answer = (*static_cast<std::function<ProbeAnswer()>*>(arg))();
  Write(connection, answer.code, "text/plain", answer.body + "\n");
  return answer.code;
}

}  // namespace

struct MetricsServer::State {
  ProbePages pages;
  mg_context* context = nullptr;
};

MetricsServer::MetricsServer(std::unique_ptr<State> state) : state_(std::move(state)) {}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& listen,
                                                                    ProbePages pages) {
  auto state = std::make_unique<State>();
  state->pages = std::move(pages);
  mg_init_library(0);
  const char* options[] = {"listening_ports",    listen.c_str(), "num_threads", "2",
                           "request_timeout_ms", "5000",         nullptr};
  const mg_callbacks callbacks{};
  state->context = mg_start(&callbacks, nullptr, options);
  if (state->context == nullptr) {
    mg_exit_library();
    return absl::UnavailableError(absl::StrFormat("metrics_listen: cannot listen on %s", listen));
  }
  mg_set_request_handler(state->context, "/metrics$", OnMetrics, &state->pages);
  mg_set_request_handler(state->context, "/health$", OnProbe, &state->pages.health);
  mg_set_request_handler(state->context, "/ready$", OnProbe, &state->pages.ready);
  return std::unique_ptr<MetricsServer>(new MetricsServer(std::move(state)));
}

MetricsServer::~MetricsServer() {
  mg_stop(state_->context);
  mg_exit_library();
}

int MetricsServer::port() const {
  mg_server_port port{};
  return mg_get_server_ports(state_->context, 1, &port) == 1 ? port.port : 0;
}

}  // namespace baton::worker
