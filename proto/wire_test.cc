#include "proto/wire.h"

#include <gtest/gtest.h>

#include "common/hash.h"
#include "common/rng.h"
#include "proto/session.pb.h"

namespace baton::wire {
namespace {

template <typename Id>
Id Filled(uint8_t first) {
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(first + i);
  return id;
}

Landing SomeLanding() {
  return {.attempt = 2,
          .secret = Filled<Secret>(1),
          .incarnation = {77},
          .kv_address = "10.0.0.1:7000",
          .num_ranks = 2,
          .window = 64};
}

SamplingSpec SomeSampling() {
  return {.greedy = false,
          .inv_temperature = 1.25f,
          .seed = 1234,
          .top_k = 40,
          .top_p = 1u << 31,
          .min_p = 77,
          .repetition_penalty = 1.1f,
          .frequency_penalty = 0.5f,
          .presence_penalty = -0.5f,
          .logit_bias = {{3, -100.0f}, {9, 2.0f}},
          .allowed_tokens = {1, 2, 3},
          .bad_words = {{5}, {6, 7}},
          .top_logprobs = 2};
}

RouterMessage FullRouterMessage() {
  RouterMessage m;
  m.hello = RouterHello{.router_id = "router-0", .incarnation = {5}};
  m.beat = Beat{.number = 3, .echo = 2};
  m.cancels = {{.transfer = Filled<TransferId>(9), .sequence = 1, .reason = "client gone"}};
  const std::vector<SequenceSpec> sequences = {{.handle = {11}, .choice = 0, .received = {4, 5}},
                                               {.handle = {12}, .choice = 1, .received = {}}};
  const FinishRules finish = {.stop_tokens = {1}, .max_tokens = 100, .min_tokens = 2};
  const MaskRules masks = {.grammar = "start: /a/",
                           .forced_prefix = {8},
                           .starts_in_reasoning = true,
                           .thinking_budget = 0,
                           .reasoning_bans = {1}};
  m.reserves = {{.transfer = Filled<TransferId>(9),
                 .request_id = "r1",
                 .prompt_tokens = 700,
                 .num_pages = 3,
                 .sequences = sequences,
                 .sampling = SomeSampling(),
                 .finish = finish,
                 .masks = masks,
                 .prompt_class = Filled<ClassId>(2),
                 .decode_class = Filled<ClassId>(3),
                 .priority = -1,
                 .remaining_ms = 5000,
                 .salt = std::string("s\0t", 3)}};
  m.retargets = {{.transfer = Filled<TransferId>(9), .attempt = 2}};
  m.runs = {{.transfer = Filled<TransferId>(9),
             .attempt = 2,
             .request_id = "r1",
             .landing = SomeLanding(),
             .prompt_tokens = 700,
             .sequences = sequences,
             .sampling = SomeSampling(),
             .finish = finish,
             .masks = masks,
             .prompt_logprobs = 0,
             .verified_pages = {true, false, true},
             .prompt_class = Filled<ClassId>(2),
             .priority = 3,
             .remaining_ms = 1,
             .salt = "salt"}};
  m.prompt_chunks = {
      {.transfer = Filled<TransferId>(9), .offset = 0, .tokens = {0, 1, 4095}, .is_last = true}};
  m.moves = {{.handle = {11}, .transfer = Filled<TransferId>(10), .landing = SomeLanding()}};
  m.drain = Drain{30000};
  return m;
}

// What a worker says about running sequences and about itself.
void AddReports(const TransferId& transfer, const std::vector<TokenRecord>& tokens,
                WorkerMessage& m) {
  m.tokens = Tokens{
      .step = 5,
      .sequences = {
          {.handle = {11}, .first_position = 700, .tokens = tokens, .queue_us = 4, .step_us = 5},
          {.handle = {12},
           .first_position = 701,
           .tokens = {tokens[0]},
           .queue_us = 0,
           .step_us = 0}}};
  m.finished = {{.handle = {11}, .reason = FinishReason::kLength},
                {.handle = {12}, .reason = FinishReason::kStop, .stop_token = 1}};
  m.failed = {{.transfer = transfer,
               .handle = SequenceHandle{12},
               .code = absl::StatusCode::kDataLoss,
               .message = "digest"}};
  m.parked = {{11}};
  m.resumed = {{12}};
  m.load = Load{.free_pages = 1,
                .booked_pages = 2,
                .leased_pages = 3,
                .cached_pages = 4,
                .quarantined_pages = 5,
                .running = 6,
                .waiting = 7,
                .queued_prompt_tokens = 8,
                .prefill_tokens_per_s = 9,
                .last_step_us = 10,
                .host_pages = 11,
                .is_draining = true};
  m.cache_events = {{.generation = 1,
                     .is_snapshot = true,
                     .part = 0,
                     .is_last = true,
                     .added = {Filled<PageName>(1), Filled<PageName>(2)},
                     .removed = {Filled<PageName>(3)}}};
}

WorkerMessage FullWorkerMessage() {
  WorkerMessage m;
  const TransferId transfer = Filled<TransferId>(9);
  const std::vector<TokenRecord> tokens = {
      {.token = 7, .logprob = -0.5f, .top = {{7, -0.5f}, {8, -1.5f}}},
      {.token = 9, .logprob = -2.0f, .top = {}}};
  m.hello = WorkerHello{.worker_id = "w",
                        .incarnation = {1},
                        .serves_prefill = true,
                        .serves_decode = true,
                        .weights = Filled<WeightsId>(1),
                        .layout = Filled<LayoutId>(2),
                        .prompt_class = Filled<ClassId>(3),
                        .decode_class = Filled<ClassId>(3),
                        .kv_address = "a:1",
                        .kv_transports = "tcp",
                        .num_ranks = 1,
                        .pages = 512,
                        .max_sequences = 64,
                        .max_context = 8192,
                        .build_version = "0.1.0"};
  m.beat =
      Beat{.number = 1, .echo = 4, .engine_steps = 10, .since_step_us = 900, .is_wedged = true};
  m.reserved = {{.transfer = transfer, .landing = SomeLanding(), .booking_us = 12}};
  m.refused = {{.transfer = transfer,
                .stage = Stage::kRun,
                .code = absl::StatusCode::kResourceExhausted,
                .message = "full",
                .retry_after_ms = 9,
                .lacks_grammar_room = true}};
  m.retargeted = {{.transfer = transfer, .attempt = 2, .verified_pages = {false, true}}};
  m.first_tokens = {{.transfer = transfer,
                     .attempt = 1,
                     .tokens = tokens,
                     .cached_tokens = 256,
                     .queue_us = 1,
                     .prefill_us = 2}};
  m.prompt_logprobs = {{.transfer = transfer, .first_position = 1, .tokens = tokens}};
  m.progress = {{.transfer = transfer, .attempt = 1, .computed_tokens = 256, .acked_blocks = 1}};
  m.prefilled = {{.transfer = transfer, .attempt = 1}};
  m.landed = {{.transfer = transfer, .attempt = 1, .tokens = tokens, .transfer_us = 3}};
  AddReports(transfer, tokens, m);
  return m;
}

template <typename Proto, typename Plain>
Plain RoundTrip(const Plain& message) {
  Proto out;
  ToProto(message, out);
  Proto parsed;
  EXPECT_TRUE(parsed.ParseFromString(out.SerializeAsString()));
  const auto back = FromProto(parsed);
  EXPECT_TRUE(back.ok()) << back.status();
  return back.ok() ? *back : Plain{};
}

template <typename Proto, typename Plain>
std::string GoldenHash(const Plain& message) {
  Proto out;
  ToProto(message, out);
  const Sha256Bytes hash = Sha256Of(out.SerializeAsString());
  return ToHex(hash.data(), 8);
}

TEST(Wire, RouterMessageSurvivesTheWire) {
  EXPECT_EQ(RoundTrip<pb::RouterMessage>(FullRouterMessage()), FullRouterMessage());
  EXPECT_EQ(RoundTrip<pb::RouterMessage>(RouterMessage{}), RouterMessage{});
  RouterMessage drops;
  drops.drops_cache = true;
  EXPECT_EQ(RoundTrip<pb::RouterMessage>(drops), drops);
}

TEST(Wire, AMoveStopsASequenceOrNamesItsNewPlace) {
  RouterMessage m;
  m.moves = {{.handle = {11}, .transfer = {}, .landing = {}},
             {.handle = {12}, .transfer = Filled<TransferId>(10), .landing = SomeLanding()}};
  m.reserves = FullRouterMessage().reserves;
  m.reserves[0].sequences.resize(1);
  m.reserves[0].lands_received = true;
  EXPECT_EQ(RoundTrip<pb::RouterMessage>(m), m);
  m.reserves[0].sequences.resize(2);
  pb::RouterMessage message;
  ToProto(m, message);
  EXPECT_EQ(FromProto(message).status().message(),
            "reserve.lands_received: 2 sequences, only one can move");
}

TEST(Wire, WorkerMessageSurvivesTheWire) {
  EXPECT_EQ(RoundTrip<pb::WorkerMessage>(FullWorkerMessage()), FullWorkerMessage());
  EXPECT_EQ(RoundTrip<pb::WorkerMessage>(WorkerMessage{}), WorkerMessage{});
}

// The bytes of a full message: a change here breaks clusters that roll one pod at a time.
TEST(Wire, BytesOfFullMessagesStayTheSame) {
  EXPECT_EQ(GoldenHash<pb::RouterMessage>(FullRouterMessage()), "dcead27da1c59784");
  EXPECT_EQ(GoldenHash<pb::WorkerMessage>(FullWorkerMessage()), "df00b89851d085b2");
}

TEST(Wire, ErrorsNameFieldValueAndLimit) {
  const auto error_of = [](auto mutate) {
    pb::RouterMessage message;
    ToProto(FullRouterMessage(), message);
    mutate(message);
    const auto result = FromProto(message);
    return result.ok() ? std::string("accepted") : std::string(result.status().message());
  };
  EXPECT_EQ(error_of([](auto& m) { m.mutable_reserves(0)->set_transfer("short"); }),
            "reserve.transfer: 5 bytes, want 16");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_reserves(0)->set_prompt_tokens(2'000'000); }),
            "reserve.prompt_tokens: 2000000 is outside 1..1048576");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_reserves(0)->set_num_pages(1); }),
            "reserve.num_pages: 1 is outside 3..4097");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_runs(0)->mutable_sampling()->set_top_p(0); }),
            "sampling.top_p: 0 is outside 1..4294967296");
  EXPECT_EQ(
      error_of([](auto& m) { m.mutable_runs(0)->mutable_masks()->set_thinking_budget(2'000'000); }),
      "masks.thinking_budget: 2000000 is outside 0..1048576");
  EXPECT_EQ(
      error_of([](auto& m) {
        m.mutable_runs(0)->mutable_masks()->set_grammar(std::string(kMaxGrammarBytes + 1, 'x'));
      }),
      "masks.grammar: size 262145 is above 262144");
  EXPECT_EQ(
      error_of([](auto& m) { m.mutable_runs(0)->mutable_sampling()->set_inv_temperature(0); }),
      "sampling.inv_temperature: 0 is not above 0");
  EXPECT_EQ(
      error_of([](auto& m) { m.mutable_runs(0)->mutable_verified_pages()->set_num_bits(99); }),
      "run.verified_pages: 1 bytes for 99 bits");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_runs(0)->mutable_landing()->set_attempt(0); }),
            "landing.attempt: 0 is outside 1..1000");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_prompt_chunks(0)->clear_tokens(); }),
            "prompt_chunk.tokens: 0 is outside 1..65536");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_hello()->set_protocol_version(9); }),
            "hello.protocol_version: 9 is outside 1..1");
  EXPECT_EQ(error_of([](auto& m) { m.mutable_drain()->set_remaining_ms(-1); }),
            "drain.remaining_ms: 18446744073709551615 is outside 0..1099511627776");
}

