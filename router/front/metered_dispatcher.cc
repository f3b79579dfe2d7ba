#include "router/front/metered_dispatcher.h"

#include <utility>

#include "router/http/api_keys.h"

namespace baton::router {

RequestKey MeteredDispatcher::Submit(GenerateRequest request, RequestSink sink) {
  const std::shared_ptr<KeyAccount> account = request.account;
  if (account == nullptr) return inner_.Submit(std::move(request), std::move(sink));
  const auto prompt_tokens = static_cast<int64_t>(request.prompt->size());
  return inner_.Submit(std::move(request), [account, prompt_tokens, sink = std::move(sink)](
                                               std::vector<RequestEvent> events) {
    int64_t tokens = 0;
    for (const RequestEvent& event : events) {
      if (std::holds_alternative<RequestAccepted>(event)) tokens += prompt_tokens;
      if (const auto* emitted = std::get_if<TokensEmitted>(&event))
        tokens += static_cast<int64_t>(emitted->tokens.size());
    }
    if (tokens > 0) account->Charge(tokens);
    sink(std::move(events));
  });
}

}  // namespace baton::router
