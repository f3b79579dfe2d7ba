#include "router/router_process.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_format.h"

#include "common/log.h"
#include "common/status.h"
#include "router/front/openapi.h"
#include "router/model_facts.h"

namespace baton::router {
namespace {

constexpr size_t kMaxVerdicts = 4096;                      // of grammars
constexpr absl::Duration kLastAnswers = absl::Seconds(1);  // for errors to reach their clients

std::vector<std::string> NamesOf(const RouterConfig& config) {
  if (!config.names.empty()) return config.names;
  std::filesystem::path folder(config.model);
  if (!folder.has_filename()) folder = folder.parent_path();  // "models/demo/"
  return {folder.filename().string()};
}

// Empty where no file is named.
absl::StatusOr<std::string> ReadSecret(const std::string& path) {
  constexpr size_t kMinBytes = 32;
  if (path.empty()) return std::string();
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return absl::NotFoundError(
        absl::StrFormat("%s: cannot be opened (api.reasoning_secret_file)", path));
  std::string secret((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (secret.size() < kMinBytes)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes, want %d or more (api.reasoning_secret_file)", path,
                        secret.size(), kMinBytes));
  return secret;
}

absl::StatusOr<ApiConfig> MakeApiConfig(const RouterConfig& config, const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(const ModelFacts facts, ReadModelFacts(config.model + "/config.json"));
  if (tokenizer.vocab_size() > facts.vocab_size)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tokenizer.json has ids up to %d, config.json a vocabulary of %d",
                        config.model, tokenizer.vocab_size() - 1, facts.vocab_size));
  ApiConfig api = config.api;
  api.served_model_names = NamesOf(config);
  api.model_path = config.model;
  if (api.max_context == 0) api.max_context = facts.max_context;
  if (api.max_context > facts.max_context)
    return absl::InvalidArgumentError(absl::StrFormat(
        "api.max_context is %d, the model's limit is %d", api.max_context, facts.max_context));
  api.chat.profile = facts.profile;
  ASSIGN_OR_RETURN(api.reasoning_secret, ReadSecret(config.reasoning_secret_file));
  if (config.effort_profile != "auto")
    api.chat.profile =
        config.effort_profile == "0731" ? EffortProfile::k0731 : EffortProfile::kPreview;
  return api;
}

std::vector<std::string> NamesOf(const std::vector<ApiKeySpec>& keys) {
  std::vector<std::string> names;
  for (const ApiKeySpec& key : keys) names.push_back(key.name);
  return names;
}

SessionPoolOptions SessionOptions(const RouterConfig& config, Rng& rng) {
  SessionPoolOptions options = config.sessions;
  options.router_id = config.router_id;
  options.workers = config.workers;
  options.incarnation = Incarnation{rng.Next() | 1};
  return options;
}

}  // namespace

RouterProcess::RouterProcess(const RouterConfig& config, const Clock& clock, Inputs inputs)
    : clock_(clock),
      tokenizer_(std::move(inputs.tokenizer)),
      vocabulary_(std::move(inputs.vocabulary)),
      keys_(inputs.keys, clock),
      metrics_(NamesOf(inputs.keys)),
      sessions_(SessionOptions(config, rng_), clock),
      planner_(config.plan, config.planner, clock, rng_, sessions_),
      dispatcher_(planner_),
      cpu_pool_(config.cpu_threads, config.max_waiting_bodies),
      grammars_([this](std::string_view grammar) { return CheckGrammar(vocabulary_, grammar); },
                {.threads = config.grammar_threads,
                 .max_waiting = config.max_waiting_bodies,
                 .max_verdicts = kMaxVerdicts}) {}