TEST(Wire, TokenColumnsMustAgree) {
  pb::WorkerMessage message;
  ToProto(FullWorkerMessage(), message);
  message.mutable_tokens()->set_counts(0, 9);
  EXPECT_FALSE(FromProto(message).ok());
  ToProto(
      FullWorkerMessage(), *[&] {
        message.Clear();
        return &message;
      }());
  message.mutable_first_tokens(0)->mutable_tokens()->add_top_tokens(3);
  EXPECT_FALSE(FromProto(message).ok());
  ToProto(
      FullWorkerMessage(), *[&] {
        message.Clear();
        return &message;
      }());
  message.mutable_cache_events(0)->set_added("seventeen bytes!!");
  EXPECT_FALSE(FromProto(message).ok());
}

TEST(Wire, LargestPartsStayUnderOneMegabyte) {
  WorkerMessage names;
  names.cache_events = {{.generation = 1,
                         .is_snapshot = true,
                         .part = 0,
                         .is_last = false,
                         .added = std::vector<PageName>(kMaxCacheNames),
                         .removed = {}}};
  WorkerMessage logprobs;
  const TokenRecord record = {.token = 4095,
                              .logprob = -1.0f,
                              .top = std::vector<TokenLogprob>(20, TokenLogprob{4000, -3.0f})};
  logprobs.prompt_logprobs = {{.transfer = Filled<TransferId>(1),
                               .first_position = 1,
                               .tokens = std::vector<TokenRecord>(kMaxPromptLogprobs, record)}};
  RouterMessage prompt;
  prompt.prompt_chunks = {{.transfer = Filled<TransferId>(1),
                           .offset = 0,
                           .tokens = std::vector<int32_t>(kMaxPromptChunk, 129'279),
                           .is_last = true}};
  pb::WorkerMessage worker;
  ToProto(names, worker);
  EXPECT_LT(worker.ByteSizeLong(), kMaxMessageBytes);
  worker.Clear();
  ToProto(logprobs, worker);
  EXPECT_LT(worker.ByteSizeLong(), kMaxMessageBytes);
  pb::RouterMessage router;
  ToProto(prompt, router);
  EXPECT_LT(router.ByteSizeLong(), kMaxMessageBytes);
}

// Damaged bytes are refused or read as some valid message; what was read converts back without
// loss.
TEST(Wire, DamagedBytesNeverBreakTheReader) {
  pb::RouterMessage router;
  ToProto(FullRouterMessage(), router);
  pb::WorkerMessage worker;
  ToProto(FullWorkerMessage(), worker);
  SeededRng rng(7);
  int accepted = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string bytes = round % 2 == 0 ? router.SerializeAsString() : worker.SerializeAsString();
    for (uint64_t edits = 1 + rng.Below(4); edits > 0; --edits)
      bytes[rng.Below(bytes.size())] = static_cast<char>(rng.Next());
    pb::RouterMessage damaged_router;
    pb::WorkerMessage damaged_worker;
    if (round % 2 == 0 && damaged_router.ParseFromString(bytes))
      accepted += FromProto(damaged_router).ok() ? 1 : 0;
    if (round % 2 == 1 && damaged_worker.ParseFromString(bytes))
      accepted += FromProto(damaged_worker).ok() ? 1 : 0;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 4000);
}

}  // namespace
}  // namespace baton::wire
