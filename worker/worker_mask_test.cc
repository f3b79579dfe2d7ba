#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

#include "worker/test_worker.h"

// Constrained answers through a prefill worker and a decode worker, the router's part by hand.
namespace baton::worker {
namespace {

using testing::HasSubstr;

constexpr SessionId kSession{1};
constexpr char kGrammar[] =
    R"(start: %json {"type":"object","properties":{"name":{"type":"string","maxLength":8},)"
    R"("n":{"type":"integer","minimum":0,"maximum":99999}},"required":["name","n"],)"
    R"("additionalProperties":false,"x-guidance":{"whitespace_flexible":false}})";
// The lexer's states double with every place that the regex looks back.
constexpr char kGrowing[] = "start: /(a|b)*a(a|b){90}/";

TransferId Transfer(uint8_t i) {
  TransferId transfer;
  transfer.bytes[0] = i;
  return transfer;
}

class WorkerMaskTest : public testing::Test {
 protected:
  WorkerMaskTest() {
    prompt_.resize(300);
    for (size_t i = 0; i < prompt_.size(); ++i) prompt_[i] = 3 + static_cast<int32_t>(i * 7 % 500);
    rules_.grammar = kGrammar;
    rules_.forced_prefix = {700, 701};
    rules_.starts_in_reasoning = true;
    rules_.thinking_budget = 3;
    rules_.reasoning_bans = {DemoVocabulary().eos()};
  }
  void Add(const std::string& name, int num_drafts, const Vocabulary* vocabulary,
           const engine::GrammarLimits& grammar_limits = {}) {
    TestWorkerOptions options;
    options.grammar_limits = grammar_limits;
    options.name = name;
    options.incarnation = 11 + workers_.size();
    options.num_drafts = num_drafts;
    options.vocabulary = vocabulary;
    auto& worker = workers_[name];
    worker = std::make_unique<TestWorker>(options, network_, clock_);
    worker->core->Apply(SessionOpened{.session = kSession, .hello = {}});
  }
  void Tell(const std::string& name, wire::RouterMessage message) {
    workers_.at(name)->core->Apply(
        SessionMessage{.session = kSession, .message = std::move(message)});
  }
  template <typename Done>
  bool StepUntil(Done done, int rounds = 2000) {
    while (!done() && rounds-- > 0) {
      clock_.Advance(absl::Milliseconds(1));
      for (auto& [name, worker] : workers_) worker->Round();
    }
    return done();
  }
  template <typename T>
  std::vector<T> Said(const std::string& name, std::vector<T> wire::WorkerMessage::*field) {
    std::vector<T> all;
    for (const wire::WorkerMessage& message : workers_.at(name)->sender.sent[kSession])
      all.insert(all.end(), (message.*field).begin(), (message.*field).end());
    return all;
  }
  wire::Reserve MakeReserve(uint8_t transfer, std::vector<int32_t> received) {
    wire::Reserve reserve;
    reserve.transfer = Transfer(transfer);
    reserve.prompt_tokens = static_cast<uint32_t>(prompt_.size());
    reserve.num_pages = static_cast<uint32_t>(PagesFor(static_cast<int64_t>(prompt_.size())));
    reserve.sequences = {{.handle = {transfer}, .choice = 0, .received = std::move(received)}};
    reserve.sampling.seed = 99;
    reserve.finish = {.stop_tokens = {DemoVocabulary().eos()}, .max_tokens = 200, .min_tokens = 0};
    reserve.masks = rules_;
    return reserve;
  }
  // A booking alone; all refusals so far.
  std::vector<wire::Refused> Reserve(const std::string& name, uint8_t transfer) {
    wire::RouterMessage message;
    message.reserves = {MakeReserve(transfer, {})};
    Tell(name, std::move(message));
    StepUntil([] { return false; }, 5);
    return Said(name, &wire::WorkerMessage::refused);
  }
  // The whole answer; what `received` has is replayed first.
  std::vector<int32_t> Answer(const std::string& prefill, const std::string& decode,
                              uint8_t transfer, std::vector<int32_t> received = {}) {
    Send(prefill, decode, transfer, received);
    EXPECT_TRUE(StepUntil([&] { return HasEnded(decode, transfer); }));
    return TextOf(prefill, decode, transfer, std::move(received));
  }
  void Send(const std::string& prefill, const std::string& decode, uint8_t transfer,
            std::vector<int32_t> received = {}) {
    const wire::Reserve reserve = MakeReserve(transfer, std::move(received));
    wire::RouterMessage booking;
    booking.reserves = {reserve};
    booking.prompt_chunks = {{reserve.transfer, 0, prompt_, true}};
    const size_t before = Said(decode, &wire::WorkerMessage::reserved).size();
    Tell(decode, std::move(booking));
    const auto reserved = [&] { return Said(decode, &wire::WorkerMessage::reserved); };
    EXPECT_TRUE(StepUntil([&] { return reserved().size() > before; }));
    wire::Run run;
    run.landing = reserved().back().landing;
    run.transfer = reserve.transfer;
    run.prompt_tokens = reserve.prompt_tokens;
    run.sequences = reserve.sequences;
    run.sampling = reserve.sampling;
    run.finish = reserve.finish;
    run.masks = run_rules_.value_or(reserve.masks);
    wire::RouterMessage message;
    message.runs = {run};
    message.prompt_chunks = {{reserve.transfer, 0, prompt_, true}};
    Tell(prefill, std::move(message));
  }
  void Cancel(const std::string& name, uint8_t transfer, std::optional<uint32_t> sequence = {}) {
    wire::RouterMessage message;
    message.cancels = {{.transfer = Transfer(transfer), .sequence = sequence, .reason = "left"}};
    Tell(name, std::move(message));
  }
  bool HasFinished(const std::string& decode, uint8_t transfer) {
    for (const wire::Finished& f : Said(decode, &wire::WorkerMessage::finished))
      if (f.handle.value == transfer) return true;
    return false;
  }
  bool HasEnded(const std::string& decode, uint8_t transfer) {
    return HasFinished(decode, transfer) || !Said(decode, &wire::WorkerMessage::failed).empty();
  }
  std::vector<int32_t> TextOf(const std::string& prefill, const std::string& decode,
                              uint8_t transfer, std::vector<int32_t> text) {
    for (const wire::FirstToken& first : Said(prefill, &wire::WorkerMessage::first_tokens))
      if (first.transfer == Transfer(transfer) && text.empty())
        text.push_back(first.tokens.at(0).token);
    for (const wire::WorkerMessage& message : workers_.at(decode)->sender.sent[kSession]) {
      if (!message.tokens) continue;
      for (const wire::SequenceStep& step : message.tokens->sequences) {
        if (step.handle.value != transfer) continue;
        EXPECT_EQ(step.first_position, prompt_.size() + text.size());
        for (const TokenRecord& record : step.tokens) text.push_back(record.token);
      }
    }
    return text;
  }
  // Reasoning of three tokens at most, </think>, the prefix, JSON by the schema, eos.
  void ExpectFollowsRules(const std::vector<int32_t>& text) {
    const int32_t end_of_thinking = *DemoVocabulary().FindSpecial("</think>");
    const auto end = std::find(text.begin(), text.end(), end_of_thinking);
    ASSERT_LE(end - text.begin(), 3);
    ASSERT_GT(text.end() - end, 5);
    EXPECT_EQ(end[1], 700);
    EXPECT_EQ(end[2], 701);
    Matcher matcher = *Matcher::Create(DemoVocabulary(), kGrammar);
    for (auto token = end + 3; token + 1 != text.end(); ++token)
      ASSERT_TRUE(matcher.Consume(*token).ok());
    EXPECT_TRUE(matcher.IsAccepting());
    EXPECT_EQ(text.back(), DemoVocabulary().eos());
  }