absl::StatusOr<std::unique_ptr<RouterProcess>> RouterProcess::Start(const RouterConfig& config,
                                                                    const Clock& clock) {
  const std::string path = config.model + "/tokenizer.json";
  ASSIGN_OR_RETURN(const std::string json, Tokenizer::ReadFile(path));
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::Parse(json, path));
  ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::FromTokenizerJson(json));
  if (!tokenizer.warning().empty())
    LogF(LogLevel::kWarn, "tokenizer", "model=%s note=\"%s\"", config.model, tokenizer.warning());
  std::vector<ApiKeySpec> keys;
  if (!config.api_keys_file.empty()) {
    ASSIGN_OR_RETURN(keys, ReadApiKeys(config.api_keys_file));
  }
  std::unique_ptr<RouterProcess> process(new RouterProcess(config, clock,
                                                           {.tokenizer = std::move(tokenizer),
                                                            .vocabulary = std::move(vocabulary),
                                                            .keys = std::move(keys)}));
  RETURN_IF_ERROR(process->Load());
  ASSIGN_OR_RETURN(process->api_config_, MakeApiConfig(config, process->tokenizer_));
  RETURN_IF_ERROR(process->Serve(config));
  return process;
}

absl::Status RouterProcess::Load() {
  ASSIGN_OR_RETURN(ChatEncoder encoder, ChatEncoder::Create(tokenizer_));
  encoder_ = std::make_unique<ChatEncoder>(std::move(encoder));
  ASSIGN_OR_RETURN(markup_, MarkupIds::Find(tokenizer_));
  return absl::OkStatus();
}

void RouterProcess::MakeSurfaces(const RouterConfig& config) {
  api_ = std::make_unique<Api>(ApiParts{.config = api_config_,
                                        .tokenizer = tokenizer_,
                                        .grammars = grammars_,
                                        .markup = markup_,
                                        .encoder = *encoder_,
                                        .dispatcher = dispatcher_,
                                        .cpu_pool = cpu_pool_,
                                        .clock = clock_,
                                        .render_metrics = [this] { return RenderMetrics(); }});
  messages_ = std::make_unique<MessagesApi>(
      MessagesParts{.config = api_config_, .chats = *api_, .cpu_pool = cpu_pool_});
  operators_ =
      std::make_unique<OperatorApi>(OperatorParts{.config = api_config_,
                                                  .tokenizer = tokenizer_,
                                                  .dispatcher = dispatcher_,
                                                  .openapi = OpenApiDocument(BATON_VERSION)});
  door_ = std::make_unique<FrontDoor>(FrontDoorParts{.keys = keys_,
                                                     .openai = *api_,
                                                     .anthropic = *messages_,
                                                     .operators = *operators_,
                                                     .cors_origins = config.cors_origins,
                                                     .serves_admin = config.serves_admin});
}

absl::Status RouterProcess::Serve(const RouterConfig& config) {
  MakeSurfaces(config);
  RETURN_IF_ERROR(sessions_.Start(planner_));
  planner_.Start();
  ASSIGN_OR_RETURN(server_, HttpServer::Start(config.endpoint, config.http, *door_, clock_));
  counters_ = &server_->counters();
  return absl::OkStatus();
}

std::string RouterProcess::RenderMetrics() {
  DoorCounts door = {.unauthorized = door_->num_unauthorized(),
                     .dropped_tools = messages_->num_dropped_tools()};
  for (size_t i = 0; i < door.dsml.size(); ++i) door.dsml[i] = api_->dsml_counts().choices[i];
  door.known_runs = api_->run_cache().hits();
  door.new_runs = api_->run_cache().misses();
  door.known_grammars = grammars_.hits();
  door.new_grammars = grammars_.misses();
  for (const auto& account : keys_.accounts()) door.keys.push_back(account->use());
  return metrics_.Render(*planner_.Facts(), *planner_.View(), *counters_.load(),
                         cpu_pool_.waiting(), door);
}

void RouterProcess::Drain() {
  api_->Drain();
  server_->StopAccepting();
}

RouterProcess::~RouterProcess() {
  if (server_) Drain();
  cpu_pool_.Stop();  // before the server: what waits there holds exchanges
  grammars_.Stop();  // likewise
  planner_.Stop();   // likewise, and its last events are errors that the server still sends
  const absl::Time until = clock_.Now() + kLastAnswers;
  while (server_ && !IsIdle() && clock_.Now() < until) baton::SleepFor(absl::Milliseconds(5));
  sessions_.Stop();
  counters_ = &no_counters_;
  server_.reset();
}

}  // namespace baton::router
