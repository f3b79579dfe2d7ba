#include "router/plan/core_harness.h"

#include <memory>
#include <numeric>

#include "absl/strings/str_format.h"
#include "gtest/gtest.h"

namespace baton::router {
namespace {

template <typename Id>
Id IdOf(uint8_t value) {
  Id id;
  id.bytes.fill(value);
  return id;
}

}  // namespace

CoreHarness::CoreHarness(const PlanConfig& config, uint64_t seed)
    : rng_(seed), core_(config, rng_) {
  EXPECT_TRUE(config.Validate().ok()) << config.Validate().message();
}

void CoreHarness::On(CoreEvent event) {
  actions_.clear();
  core_.On(std::move(event), now_, actions_);
  for (const CoreAction& action : actions_) {
    if (const auto* send = std::get_if<SendToWorker>(&action)) Record(*send);
    if (const auto* emit = std::get_if<EmitToRequest>(&action)) Record(*emit);
    if (const auto* timer = std::get_if<SetTimer>(&action))
      timers_.emplace(timer->at, timer->timer);
  }
}

void CoreHarness::Record(const SendToWorker& send) {
  sent_.push_back(send);
  const WorkerRecord* worker = core_.FindWorker(send.worker);
  ASSERT_TRUE(worker != nullptr && worker->is_up) << "told a worker that is not there";
  const TransferId transfer =
      std::visit([](const auto& item) { return item.transfer; }, send.piece);
  TransferLog& log = told_[{send.worker, sessions_[send.worker], transfer}];
  EXPECT_EQ(send.introduces, log.num_pieces == 0);
  EXPECT_EQ(log.num_cancels, 0) << "told a worker of a transfer after its Cancel";
  ++log.num_pieces;
  const auto* cancel = std::get_if<wire::Cancel>(&send.piece);
  if (cancel != nullptr && !cancel->sequence) ++log.num_cancels;
}

void CoreHarness::RecordTokens(RequestLog& log, RequestKey key, const TokensEmitted& event) {
  std::vector<int32_t>& tokens = log.tokens[event.choice];
  EXPECT_EQ(event.first_position, prompt_tokens_.at(key) + static_cast<int64_t>(tokens.size()))
      << "a position is missing or comes twice";
  EXPECT_FALSE(log.finished.contains(event.choice)) << "a token after the choice's end";
  for (const TokenRecord& record : event.tokens) tokens.push_back(record.token);
}

void CoreHarness::Record(const EmitToRequest& emit) {
  RequestLog& log = logs_[emit.request];
  EXPECT_EQ(log.num_ended, 0) << "an event after the request's end";
  if (std::holds_alternative<RequestAccepted>(emit.event)) ++log.num_accepted;
  if (std::holds_alternative<ContinuationInexact>(emit.event)) ++log.num_inexact;
  if (const auto* tokens = std::get_if<TokensEmitted>(&emit.event))
    RecordTokens(log, emit.request, *tokens);
  if (const auto* logprobs = std::get_if<PromptLogprobsEmitted>(&emit.event)) {
    EXPECT_EQ(logprobs->first_position, static_cast<int64_t>(log.prompt_logprobs.size()) + 1);
    for (const TokenRecord& record : logprobs->tokens) log.prompt_logprobs.push_back(record);
  }
  if (const auto* finished = std::get_if<ChoiceFinished>(&emit.event)) {
    EXPECT_FALSE(log.finished.contains(finished->choice)) << "a choice ended twice";
    log.finished[finished->choice] = finished->reason;
  }
  if (const auto* ended = std::get_if<RequestEnded>(&emit.event)) {
    ++log.num_ended;
    log.end = *ended;
  }
}

void CoreHarness::Advance(absl::Duration by) {
  const absl::Time end = now_ + by;
  while (!timers_.empty() && timers_.begin()->first <= end) {
    const auto [at, timer] = *timers_.begin();
    timers_.erase(timers_.begin());
    now_ = std::max(now_, at);
    On(router::TimerFired{.timer = timer});
  }
  now_ = end;
}

WorkerId CoreHarness::Up(uint32_t id, const WorkerSpec& spec) {
  const WorkerId worker{id};
  for (auto& [key, log] : told_)  // an older session
    if (std::get<0>(key) == worker) log.is_session_lost = true;
  ++sessions_[worker];
  wire::WorkerHello hello;
  hello.worker_id = absl::StrFormat("worker-%d", id);
  hello.incarnation = Incarnation{next_incarnation_++};
  hello.serves_prefill = spec.serves_prefill;
  hello.serves_decode = spec.serves_decode;
  hello.weights = IdOf<WeightsId>(spec.weights);
  hello.layout = IdOf<LayoutId>(spec.layout);
  hello.prompt_class = IdOf<ClassId>(spec.prompt_class);
  hello.decode_class = IdOf<ClassId>(spec.decode_class);
  hello.pages = spec.pages;
  hello.max_sequences = spec.max_sequences;
  hello.max_context = spec.max_context;
  On(WorkerUp{.worker = worker, .hello = std::move(hello)});
  return worker;
}

void CoreHarness::Down(WorkerId worker, const std::string& why) {
  for (auto& [key, log] : told_)
    if (std::get<0>(key) == worker) log.is_session_lost = true;
  On(WorkerDown{.worker = worker, .status = absl::UnavailableError(why)});
}

void CoreHarness::Say(WorkerId worker, wire::WorkerMessage message) {
  On(WorkerSaid{.worker = worker, .message = std::move(message)});
}

GenerateRequest CoreHarness::MakeRequest(int prompt_tokens, int max_tokens, int num_choices) const {
  std::vector<int32_t> prompt(static_cast<size_t>(prompt_tokens));
  std::iota(prompt.begin(), prompt.end(), 100);
  GenerateRequest request;
  request.request_id = absl::StrFormat("request-%d", next_key_);
  request.prompt = std::make_shared<const std::vector<int32_t>>(std::move(prompt));
  request.num_choices = num_choices;
  request.finish.max_tokens = max_tokens;
  request.arrival = now_;
  request.first_token_deadline = now_ + absl::Seconds(600);
  return request;
}

RequestKey CoreHarness::Arrive(GenerateRequest request) {
  const RequestKey key{next_key_++};
  prompt_tokens_[key] = static_cast<int>(request.prompt->size());
  logs_[key];
  On(RequestArrived{.key = key, .request = std::move(request)});
  return key;
}

TokenRecord CoreHarness::TokenAt(int choice, int64_t position) {
  const uint64_t mixed =
      Mix64(static_cast<uint64_t>(position) * 31 + static_cast<uint64_t>(choice));
  TokenRecord record;
  record.token = static_cast<int32_t>(mixed % 50'000);
  return record;
}

void CoreHarness::ReportMissing(WorkerId worker) const {
  ADD_FAILURE() << "worker " << worker.value << " was not sent the piece that the test expects";
}

// The newest transfer the worker was told of.
TransferId CoreHarness::TransferAt(WorkerId worker) const {
  for (auto it = sent_.rbegin(); it != sent_.rend(); ++it)
    if (it->worker == worker && !std::holds_alternative<wire::Cancel>(it->piece))
      return std::visit([](const auto& item) { return item.transfer; }, it->piece);
  ReportMissing(worker);
  return {};
}

void CoreHarness::Reserved(WorkerId decode) {
  wire::Reserved item;
  item.transfer = Last<wire::Reserve>(decode).transfer;
  item.landing.kv_address = absl::StrFormat("kv-%d", decode.value);
  wire::WorkerMessage message;
  message.reserved.push_back(std::move(item));
  Say(decode, std::move(message));
}

void CoreHarness::Retargeted(WorkerId decode) {
  const auto asked = Last<wire::Retarget>(decode);
  wire::WorkerMessage message;
  message.retargeted.push_back(
      {.transfer = asked.transfer, .attempt = asked.attempt, .verified_pages = {true}});
  Say(decode, std::move(message));
}

void CoreHarness::FirstToken(WorkerId prefill) {
  const auto run = Last<wire::Run>(prefill);
  wire::FirstToken item;
  item.transfer = run.transfer;
  item.attempt = run.attempt;
  item.prefill_us = 1'000;
  for (const wire::SequenceSpec& sequence : run.sequences)
    item.tokens.push_back(TokenAt(static_cast<int>(sequence.choice), run.prompt_tokens));
  wire::WorkerMessage message;
  message.first_tokens.push_back(std::move(item));
  Say(prefill, std::move(message));
}

void CoreHarness::Prefilled(WorkerId prefill) {
  const auto run = Last<wire::Run>(prefill);
  wire::WorkerMessage message;
  message.prefilled.push_back({.transfer = run.transfer, .attempt = run.attempt});
  Say(prefill, std::move(message));
}

void CoreHarness::Landed(WorkerId decode) {
  const auto reserve = Last<wire::Reserve>(decode);
  wire::Landed item;
  item.transfer = reserve.transfer;
  for (const wire::SequenceSpec& sequence : reserve.sequences)
    item.tokens.push_back(TokenAt(static_cast<int>(sequence.choice), reserve.prompt_tokens));
  wire::WorkerMessage message;
  message.landed.push_back(std::move(item));
  Say(decode, std::move(message));
}

void CoreHarness::Tokens(WorkerId decode, int sequence, int64_t first_position, int count) {
  const auto reserve = Last<wire::Reserve>(decode);
  const wire::SequenceSpec& spec = reserve.sequences.at(static_cast<size_t>(sequence));
  wire::SequenceStep step;
  step.handle = spec.handle;
  step.first_position = static_cast<uint32_t>(first_position);
  for (int i = 0; i < count; ++i)
    step.tokens.push_back(TokenAt(static_cast<int>(spec.choice), first_position + i));
  wire::WorkerMessage message;
  message.tokens.emplace().sequences.push_back(std::move(step));
  Say(decode, std::move(message));
}

void CoreHarness::Finished(WorkerId decode, int sequence) {
  const auto reserve = Last<wire::Reserve>(decode);
  wire::WorkerMessage message;
  message.finished.push_back({.handle = reserve.sequences.at(static_cast<size_t>(sequence)).handle,
                              .reason = FinishReason::kLength});
  Say(decode, std::move(message));
}

void CoreHarness::Refuse(WorkerId worker, wire::Stage stage, absl::StatusCode code,
                         bool lacks_grammar_room) {
  wire::Refused item;
  item.transfer = TransferAt(worker);
  item.stage = stage;
  item.code = code;
  item.message = "scripted refusal";
  item.lacks_grammar_room = lacks_grammar_room;
  wire::WorkerMessage message;
  message.refused.push_back(std::move(item));
  Say(worker, std::move(message));
}

void CoreHarness::FailTransfer(WorkerId worker, absl::StatusCode code) {
  wire::Failed item;
  item.transfer = TransferAt(worker);
  item.code = code;
  item.message = "scripted failure";
  wire::WorkerMessage message;
  message.failed.push_back(std::move(item));
  Say(worker, std::move(message));
}

void CoreHarness::ToDecoding(WorkerId prefill, WorkerId decode) {
  Reserved(decode);
  FirstToken(prefill);
  Prefilled(prefill);
  Landed(decode);
}

void CoreHarness::ToEnd(WorkerId decode) {
  const auto reserve = Last<wire::Reserve>(decode);
  for (int i = 0; i < static_cast<int>(reserve.sequences.size()); ++i) {
    const size_t forced = reserve.sequences[static_cast<size_t>(i)].received.size();
    const int64_t first = reserve.prompt_tokens + static_cast<int64_t>(std::max<size_t>(forced, 1));
    const int64_t end = reserve.prompt_tokens + reserve.finish.max_tokens;
    if (first < end) Tokens(decode, i, first, static_cast<int>(end - first));
    Finished(decode, i);
  }
}

std::string CoreHarness::State(RequestKey key) const {
  const auto state = core_.StateOf(key);
  return state ? RequestStateName(*state) : "ended";
}

std::optional<absl::Status> CoreHarness::EndOf(RequestKey key) const {
  const RequestLog& log = logs_.at(key);
  if (log.num_ended == 0) return std::nullopt;
  return log.end.status;
}

void CoreHarness::ExpectTokens(RequestKey key, int choice, int count) const {
  const auto& all = Log(key).tokens;
  const auto it = all.find(choice);
  const std::vector<int32_t> tokens = it == all.end() ? std::vector<int32_t>{} : it->second;
  ASSERT_EQ(static_cast<int>(tokens.size()), count) << "request " << key.value;
  for (int i = 0; i < count; ++i)
    EXPECT_EQ(tokens[static_cast<size_t>(i)], TokenAt(choice, prompt_tokens_.at(key) + i).token)
        << "request " << key.value << " choice " << choice << " token " << i;
}

void CoreHarness::ExpectQuiet() const {
  EXPECT_EQ(core_.num_live(), 0u);
  EXPECT_EQ(core_.num_open_transfers(), 0u);
  for (const auto& [key, log] : logs_)
    EXPECT_EQ(log.num_ended, 1) << "request " << key.value << " did not end once";
  for (const auto& [key, log] : told_)
    EXPECT_EQ(log.num_cancels + (log.is_session_lost ? 1 : 0) >= 1, true)
        << "worker " << std::get<0>(key).value << " was never told to forget a transfer";
  for (const auto& [worker_id, session] : sessions_) {
    const WorkerRecord* worker = core_.FindWorker(worker_id);
    EXPECT_EQ(worker->open_prefills, 0u);
    EXPECT_EQ(worker->open_tokens, 0u);
    EXPECT_EQ(worker->asked_pages, 0u);
    EXPECT_EQ(worker->asked_sequences, 0u);
    EXPECT_TRUE(worker->sequences.empty()) << "handles left at worker " << worker_id.value;
  }
  const RouterFacts facts = Facts();
  EXPECT_EQ(facts.queued_requests, 0u);
  EXPECT_EQ(facts.queued_tokens, 0u);
  EXPECT_EQ(facts.live_bytes, 0u);
  EXPECT_EQ(facts.outcomes.Total(), facts.requests);
}

}  // namespace baton::router