  std::vector<int32_t> prompt_;
  MaskRules rules_;
  std::optional<MaskRules> run_rules_;  // of the prefill worker, if they are others
  ManualClock clock_;
  SeededRng rng_{3};
  kvtransfer::InprocNetwork network_{clock_, rng_};
  std::map<std::string, std::unique_ptr<TestWorker>> workers_;
};

TEST_F(WorkerMaskTest, AnswersFollowTheRulesAlikeForAnyNumberOfDrafts) {
  Add("p", 0, &DemoVocabulary());
  std::vector<int32_t> first;
  for (const int drafts : {0, 1, 3}) {
    const std::string name = absl::StrFormat("d%d", drafts);
    Add(name, drafts, &DemoVocabulary());
    for (size_t i = 0; i < first.size(); ++i)
      workers_.at(name)->runner.guesses[static_cast<int>(prompt_.size() + i)] = first[i];
    const std::vector<int32_t> text = Answer("p", name, static_cast<uint8_t>(1 + drafts));
    ExpectFollowsRules(text);
    if (first.empty()) first = text;
    EXPECT_EQ(text, first) << drafts;
    EXPECT_GE(workers_.at(name)->loop.counters().masks, text.size() - 1);
  }
  EXPECT_GT(workers_.at("d3")->loop.counters().accepted_drafts, 0u);
  EXPECT_EQ(workers_.at("p")->loop.counters().masks, 3u);  // the first token of each
  EXPECT_EQ(workers_.at("d0")->grammars->counters().compiled, 1u);
}

TEST_F(WorkerMaskTest, ThePrefillWorkerMasksTheFirstToken) {
  rules_.starts_in_reasoning = false;
  Add("p", 0, &DemoVocabulary());
  Add("d", 0, &DemoVocabulary());
  EXPECT_EQ(Answer("p", "d", 1).at(0), 700);
  rules_.forced_prefix.clear();
  const std::vector<int32_t> text = Answer("p", "d", 2);
  Matcher matcher = *Matcher::Create(DemoVocabulary(), kGrammar);
  EXPECT_TRUE(matcher.Consume(text.at(0)).ok());
}

// After the loss of a decode worker: what the client has is replayed, cut anywhere.
TEST_F(WorkerMaskTest, AReplayedAnswerGoesOnAlike) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 3, &DemoVocabulary());
  const std::vector<int32_t> text = Answer("p", "d", 1);
  for (size_t cut = 1; cut < text.size(); cut += 3) {
    const std::vector<int32_t> received(text.begin(), text.begin() + static_cast<long>(cut));
    EXPECT_EQ(Answer("p", "d", static_cast<uint8_t>(1 + cut), received), text) << cut;
  }
  EXPECT_EQ(workers_.at("d")->core->counters().replay_mismatches, 0u);
  EXPECT_EQ(workers_.at("d")->loop.counters().mask_failures, 0u);
}

