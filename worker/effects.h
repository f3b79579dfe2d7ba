#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

#include "common/ids.h"
#include "kvtransfer/agent.h"
#include "proto/wire.h"
#include "worker/session.h"

namespace baton::worker {

// What one round of the core wants done outside: commands for the transfer thread, one message per
// session; prompt logprobs apart, a message each, for they are large. The state machines fill it;
// the core executes it. Engine thread.
struct Effects {
  std::vector<kvtransfer::AgentCommand> commands;
  std::map<SessionId, wire::WorkerMessage> messages;
  std::vector<std::pair<SessionId, wire::PromptLogprobs>> prompt_logprobs;
  int replay_mismatches = 0;

  wire::WorkerMessage& To(SessionId session) { return messages[session]; }
  void Refuse(SessionId session, wire::Refused refused) {
    To(session).refused.push_back(std::move(refused));
  }
  void Fail(SessionId session, const TransferId& transfer, const absl::Status& status) {
    To(session).failed.push_back({.transfer = transfer,
                                  .handle = {},
                                  .code = status.code(),
                                  .message = std::string(status.message())});
  }
};

}  // namespace baton::worker
