#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

#include "common/clock.h"
#include "common/cpu_pool.h"
#include "common/grammar.h"
#include "common/rng.h"
#include "router/anthropic/messages_api.h"
#include "router/front/front_door.h"
#include "router/front/metered_dispatcher.h"
#include "router/front/operator_api.h"
#include "router/http/api_keys.h"
#include "router/http/http_server.h"
#include "router/metrics_export.h"
#include "router/net/session_client.h"
#include "router/openai/api.h"
#include "router/plan/planner_thread.h"
#include "router/router_config.h"
#include "router/text/chat_encoder.h"
#include "router/text/tokenizer.h"

namespace baton::router {

// A running router: tokenizer, planner thread, sessions, HTTP. Start and stop: one thread.
class RouterProcess {
 public:
  // Loads the tokenizer, listens, and connects to the workers in the background. `clock` outlives
  // it. Errors name file, key or address.
  static absl::StatusOr<std::unique_ptr<RouterProcess>> Start(const RouterConfig& config,
                                                              const Clock& clock);
  // Live requests end with 503, then every thread ends, in an order in which nobody calls what is
  // gone.
  ~RouterProcess();

  int port() const { return server_->port(); }
  // Takes no new connections and no new work; what is open goes on.
  void Drain();
  // True when no answer is open.
  bool IsIdle() const { return server_->counters().exchanges.load() == 0; }

 private:
  // What is read from files before anything runs.
  struct Inputs {
    Tokenizer tokenizer;
    Vocabulary vocabulary;
    std::vector<ApiKeySpec> keys;
  };
  RouterProcess(const RouterConfig& config, const Clock& clock, Inputs inputs);
  absl::Status Load();
  void MakeSurfaces(const RouterConfig& config);
  absl::Status Serve(const RouterConfig& config);
  std::string RenderMetrics();

  const Clock& clock_;
  ApiConfig api_config_;
  const Tokenizer tokenizer_;
  const Vocabulary vocabulary_;
  const ApiKeys keys_;
  std::unique_ptr<ChatEncoder> encoder_;
  MarkupIds markup_;
  RouterMetrics metrics_;
  SystemRng rng_;
  SessionPool sessions_;
  PlannerThread planner_;
  MeteredDispatcher dispatcher_;  // the planner, at the expense of the keys
  CpuPool cpu_pool_;
  GrammarChecker grammars_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<MessagesApi> messages_;
  std::unique_ptr<OperatorApi> operators_;
  std::unique_ptr<FrontDoor> door_;
  HttpCounters no_counters_;  // shown until the server is there
  std::atomic<const HttpCounters*> counters_ = &no_counters_;
  std::unique_ptr<HttpServer> server_;
};

}  // namespace baton::router