TEST_F(WorkerMaskTest, RefusesRulesThatItCannotFollow) {
  Add("none", 0, nullptr);
  Add("d", 0, &DemoVocabulary());
  const auto refusal = [&](const std::string& name, const MaskRules& rules) -> std::string {
    wire::Reserve reserve = MakeReserve(1, {});
    reserve.masks = rules;
    wire::RouterMessage message;
    message.reserves = {reserve};
    const size_t before = Said(name, &wire::WorkerMessage::refused).size();
    Tell(name, std::move(message));
    EXPECT_TRUE(
        StepUntil([&] { return Said(name, &wire::WorkerMessage::refused).size() > before; }, 10));
    return Said(name, &wire::WorkerMessage::refused).back().message;
  };
  EXPECT_THAT(refusal("none", rules_), HasSubstr("has no vocabulary"));
  MaskRules rules = rules_;
  rules.forced_prefix = {999'999};
  EXPECT_THAT(refusal("d", rules), HasSubstr("masks.forced_prefix: token id 999999"));
}

// The engine does not wait for it: requests with other grammars and with none go on.
TEST_F(WorkerMaskTest, OnlyItsOwnSequenceWaitsForAGrammar) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 3, &DemoVocabulary());
  const std::vector<int32_t> text = Answer("p", "d", 1);
  TestWorker& d = *workers_.at("d");
  d.makes_masks = false;
  Send("p", "d", 2);
  EXPECT_FALSE(StepUntil([&] { return HasEnded("d", 2); }, 200));
  EXPECT_EQ(d.core->Gauges().landings_waiting, 1);
  const MaskRules rules = std::exchange(rules_, {});
  EXPECT_FALSE(Answer("p", "d", 3).empty());
  EXPECT_FALSE(HasEnded("d", 2));
  d.makes_masks = true;
  EXPECT_TRUE(StepUntil([&] { return HasEnded("d", 2); }));
  EXPECT_EQ(TextOf("p", "d", 2, {}), text);
  EXPECT_EQ(d.grammars->counters().compiled, 1u);

  TestWorker& p = *workers_.at("p");
  p.makes_masks = false;
  rules_ = rules;
  Send("p", "d", 4);
  StepUntil([] { return false; }, 100);
  EXPECT_EQ(p.core->Gauges().queued_prompts, 1);
  EXPECT_EQ(Said("p", &wire::WorkerMessage::progress).back().transfer, Transfer(4))
      << "it is not silent";
  rules_ = {};
  EXPECT_FALSE(Answer("p", "d", 5).empty());
  p.makes_masks = true;
  EXPECT_TRUE(StepUntil([&] { return HasEnded("d", 4); }));
  EXPECT_EQ(TextOf("p", "d", 4, {}), text);
}

