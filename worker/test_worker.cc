#include "worker/test_worker.h"

#include <cstring>
#include <utility>

#include "common/check.h"

namespace baton::worker {
namespace {

constexpr uint64_t kStateOffset = kernels::TailHeader::kBytes;  // the window section's first bytes
constexpr int kPageRows = kPageTokens;

std::byte RowByte(int32_t token, int position) {
  return static_cast<std::byte>(
      Mix64(static_cast<uint64_t>(token) * 1000003 + static_cast<uint64_t>(position)) | 1);
}

engine::TokenMask MaskOf(const engine::SequenceRun& run, int row) {
  return run.masks.empty() ? engine::TokenMask() : run.masks[static_cast<size_t>(row)];
}

WorkerSetup MakeSetup(const TestWorkerOptions& options) {
  WorkerSetup setup{.worker_id = options.name,
                    .incarnation = Incarnation{options.incarnation},
                    .serves_prefill = options.serves_prefill,
                    .serves_decode = options.serves_decode,
                    .weights = {},
                    .layout_id = TestLayout().Id(),
                    .prompt_class = {},
                    .decode_class = {},
                    .kv_address = options.name,
                    .layout = TestLayout(),
                    .pages_region = {},
                    .tails_region = {},
                    .tail_memory = {},
                    .tail_stride = 0,
                    .limits = options.limits};
  setup.weights.bytes[0] = 7;
  setup.prompt_class.bytes[0] = setup.decode_class.bytes[0] = 9;
  setup.limits.max_context = 4096;
  setup.tail_stride = kernels::MaxTailBytes(setup.layout, 4);
  return setup;
}

}  // namespace

kernels::PageLayout TestLayout() {
  return kernels::PageLayout({.head_dim = 128,
                              .rope_dim = 64,
                              .index_head_dim = 32,
                              .window = 128,
                              .hc_mult = 4,
                              .hidden_size = 128,
                              .num_layers = 2,
                              .num_mtp_layers = 0,
                              .csa_layers = {1},
                              .hca_layers = {}});
}

void HashRunner::ComputeRow(const engine::Sequence& sequence, int position, int32_t token) {
  Slot& slot = slots_[static_cast<size_t>(sequence.tail_slot)];
  CHECK(slot.num_tokens == static_cast<uint64_t>(position));
  slot.hash =
      Mix64(slot.hash ^ (static_cast<uint64_t>(token) << 20) ^ static_cast<uint64_t>(position));
  ++slot.num_tokens;
  const PageId page = sequence.pages.ids()[static_cast<size_t>(position / kPageRows)];
  pool_.Data(page)[position % kPageRows] = RowByte(token, position);
}

int32_t HashRunner::Choose(const engine::Sequence& sequence, int choice, int position,
                           engine::TokenMask mask) const {
  uint64_t hash =
      slots_[static_cast<size_t>(sequence.tail_slot)].hash + static_cast<uint64_t>(choice);
  if (!sequence.sampling.greedy) hash ^= Mix64(sequence.sampling.seed + uint64_t(position));
  if (sequence.sampling.frequency_penalty != 0)
    hash ^= Mix64(static_cast<uint64_t>(position + 1 - sequence.prompt_tokens));
  for (int p = 0; p <= position; ++p) {
    const PageId page = sequence.pages.ids()[static_cast<size_t>(p / kPageRows)];
    hash = hash * 31 + static_cast<uint64_t>(pool_.Data(page)[p % kPageRows]);
  }
  hash = Mix64(hash);
  if (mask.empty()) return static_cast<int32_t>(2 + hash % 997);
  std::vector<int32_t> allowed;
  for (size_t token = 0; token < 32 * mask.size(); ++token)
    if ((mask[token / 32] >> (token % 32) & 1) != 0) allowed.push_back(static_cast<int32_t>(token));
  CHECK(!allowed.empty());
  return allowed[hash % allowed.size()];
}

// The prompt's token after a row, with a number that depends on all rows before it.
TokenRecord HashRunner::ScoreNext(const engine::Sequence& sequence, int position) const {
  TokenRecord record;
  record.token = sequence.tokens[static_cast<size_t>(position) + 1];
  record.logprob = -static_cast<float>(Choose(sequence, 0, position));
  record.top.assign(static_cast<size_t>(sequence.prompt_logprobs), {.token = 1, .logprob = -1});
  return record;
}

void HashRunner::Verify(const engine::Sequence& sequence, const engine::SequenceRun& run,
                        engine::SequenceTokens& result) {
  CHECK(run.rows >= 1 && static_cast<size_t>(run.rows) <= 1 + sequence.drafts.size());
  std::vector<TokenRecord> chosen;
  for (int row = 0; row < run.rows; ++row) {
    const bool is_draft = row > 0;
    const int32_t token =
        is_draft ? sequence.drafts[static_cast<size_t>(row) - 1] : sequence.tokens.back();
    if (is_draft && token != chosen.back().token) break;
    const int position = run.first_position + row;
    ComputeRow(sequence, position, token);
    chosen.push_back({.token = Choose(sequence, sequence.choices[0], position, MaskOf(run, row)),
                      .logprob = 0,
                      .top = {}});
  }
  result.accepted_rows = static_cast<int>(chosen.size());
  const int last = run.first_position + result.accepted_rows - 1;
  result.next_drafts = Draft(sequence, last, chosen.back().token);
  result.tokens.push_back(std::move(chosen));
}

std::vector<int32_t> HashRunner::Draft(const engine::Sequence& sequence, int position,
                                       int32_t next) {
  std::vector<int32_t> drafts;
  Slot& slot = slots_[static_cast<size_t>(sequence.tail_slot)];
  const Slot accepted = slot;
  while (static_cast<int>(drafts.size()) < num_drafts_ &&
         ++position < sequence.pages.size() * kPageRows) {
    ComputeRow(sequence, position, next);
    next = Choose(sequence, sequence.choices[0], position);
    if (const auto guess = guesses.find(position + 1); guess != guesses.end()) next = guess->second;
    drafts.push_back(position % 3 == 0 ? next + 1 : next);
  }
  slot = accepted;
  return drafts;
}

absl::Status HashRunner::LaunchFinish(const engine::StepPlan& plan,
                                      const engine::SequenceTable& sequences) {
  engine::Harvest harvest{.step = plan.step, .sequences = {}};
  for (const engine::SequenceRun& run : plan.runs) {
    const engine::Sequence& sequence = sequences.Get(run.sequence);
    engine::SequenceTokens result{.sequence = run.sequence,
                                  .accepted_rows = run.rows,
                                  .tokens = {},
                                  .prompt_logprobs = {},
                                  .next_drafts = {},
                                  .status = {}};
    if (run.kind == engine::RowKind::kVerify) {
      Verify(sequence, run, result);
      harvest.sequences.push_back(std::move(result));
      continue;
    }
    const int last = run.first_position + run.rows - 1;
    for (int position = run.first_position; position <= last; ++position) {
      ComputeRow(sequence, position, sequence.tokens[static_cast<size_t>(position)]);
      if (run.kind == engine::RowKind::kPrefill && sequence.prompt_logprobs >= 0 &&
          position + 1 < sequence.prompt_tokens)
        result.prompt_logprobs.push_back(ScoreNext(sequence, position));
      if (run.kind != engine::RowKind::kReplay) continue;
      const int32_t chosen = Choose(sequence, sequence.choices[0], position,
                                    MaskOf(run, position - run.first_position));
      if (chosen != sequence.tokens[static_cast<size_t>(position) + 1]) ++result.replay_mismatches;
    }
    if (run.samples_first_token) {
      for (const int choice : sequence.choices)
        result.tokens.push_back(
            {{.token = Choose(sequence, choice, last, MaskOf(run, 0)), .logprob = 0, .top = {}}});
    }
    harvest.sequences.push_back(std::move(result));
  }
  harvest_ = std::move(harvest);
  return absl::OkStatus();
}

absl::Status HashRunner::PackTail(const kernels::TailArgs& args) {
  const Slot& slot = slots_[static_cast<size_t>(args.tail_slot)];
  CHECK(slot.num_tokens == args.num_tokens);
  std::memcpy(args.wire.data() + kStateOffset, &slot, sizeof(slot));
  return absl::OkStatus();
}

absl::Status HashRunner::UnpackTail(const kernels::TailArgs& args) {
  Slot& slot = slots_[static_cast<size_t>(args.tail_slot)];
  std::memcpy(&slot, args.wire.data() + kStateOffset, sizeof(slot));
  CHECK(slot.num_tokens == args.num_tokens);
  return absl::OkStatus();
}

TestWorker::TestWorker(const TestWorkerOptions& options, kvtransfer::InprocNetwork& network,
                       ManualClock& clock)
    : memory(static_cast<size_t>(options.num_pages) * TestLayout().stride_bytes()),
      setup(MakeSetup(options)),
      rng(options.incarnation),
      pool(memory.data(), options.num_pages, setup.layout.stride_bytes(),
           setup.layout.payload_bytes()),
      planner({.batch = {.max_sequences = options.num_slots,
                         .max_rows = 64,
                         .num_drafts = options.num_drafts},
               .chunk = {.chunk_tokens = kPageTokens},
               .max_rows = 64 + kPageTokens}),
      runner(pool, options.num_slots, options.num_drafts),
      loop(pool, planner, runner, clock, setup.layout),
      transport(network.Create(options.name, setup.incarnation)),
      watch(clock, absl::Seconds(2)) {
  if (options.vocabulary != nullptr) {
    grammars.emplace(*options.vocabulary, clock, options.grammar_limits);
    masks.emplace(*grammars, [this](std::function<void()> task) {
      if (mask_tasks.size() == kMaxMaskTasks) return false;
      mask_tasks.push_back(std::move(task));
      return true;
    });
    setup.masks = &*masks;
  }
  tail_memory.resize(12 * setup.tail_stride);
  setup.tail_memory = tail_memory;
  setup.pages_region = *transport->Register(memory, kvtransfer::MemoryKind::kHost);
  setup.tails_region = *transport->Register(tail_memory, kvtransfer::MemoryKind::kHost);
  digester.AddRegion(setup.pages_region, memory);
  digester.AddRegion(setup.tails_region, tail_memory);
  agent = std::make_unique<kvtransfer::TransferAgent>(
      kvtransfer::AgentConfig{.incarnation = setup.incarnation, .limits = {}}, *transport, digester,
      clock);
  core = std::make_unique<WorkerCore>(CoreParts{.setup = setup,
                                                .loop = loop,
                                                .sender = sender,
                                                .agent = *this,
                                                .watch = watch,
                                                .clock = clock,
                                                .rng = rng});
}

void TestWorker::Round() {
  if (makes_masks && !mask_tasks.empty()) {  // one a round, as a thread of its own would
    mask_tasks.front()();
    mask_tasks.pop_front();
  }
  agent->RunOnce();
  const auto ran = core->RunOnce();
  CHECK(ran.ok());
  CHECK(pool.CheckCounts().ok());
}

int TestWorker::num_leaked() const {
  const engine::PoolCounts counts = pool.Counts();
  return counts.total - counts.free - counts.cached;
}

}  // namespace baton::worker
