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

// A list of options: name, where the value goes, what it means.
struct Options {
  CLI::App* app;

  template <typename T>
  void Add(const char* name, T& value, const char* text) const {
    app->add_option(name, value, text);
  }
  // Whose default is shown.
  template <typename T>
  void Shown(const char* name, T& value, const char* text) const {
    app->add_option(name, value, text)->capture_default_str();
  }
  template <typename T>
  void Shown(const char* name, T& value, const CLI::Range& range, const char* text) const {
    app->add_option(name, value, text)->check(range)->capture_default_str();
  }
  void Server(std::string& url, std::string& api_key) const {
    Shown("--url", url, "The server, http:// or https://");
    app->add_option("--api-key", api_key, "Sent as a bearer token")->envname("OPENAI_API_KEY");
  }
};

CLI::App* AddUp(CLI::App& app, baton::cli::UpOptions& up) {
  const Options options{
      app.add_subcommand("up", "Start a cluster on this machine and keep it until Ctrl-C")};
  options.Shown("--prefill", up.num_prefill, CLI::Range(0, 64),
                "Prefill workers; 0 with --set decode.serve=prefill,decode");
  options.Shown("--decode", up.num_decode, CLI::Range(1, 64), "Decode workers");
  options.Shown("--host", up.host, "Address to listen on for HTTP");
  options.Shown("--port", up.port, CLI::Range(0, 65535), "HTTP port; 0: any");
  options.Shown("--model", up.model, "Folder of the checkpoint");
  options.Add("--set", up.settings,
              "router.KEY=VALUE, prefill.KEY=VALUE or decode.KEY=VALUE, as often as needed");
  options.Add("--log-dir", up.log_folder,
              "Folder for the programs' logs; default: a new temporary one");
  options.Add("--state-file", up.state_file,
              "Write pids and ports here, as JSON, when all is ready");
  return options.app;
}

CLI::App* AddChat(CLI::App& app, baton::cli::ChatSettings& chat, std::vector<std::string>& words,
                  bool& no_thinking) {
  const Options options{
      app.add_subcommand("chat", "Talk to a running cluster, or ask it one thing")};
  options.Add("message", words, "What to ask; without it: a conversation, or standard input");
  options.Server(chat.url, chat.api_key);
  options.Add("--model", chat.model, "Model name; default: the server's");
  options.Add("--system", chat.system, "System message");
  options.app->add_flag("--no-thinking", no_thinking, "Answer without reasoning first");
  options.Add("--temperature", chat.temperature, "0: greedy");
  options.Add("--max-tokens", chat.max_tokens, "Limit of the answer, reasoning included");
  return options.app;
}

void AddBenchLoad(const Options& options, baton::cli::LoadOptions& load) {
  using baton::cli::BenchApi;
  const CLI::Range count(1, 1'000'000);
  options.Add("--model", load.model, "Model name; default: the server's first");
  options.Shown("--num-prompts", load.num_prompts, count, "Requests");
  options.app
      ->add_option_function<std::string>(
          "--api",
          [&load](const std::string& name) {
            load.api = name == "chat" ? BenchApi::kChat : BenchApi::kCompletions;
          },
          "chat, or completions, whose random prompts are token ids")
      ->check(CLI::IsMember({"chat", "completions"}))
      ->default_str("chat");
  options.Shown("--input-length", load.input_length, count,
                "Of random prompts: words or token ids");
  options.Shown("--range-ratio", load.range_ratio, CLI::Range(0.0, 1.0),
                "Lengths lie evenly between this share of --input-length and all of it");
  options.Shown("--max-token-id", load.max_token_id, count, "Random token ids are below it");
  options.Shown("--output-length", load.output_length, count,
                "max_tokens, where the file has none");
  options.app->add_flag("--ignore-eos", load.ignores_eos, "Outputs have exactly that length");
  options.app->add_option("--temperature", load.temperature, "0: greedy; default 0")
      ->check(CLI::Range(0.0, 100.0));
  options.Add("--extra-body", load.extra_body, "A JSON object, merged into every request");
  options.Shown("--rate", load.rate, CLI::Range(0.0, 1e6),
                "Requests/s of a Poisson process; 0: all at once");
}

CLI::App* AddBench(CLI::App& app, baton::cli::BenchOptions& bench) {
  const Options options{
      app.add_subcommand("bench", "Load a server with OpenAI's API and measure it")};
  AddBenchLoad(options, bench.load);
  options.Server(bench.url, bench.api_key);
  options.Add("--prompts", bench.prompts_file,
              "JSON Lines of {\"prompt\"} or {\"messages\"}, or ShareGPT's JSON list");
  options.Shown("--concurrency", bench.concurrency, CLI::Range(0, 100'000),
                "Requests at once; 0: no limit");
  options.Shown("--warm-up", bench.num_warmups, CLI::Range(0, 10'000),
                "Requests before, which do not count");
  options.Shown("--timeout", bench.timeout_s, CLI::Range(1, 86'400),
                "Of each wait for the server, in seconds");
  options.Shown("--seed", bench.seed, "Of prompts and arrivals");
  options.Add("--label", bench.label, "First column of the row");
  options.Add("--csv", bench.csv_file, "Add a row of the results to this file");
  options.Add("--svg", bench.svg_file, "Plot the distributions of TTFT and TPOT");
  return options.app;
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