TEST_F(WorkerMaskTest, RefusesWhenTooManyGrammarsWait) {
  Add("d", 0, &DemoVocabulary());
  workers_.at("d")->makes_masks = false;
  workers_.at("d")->mask_tasks.resize(kMaxMaskTasks);
  const auto refused = Reserve("d", 1);
  ASSERT_EQ(refused.size(), 1u);
  EXPECT_EQ(refused[0].code, absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(refused[0].lacks_grammar_room);
  EXPECT_GT(refused[0].retry_after_ms, 0u);
  StepUntil([] { return false; }, 20);
  EXPECT_EQ(workers_.at("d")->num_leaked(), 0);
  EXPECT_EQ(workers_.at("d")->core->Gauges().tail_buffers_free, 12);
}

// The router has compiled it too: a worker of another version, say.
TEST_F(WorkerMaskTest, AGrammarThatDoesNotCompileFailsItsRequest) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 0, &DemoVocabulary());
  rules_.grammar = R"(start: %json {"type":"strin"})";
  Send("p", "d", 1);
  EXPECT_TRUE(StepUntil([&] { return !Said("p", &wire::WorkerMessage::failed).empty(); }));
  const auto failed = Said("p", &wire::WorkerMessage::failed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].code, absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(failed[0].message, HasSubstr("masks.grammar: "));
  for (const char* name : {"p", "d"}) Cancel(name, 1);
  StepUntil([] { return false; }, 20);
  for (const char* name : {"p", "d"}) EXPECT_EQ(workers_.at(name)->num_leaked(), 0) << name;
  EXPECT_EQ(workers_.at("p")->core->counters().mask_failures, 0u) << "the client's fault";
}

TEST_F(WorkerMaskTest, AGrammarThatDoesNotCompileFailsItsLanding) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 0, &DemoVocabulary());
  const MaskRules good = std::exchange(rules_, RulesOf("start: nothing"));
  run_rules_ = good;  // what P is told
  Send("p", "d", 1);
  EXPECT_TRUE(StepUntil([&] { return !Said("d", &wire::WorkerMessage::failed).empty(); }));
  EXPECT_EQ(Said("d", &wire::WorkerMessage::failed)[0].code, absl::StatusCode::kInvalidArgument);
  StepUntil([] { return false; }, 50);
  EXPECT_EQ(workers_.at("d")->num_leaked(), 0);
}

