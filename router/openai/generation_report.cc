#include <algorithm>
#include <utility>

#include "router/openai/generation.h"

// The parts of a generation about logprobs: the report on a prompt, the echo, whole answers.
namespace baton::router {
namespace {

constexpr size_t kMaxEntriesHere = 1024;  // formatted within 1 ms

// Token and best entries alike.
size_t EntriesOf(const std::vector<TokenRecord>& records) {
  return records.empty() ? 0 : records.size() * (1 + records.back().top.size());
}

}  // namespace

bool Generation::IsReportDue(size_t part) const {
  return job_.request.prompt_logprobs &&
         parts_[part].report.size() + 1 < job_.prompts[part]->size();
}

void Generation::On(size_t part, const PromptLogprobsEmitted& event) {
  std::vector<TokenRecord>& report = parts_[part].report;
  report.insert(report.end(), event.tokens.begin(), event.tokens.end());
  if (IsReportDue(part)) return;
  if (!job_.params.is_stream || !job_.params.echoes || !job_.params.wants_logprobs)
    return OnReportComplete(part);
  parts_[part].is_formatting = true;
  Format(
      EntriesOf(report), [this, part] { parts_[part].echo = MakeEcho(part); },
      [this, part] { OnReportComplete(part); });
}

void Generation::OnReportComplete(size_t part) {
  parts_[part].is_formatting = false;
  if (job_.params.scores_only && !is_over_) EndScored(part);
  OnEvents(part, std::exchange(parts_[part].held, {}));
}

// `make` touches only what nothing else does before `use`, which runs on this thread. A pool that
// has no room must not cost an answer that is complete: it is then made here.
void Generation::Format(size_t num_entries, const std::function<void()>& make,
                        const std::function<void()>& use) {
  const bool is_taken =
      num_entries > kMaxEntriesHere &&
      context_.cpu_pool.TryRun([self = shared_from_this(), exchange = exchange_, make, use] {
        make();
        exchange->Post([self, use] { use(); });
      });
  if (is_taken) return;
  make();
  use();
}

// Nothing is generated: the engine's one token is neither shown nor counted.
void Generation::EndScored(size_t part) {
  for (int k = 0; k < job_.params.num_choices; ++k) {
    Choice& choice = ChoiceOf(part, k);
    if (choice.is_ended) continue;
    context_.dispatcher.Cancel(parts_[part].key, k, "the prompt is scored");
    EndChoice(choice, {.finish_reason = "length"});
  }
}

// The echoed prompt as the arrays of its answer show it; the first token has no value.
std::vector<TokenRecord> Generation::EchoRecords(size_t part) const {
  std::vector<TokenRecord> records = {
      {.token = job_.prompts[part]->front(), .logprob = 0, .top = {}}};
  records.insert(records.end(), parts_[part].report.begin(), parts_[part].report.end());
  const auto entries = static_cast<size_t>(std::max(job_.params.sampling.top_logprobs, 0));
  for (TokenRecord& record : records)
    if (record.top.size() > entries) record.top.resize(entries);
  return records;
}

Generation::Echo Generation::MakeEcho(size_t part) const {
  Echo echo;
  echo.logprobs = TextLogprobsJson(EchoRecords(part), context_.tokenizer, job_.params.tokens_as_ids,
                                   echo.text_offset,
                                   /*starts_prompt=*/true);
  return echo;
}

// Of logprobs in an answer that is not streamed.
size_t Generation::NumEntries() const {
  const GenerateParams& params = job_.params;
  size_t entries = 0;
  if (params.prompt_logprobs || params.echoes)
    for (const Part& part : parts_)
      entries += EntriesOf(part.report) * static_cast<size_t>(params.num_choices);
  for (const Choice& choice : choices_) entries += EntriesOf(choice.records);
  return entries;
}

// Takes the choices' texts. The generation is over: nothing else touches them.
std::string Generation::WholeAnswer() {
  std::vector<ChoiceText> texts;
  for (size_t i = 0; i < choices_.size(); ++i) {
    FillLogprobs(i);
    texts.push_back(std::move(choices_[i].text));
  }
  return job_.writer->Whole(texts, Usage());
}

// Of an answer that is not streamed.
void Generation::FillLogprobs(size_t choice_index) {
  Choice& choice = choices_[choice_index];
  const GenerateParams& params = job_.params;
  const size_t part = choice_index / static_cast<size_t>(params.num_choices);
  const bool is_chat = job_.head.kind == CompletionKind::kChat;
  const bool is_first = choice_index % static_cast<size_t>(params.num_choices) == 0;
  if (params.prompt_logprobs && (!is_chat || is_first))
    choice.text.prompt_logprobs =
        PromptLogprobsJson(parts_[part].report, context_.tokenizer, *params.prompt_logprobs);
  if (!params.wants_logprobs) return;
  std::vector<TokenRecord> records;
  if (params.echoes) records = EchoRecords(part);
  records.insert(records.end(), choice.records.begin(), choice.records.end());
  int64_t offset = 0;
  choice.text.logprobs =
      is_chat ? ChatLogprobsJson(records, context_.tokenizer, params.tokens_as_ids)
              : TextLogprobsJson(records, context_.tokenizer, params.tokens_as_ids, offset,
                                 /*starts_prompt=*/params.echoes);
}

}  // namespace baton::router
