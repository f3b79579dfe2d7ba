// Masks and drafts of constrained answers with the real tokenizer, each answer walked at random
// through its grammar. CPU time of this thread, so that a busy machine shows less.
// usage: grammar_bench --machine TEXT --commit ID --csv FILE
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/clock.h"
#include "common/rng.h"
#include "engine/grammar/mask_source.h"
#include "router/text/test_data.h"

namespace baton::engine {
namespace {

constexpr int kAnswers = 40;
constexpr int kMaxTokens = 120;

struct Grammar {
  const char* name;
  const char* text;
};
constexpr Grammar kGrammars[] = {
    {"schema",
     R"(start: %json {"type":"object","properties":{"name":{"type":"string","maxLength":40},)"
     R"("n":{"type":"integer"},"mail":{"type":"string","format":"email"},"place":{"type":"object",)"
     R"("properties":{"city":{"type":"string"},"zip":{"type":"string","pattern":"^[0-9]{5}$"}},)"
     R"("required":["city","zip"]},"tags":{"type":"array","items":{"enum":["a","bc","def"]}}},)"
     R"("required":["name","n","place","tags"],"additionalProperties":false})"},
    {"json", R"(start: %json {"type":"object"})"},
    {"regex", R"(start: /[A-Z][a-z]{2,20}( [A-Z][a-z]{2,20}){1,8}\./)"},
    {"words", R"(start: /[a-z]+( [a-z]+)*/)"},
    {"name", R"(start: /[A-Za-z_][A-Za-z0-9_]{0,60}(\.[A-Za-z_][A-Za-z0-9_]{0,60}){0,5}/)"},
    {"number", R"(start: /[0-9]{1,4}(-[0-9]{3,8}){2,12}/)"},
    {"line", R"(start: /[^\n]{10,300}/)"},
    {"sum",
     "start: expr\nexpr: expr OP expr | \"(\" expr \")\" | NAME | NUMBER\n"
     "OP: \" + \" | \" * \"\nNAME: /[a-z][a-z0-9_]*/\nNUMBER: /[0-9]+/\n"},
};

double CpuMicros() {
  timespec now{};
  CHECK(clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now) == 0);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

int32_t PickAllowed(TokenMask mask, Rng& rng) {
  std::vector<int32_t> allowed;
  for (size_t v = 0; v < 32 * mask.size(); ++v)
    if ((mask[v / 32] >> (v % 32) & 1) != 0) allowed.push_back(static_cast<int32_t>(v));
  CHECK(!allowed.empty());
  return allowed[rng.Below(allowed.size())];
}

struct Times {
  double compile_us = 0;
  std::vector<double> masks, takes;
};

void WalkOne(GrammarCache& grammars, const Grammar& grammar, Rng& rng, Times& times) {
  MaskRules rules;
  rules.grammar = grammar.text;
  MaskSource source = *MaskSource::Create(grammars, rules);
  MaskBuffer buffer;
  int32_t token = -1;
  for (int i = 0; i < kMaxTokens && token != grammars.vocabulary().eos(); ++i) {
    buffer.Clear();
    std::vector<TokenMask> masks;
    double start = CpuMicros();
    CHECK(source.AppendMasks({}, buffer, masks).ok());
    times.masks.push_back(CpuMicros() - start);
    token = PickAllowed(masks[0], rng);
    start = CpuMicros();
    CHECK(source.Take(token).ok());
    times.takes.push_back(CpuMicros() - start);
  }
}

double Quantile(std::vector<double>& values, double q) {
  std::ranges::sort(values);
  return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
}

std::string Row(const Vocabulary& vocabulary, const Grammar& grammar) {
  const SteadyClock clock;
  GrammarCache grammars(vocabulary, clock);
  SeededRng rng(3);
  Times times;
  const double start = CpuMicros();
  CHECK(grammars.Get(grammar.text).ok());
  times.compile_us = CpuMicros() - start;
  for (int i = 0; i < kAnswers; ++i) WalkOne(grammars, grammar, rng, times);
  return absl::StrFormat("%s,%d,%.0f,%.1f,%.1f,%.1f,%.1f,%.1f", grammar.name, times.masks.size(),
                         times.compile_us, Quantile(times.masks, 0.5), Quantile(times.masks, 0.9),
                         Quantile(times.masks, 0.99), Quantile(times.masks, 1),
                         Quantile(times.takes, 0.5));
}

int Main(int argc, char** argv) {
  std::map<std::string, std::string> options = {{"--machine", ""}, {"--commit", ""}, {"--csv", ""}};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (!options.contains(argv[i])) return 2;
    options[argv[i]] = argv[i + 1];
  }
  const Vocabulary vocabulary = *Vocabulary::FromTokenizerJson(router::RealTokenizerJson());
  std::string rows;
  for (const Grammar& grammar : kGrammars)
    rows += absl::StrFormat("\"%s\",%s,grammar_bench,%s\n", options["--machine"],
                            options["--commit"], Row(vocabulary, grammar));
  std::fputs(rows.c_str(), stdout);
  if (options["--csv"].empty()) return 0;
  const bool is_new = !std::ifstream(options["--csv"]).good();
  std::ofstream file(options["--csv"], std::ios::app);
  if (is_new)
    file << "machine,commit,command,grammar,masks,compile_us,mask_p50_us,mask_p90_us,mask_p99_us,"
            "mask_max_us,take_p50_us\n";
  file << rows;
  return file.good() ? 0 : 1;
}

}  // namespace
}  // namespace baton::engine

int main(int argc, char** argv) { return baton::engine::Main(argc, argv); }