TEST_F(WorkerMaskTest, AGrammarBeyondItsLimitEndsItsRequestAlone) {
  const Vocabulary small = *Vocabulary::FromTokenizerJson(DemoTokenizerJson(), 0, 200'000);
  Add("p", 0, &DemoVocabulary());
  Add("d", 3, &small);
  rules_ = RulesOf(kGrowing);
  Send("p", "d", 1);
  rules_.grammar = "start: /[0-9]{9}/";
  Send("p", "d", 2);
  EXPECT_TRUE(StepUntil([&] { return HasFinished("d", 2); }));
  EXPECT_TRUE(StepUntil([&] { return !Said("d", &wire::WorkerMessage::failed).empty(); }));
  const wire::Failed failed = Said("d", &wire::WorkerMessage::failed)[0];
  EXPECT_EQ(failed.handle->value, 1u) << failed.message;
  EXPECT_EQ(failed.code, absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(failed.message, HasSubstr("the limit is 200000"));
  EXPECT_EQ(workers_.at("d")->loop.counters().mask_limits, 1u);
  EXPECT_EQ(workers_.at("d")->loop.counters().mask_failures, 0u) << "the client's fault";
  StepUntil([] { return false; }, 50);
  EXPECT_EQ(workers_.at("d")->num_leaked(), 0);
}

// It may be tried elsewhere, and the worker's other sequences go on.
TEST_F(WorkerMaskTest, AGrammarThatFindsNoMoreMemoryEndsItsRequestAlone) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 3, &DemoVocabulary(), {.memory_bytes = size_t{1} << 20, .cache_bytes = 0});
  rules_ = RulesOf("start: /(a|b)*a(a|b){900}/");  // likewise, and long
  Send("p", "d", 1);
  rules_.grammar = "start: /[0-9]{9}/";
  Send("p", "d", 2);
  EXPECT_TRUE(StepUntil([&] { return HasFinished("d", 2); }));
  EXPECT_TRUE(StepUntil([&] { return !Said("d", &wire::WorkerMessage::failed).empty(); }));
  const auto all = Said("d", &wire::WorkerMessage::failed);
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].handle->value, 1u) << all[0].message;
  EXPECT_EQ(all[0].code, absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(all[0].message, HasSubstr("of 1048576 bytes"));
  StepUntil([] { return false; }, 50);
  const TestWorker& d = *workers_.at("d");
  EXPECT_EQ(d.loop.counters().mask_limits, 0u) << "another worker may have room";
  EXPECT_EQ(d.loop.counters().mask_failures, 0u);
  EXPECT_EQ(d.num_leaked(), 0);
  EXPECT_EQ(d.grammars->counters().memory_bytes, 0u);
  EXPECT_EQ(d.grammars->counters().memory_refusals, 1u);
}

TEST_F(WorkerMaskTest, RefusesWhileGrammarsFillItsMemory) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 0, &DemoVocabulary(), {.memory_bytes = size_t{3} << 18, .cache_bytes = 0});
  TestWorker& d = *workers_.at("d");
  d.makes_masks = false;  // what waits has its room
  EXPECT_TRUE(Reserve("d", 1).empty());
  wire::Run run;
  run.transfer = Transfer(2);
  run.prompt_tokens = 300;
  run.sequences = MakeReserve(2, {}).sequences;
  run.masks = rules_;
  wire::RouterMessage prompt;
  prompt.runs = {run};
  Tell("d", std::move(prompt));
  const auto refused = Reserve("d", 3);
  ASSERT_EQ(refused.size(), 2u);
  EXPECT_EQ(refused[0].stage, wire::Stage::kRun);
  EXPECT_EQ(refused[1].stage, wire::Stage::kReserve);
  for (const wire::Refused& refusal : refused) {
    EXPECT_EQ(refusal.code, absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(refusal.lacks_grammar_room) << "others may come";
    EXPECT_GT(refusal.retry_after_ms, 0u);
  }
  const MaskRules rules = std::exchange(rules_, {});
  auto pages = *d.pool.Book(d.pool.Counts().free);
  EXPECT_FALSE(Reserve("d", 4).at(2).lacks_grammar_room) << "it lacks pages";
  pages = engine::Booking();
  rules_ = rules;
  Cancel("d", 1);
  d.makes_masks = true;
  StepUntil([] { return false; }, 20);
  EXPECT_EQ(d.grammars->counters().memory_bytes, 0u);
  EXPECT_EQ(d.num_leaked(), 0);
  EXPECT_FALSE(Answer("p", "d", 3).empty()) << "there is room again";
}

