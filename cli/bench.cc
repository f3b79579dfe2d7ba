#include "cli/bench.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <sys/resource.h>
#include <unistd.h>
#include <utility>

#include "absl/strings/str_format.h"
#include "cli/bench_client.h"
#include "cli/bench_stats.h"
#include "cli/http_client.h"
#include "cli/replies.h"

#include "common/clock.h"
#include "common/rng.h"
#include "common/status.h"

namespace baton::cli {
namespace {

// Thousands of streams want as many sockets.
void RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::StatusOr<std::string> FirstModel(const BenchOptions& options, HttpUrl url) {
  url.path += "/v1/models";
  ASSIGN_OR_RETURN(const HttpReply reply,
                   Fetch({.url = std::move(url), .api_key = options.api_key}));
  std::string model = reply.status == 200 ? FirstModelOf(reply.body) : "";
  if (model.empty())
    return absl::UnavailableError(absl::StrFormat(
        "%s/v1/models names no model (status %d): give --model", options.url, reply.status));
  return model;
}

absl::StatusOr<std::vector<FilePrompt>> ReadPromptsFile(const std::string& path) {
  if (path.empty()) return std::vector<FilePrompt>{};
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  std::error_code error;
  if (!file.is_open() || std::filesystem::is_directory(path, error))
    return absl::InvalidArgumentError(absl::StrFormat("%s cannot be read", path));
  auto prompts = ReadPrompts(text.str());
  if (prompts.ok()) return prompts;
  return absl::InvalidArgumentError(
      absl::StrFormat("%s: %s", path, std::string(prompts.status().message())));
}

void ShowProgress(const BenchProgress& progress) {
  if (isatty(STDERR_FILENO) == 0) return;
  const double seconds = std::max(absl::ToDoubleSeconds(progress.elapsed), 1e-3);
  std::fprintf(stderr, "\r%zu of %zu ended, %zu running, %zu failed, %.1f chunks/s, %.0f s \033[K",
               progress.num_ended, progress.num_planned, progress.num_running, progress.num_failed,
               static_cast<double>(progress.chunks) / seconds, seconds);
}

absl::Status WarmUp(const BenchOptions& options, BenchTarget target,
                    const std::vector<PlannedRequest>& load, const Clock& clock) {
  const auto count = std::min(load.size(), static_cast<size_t>(options.num_warmups));
  std::vector<PlannedRequest> first(load.begin(),
                                    load.begin() + static_cast<std::ptrdiff_t>(count));
  if (first.empty()) return absl::OkStatus();
  for (PlannedRequest& request : first) request.at = absl::ZeroDuration();
  target.concurrency = 1;
  ASSIGN_OR_RETURN(const BenchOutcome outcome,
                   RunLoad(target, first, clock, [](const BenchProgress&) {}));
  if (outcome.was_interrupted) return absl::CancelledError("interrupted while warming up");
  for (const RequestRecord& record : outcome.records)
    if (!record.error.empty())
      return absl::UnavailableError(
          absl::StrFormat("the warm-up at %s failed: %s", options.url, record.error));
  return absl::OkStatus();
}

absl::Status WriteFile(const std::string& path, std::ios::openmode mode, const std::string& text) {
  std::ofstream file(path, mode);
  file << text;
  file.close();
  if (file.good()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrFormat("%s cannot be written", path));
}

// Before the load, so that a wrong path costs no run.
absl::Status TryFiles(const BenchOptions& options) {
  for (const std::string& path : {options.csv_file, options.svg_file})
    if (!path.empty()) RETURN_IF_ERROR(WriteFile(path, std::ios::app, ""));
  return absl::OkStatus();
}

absl::Status WriteResults(const BenchOptions& options, const LoadOptions& load,
                          const BenchSummary& summary) {
  const CsvLabels labels = {
      {"label", options.label},
      {"url", options.url},
      {"model", load.model},
      {"api", load.api == BenchApi::kChat ? "chat" : "completions"},
      {"prompts", options.prompts_file.empty() ? "random" : options.prompts_file},
      {"input_length", absl::StrFormat("%d", load.input_length)},
      {"output_length", absl::StrFormat("%d", load.output_length)},
      {"rate", absl::StrFormat("%g", load.rate)},
      {"concurrency", absl::StrFormat("%d", options.concurrency)},
      {"seed", absl::StrFormat("%d", options.seed)}};
  if (!options.csv_file.empty()) {
    std::error_code error;
    const bool is_new = !std::filesystem::exists(options.csv_file, error) ||
                        std::filesystem::file_size(options.csv_file, error) == 0;
    RETURN_IF_ERROR(WriteFile(options.csv_file, std::ios::app,
                              (is_new ? CsvHeader(labels) : "") + CsvRow(labels, summary)));
  }
  if (options.svg_file.empty()) return absl::OkStatus();
  const std::string title = absl::StrFormat("%s %s at %s", options.label, load.model, options.url);
  return WriteFile(options.svg_file, std::ios::trunc, SummarySvg(title, summary));
}

// Whether every request succeeded.
absl::StatusOr<bool> Bench(const BenchOptions& options) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseUrl(options.url));
  LoadOptions load_options = options.load;
  if (load_options.model.empty()) {
    ASSIGN_OR_RETURN(load_options.model, FirstModel(options, url));
  }
  ASSIGN_OR_RETURN(const auto prompts, ReadPromptsFile(options.prompts_file));
  RETURN_IF_ERROR(TryFiles(options));
  SeededRng rng(options.seed);
  ASSIGN_OR_RETURN(const auto load, PlanLoad(load_options, prompts, rng));
  BenchTarget target{.url = url,
                     .api_key = options.api_key,
                     .concurrency = options.concurrency,
                     .timeout = absl::Seconds(options.timeout_s)};
  target.url.path +=
      load_options.api == BenchApi::kChat ? "/v1/chat/completions" : "/v1/completions";
  RaiseFileLimit();
  const SteadyClock clock;
  RETURN_IF_ERROR(WarmUp(options, target, load, clock));
  ASSIGN_OR_RETURN(const BenchOutcome outcome, RunLoad(target, load, clock, ShowProgress));
  if (isatty(STDERR_FILENO) != 0) std::fputs("\r\033[K", stderr);
  const BenchSummary summary =
      Summarize(outcome.records, outcome.duration, load.size() - outcome.records.size());
  std::fputs(SummaryTable(summary).c_str(), stdout);
  RETURN_IF_ERROR(WriteResults(options, load_options, summary));
  return summary.num_failed == 0 && summary.num_unfinished == 0;
}

}  // namespace

int RunBench(const BenchOptions& options) {
  const absl::StatusOr<bool> is_fine = Bench(options);
  if (is_fine.ok()) return *is_fine ? 0 : 1;
  std::fprintf(stderr, "baton bench: %s\n", std::string(is_fine.status().message()).c_str());
  return 1;
}

}  // namespace baton::cli
