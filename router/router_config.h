#pragma once

#include <string>
#include <vector>

#include "common/config.h"
#include "router/http/http_server.h"
#include "router/net/session_client.h"
#include "router/openai/api_config.h"
#include "router/plan/plan_config.h"

namespace baton::router {

// Everything the program is told: one struct per component.
struct RouterConfig {
  std::string model;                 // the checkpoint's folder: config.json, tokenizer.json
  std::vector<std::string> workers;  // session addresses, see SessionPoolOptions
  std::vector<std::string> names;    // as clients call the model; empty: the folder's name
  std::string log_level = "info";
  std::string router_id = "router";
  HttpEndpoint endpoint;
  HttpLimits http;
  std::string api_keys_file;              // see ParseApiKeys; empty: nobody is asked for a key
  std::vector<std::string> cors_origins;  // of pages that may call; "*": all; empty: none
  int cpu_threads = 1;                    // for bodies above api.offload_bytes
  uint64_t max_waiting_bodies = 64;
  int grammar_threads = 2;
  SessionPoolOptions sessions;
  PlannerThreadConfig planner;
  PlanConfig plan;
  ApiConfig api;
  bool serves_admin = false;  // operators' paths to every client, not to admin keys only
  std::string effort_profile = "auto";
  std::string reasoning_secret_file;                 // see ApiConfig::reasoning_secret
  absl::Duration drain_timeout = absl::Seconds(30);  // after SIGTERM, for what is open
};

void BindConfig(ConfigReader& reader, RouterConfig& config);
// kInvalidArgument names the key, the value and the limit.
absl::Status Validate(const RouterConfig& config);

}  // namespace baton::router