TEST_F(WorkerMaskTest, ForgetsNoPrefixForAGrammarThatItRefuses) {
  Add("d", 0, &DemoVocabulary(), {.memory_bytes = size_t{3} << 18, .cache_bytes = 0});
  TestWorker& d = *workers_.at("d");
  const MaskRules rules = std::exchange(rules_, {});
  Answer("d", "d", 1);
  StepUntil([] { return false; }, 20);
  const int cached = d.pool.Counts().cached;
  ASSERT_GT(cached, 0);
  rules_ = rules;
  d.makes_masks = false;
  Reserve("d", 2);
  const auto others = *d.pool.Book(d.pool.Counts().free - 1);  // a landing needs a cached one
  EXPECT_EQ(Reserve("d", 3).size(), 1u);
  EXPECT_EQ(d.pool.Counts().cached, cached);
  rules_ = {};
  EXPECT_EQ(Reserve("d", 4).size(), 1u);
  EXPECT_LT(d.pool.Counts().cached, cached);
}

TEST_F(WorkerMaskTest, AChoiceThatIsCancelledWhileItWaitsFreesItsMasks) {
  Add("d", 0, &DemoVocabulary(), {.cache_bytes = 0});
  TestWorker& d = *workers_.at("d");
  const auto bytes = [&] { return d.grammars->counters().memory_bytes; };
  wire::Reserve reserve = MakeReserve(1, {});
  reserve.sequences.push_back({.handle = {2}, .choice = 1, .received = {}});
  reserve.sequences.push_back({.handle = {3}, .choice = 2, .received = {}});
  wire::RouterMessage message;
  message.reserves = {reserve};
  d.makes_masks = false;
  Tell("d", std::move(message));
  const size_t three = bytes();
  Cancel("d", 1, 2);
  EXPECT_LT(bytes(), three) << "its room";
  d.makes_masks = true;
  StepUntil([] { return false; }, 5);
  const size_t two = bytes();
  Cancel("d", 1, 0);
  EXPECT_LT(bytes(), two);
  EXPECT_GT(bytes(), 0u);
  Cancel("d", 1);
  EXPECT_EQ(bytes(), 0u);
}

// Whoever makes the masks of a step, and in what order.
TEST_F(WorkerMaskTest, MasksAreMadeInAnyOrder) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 3, &DemoVocabulary());
  const std::vector<int32_t> text = Answer("p", "d", 1);
  int most = 0;
  workers_.at("d")->loop.SetParallelFor([&](int parts, const std::function<void(int)>& fn) {
    most = std::max(most, parts);
    for (int part = parts - 1; part >= 0; --part) fn(part);
  });
  for (uint8_t i = 2; i < 6; ++i) Send("p", "d", i);
  for (uint8_t i = 2; i < 6; ++i) {
    EXPECT_TRUE(StepUntil([&] { return HasEnded("d", i); }));
    EXPECT_EQ(TextOf("p", "d", i, {}), text);
  }
  EXPECT_GT(most, 1);
}

TEST_F(WorkerMaskTest, ASequenceWithoutATokenLeftFailsAlone) {
  Add("p", 0, &DemoVocabulary());
  Add("d", 1, &DemoVocabulary());
  const std::vector<int32_t> text = Answer("p", "d", 1);
  std::vector<int32_t> received(text.begin(), text.begin() + 8);
  received.back() = *DemoVocabulary().FindSpecial("<think>");  // no grammar of ours has it
  Answer("p", "d", 2, received);
  const auto failed = Said("d", &wire::WorkerMessage::failed);
  ASSERT_EQ(failed.size(), 1u);
  EXPECT_EQ(failed[0].code, absl::StatusCode::kInternal);
  EXPECT_THAT(failed[0].message, HasSubstr("is not one the grammar allows"));
  EXPECT_EQ(workers_.at("d")->loop.counters().mask_failures, 1u);
}

}  // namespace
}  // namespace baton::worker
