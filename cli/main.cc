#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "cli/bench.h"
#include "cli/chat.h"
#include "cli/inspect.h"
#include "cli/up.h"
#include <CLI/CLI.hpp>

namespace {

// The programs lie beside this one.
std::string ProgramFolder() {
  std::error_code error;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", error);
  return error ? "." : self.parent_path().string();
}

CLI::App* AddUp(CLI::App& app, baton::cli::UpOptions& options) {
  CLI::App* up =
      app.add_subcommand("up", "Start a cluster on this machine and keep it until Ctrl-C");
  up->add_option("--prefill", options.num_prefill,
                 "Prefill workers; 0 with --set decode.serve=prefill,decode")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  up->add_option("--decode", options.num_decode, "Decode workers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  up->add_option("--host", options.host, "Address to listen on for HTTP")->capture_default_str();
  up->add_option("--port", options.port, "HTTP port; 0: any")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  up->add_option("--model", options.model, "Folder of the checkpoint")->capture_default_str();
  up->add_option("--set", options.settings,
                 "router.KEY=VALUE, prefill.KEY=VALUE or decode.KEY=VALUE, as often as needed");
  up->add_option("--log-dir", options.log_folder,
                 "Folder for the programs' logs; default: a new temporary one");
  up->add_option("--state-file", options.state_file,
                 "Write pids and ports here, as JSON, when all is ready");
  return up;
}

CLI::App* AddChat(CLI::App& app, baton::cli::ChatSettings& settings,
                  std::vector<std::string>& words, bool& no_thinking) {
  CLI::App* chat = app.add_subcommand("chat", "Talk to a running cluster, or ask it one thing");
  chat->add_option("message", words, "What to ask; without it: a conversation, or standard input");
  chat->add_option("--url", settings.url, "The router, http:// or https://")->capture_default_str();
  chat->add_option("--api-key", settings.api_key, "Sent as a bearer token")
      ->envname("OPENAI_API_KEY");
  chat->add_option("--model", settings.model, "Model name; default: the server's");
  chat->add_option("--system", settings.system, "System message");
  chat->add_flag("--no-thinking", no_thinking, "Answer without reasoning first");
  chat->add_option("--temperature", settings.temperature, "0: greedy");
  chat->add_option("--max-tokens", settings.max_tokens, "Limit of the answer, reasoning included");
  return chat;
}

void AddBenchLoad(CLI::App* bench, baton::cli::LoadOptions& load) {
  bench->add_option("--model", load.model, "Model name; default: the server's first");
  bench->add_option("--num-prompts", load.num_prompts, "Requests")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  bench
      ->add_option_function<std::string>(
          "--api",
          [&load](const std::string& name) {
            load.api =
                name == "chat" ? baton::cli::BenchApi::kChat : baton::cli::BenchApi::kCompletions;
          },
          "chat, or completions, whose random prompts are token ids")
      ->check(CLI::IsMember({"chat", "completions"}))
      ->default_str("chat");
  bench->add_option("--input-length", load.input_length, "Of random prompts: words or token ids")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  bench
      ->add_option("--range-ratio", load.range_ratio,
                   "Lengths lie evenly between this share of --input-length and all of it")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  bench->add_option("--max-token-id", load.max_token_id, "Random token ids are below it")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  bench->add_option("--output-length", load.output_length, "max_tokens, where the file has none")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  bench->add_flag("--ignore-eos", load.ignores_eos, "Outputs have exactly that length");
  bench->add_option("--temperature", load.temperature, "0: greedy; default 0")
      ->check(CLI::Range(0.0, 100.0));
  bench->add_option("--extra-body", load.extra_body, "A JSON object, merged into every request");
  bench->add_option("--rate", load.rate, "Requests/s of a Poisson process; 0: all at once")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
}

CLI::App* AddBench(CLI::App& app, baton::cli::BenchOptions& options) {
  CLI::App* bench = app.add_subcommand("bench", "Load a server with OpenAI's API and measure it");
  AddBenchLoad(bench, options.load);
  bench->add_option("--url", options.url, "The server, http:// or https://")->capture_default_str();
  bench->add_option("--api-key", options.api_key, "Sent as a bearer token")
      ->envname("OPENAI_API_KEY");
  bench->add_option("--prompts", options.prompts_file,
                    "JSON Lines of {\"prompt\"} or {\"messages\"}, or ShareGPT's JSON list");
  bench->add_option("--concurrency", options.concurrency, "Requests at once; 0: no limit")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  bench->add_option("--warm-up", options.num_warmups, "Requests before, which do not count")
      ->check(CLI::Range(0, 10'000))
      ->capture_default_str();
  bench->add_option("--timeout", options.timeout_s, "Of each wait for the server, in seconds")
      ->check(CLI::Range(1, 86'400))
      ->capture_default_str();
  bench->add_option("--seed", options.seed, "Of prompts and arrivals")->capture_default_str();
  bench->add_option("--label", options.label, "First column of the row");
  bench->add_option("--csv", options.csv_file, "Add a row of the results to this file");
  bench->add_option("--svg", options.svg_file, "Plot the distributions of TTFT and TPOT");
  return bench;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Baton: serves DeepSeek-V4-Flash from prefill and decode workers.");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("baton ") + BATON_VERSION);
  baton::cli::UpOptions up_options;
  baton::cli::ChatSettings chat_settings;
  baton::cli::BenchOptions bench_options;
  std::vector<std::string> words;
  bool no_thinking = false;
  std::string target;
  const CLI::App* up = AddUp(app, up_options);
  const CLI::App* bench = AddBench(app, bench_options);
  const CLI::App* chat = AddChat(app, chat_settings, words, no_thinking);
  CLI::App* inspect = app.add_subcommand("inspect", "Show a checkpoint, a cluster or a worker");
  inspect
      ->add_option("target", target, "A folder, http://router:port or http://worker:metrics-port")
      ->required();
  app.add_subcommand("version", "Print the version");
  CLI11_PARSE(app, argc, argv);
  if (up->parsed()) return RunUp(up_options, ProgramFolder());
  if (bench->parsed()) return baton::cli::RunBench(bench_options);
  if (inspect->parsed()) return baton::cli::RunInspect(target, ProgramFolder());
  if (!chat->parsed()) return std::printf("baton %s\n", BATON_VERSION) < 0;
  chat_settings.is_thinking = !no_thinking;
  for (const std::string& word : words)
    chat_settings.message += (chat_settings.message.empty() ? "" : " ") + word;
  return RunChat(chat_settings);
}
