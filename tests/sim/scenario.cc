#include "tests/sim/scenario.h"

#include <functional>
#include <map>

#include "absl/strings/str_format.h"
#include <yaml-cpp/yaml.h>

#include "common/status.h"

namespace baton::sim {
namespace {

using Setters = std::map<std::string, std::function<void(const YAML::Node&)>>;

template <typename T>
std::function<void(const YAML::Node&)> To(T& field) {
  return [&field](const YAML::Node& node) { field = node.as<T>(); };
}
std::function<void(const YAML::Node&)> ToRange(Range& field) {
  return [&field](const YAML::Node& node) {
    field = {.low = node[0].as<int64_t>(), .high = node[1].as<int64_t>()};
  };
}
std::function<void(const YAML::Node&)> ToMs(absl::Duration& field) {
  return [&field](const YAML::Node& node) { field = absl::Milliseconds(node.as<double>()); };
}

absl::Status Apply(const YAML::Node& section, const std::string& name, const Setters& setters) {
  for (const auto& item : section) {
    const auto key = item.first.as<std::string>();
    const auto found = setters.find(key);
    if (found == setters.end())
      return absl::InvalidArgumentError(absl::StrFormat("unknown key %s.%s", name, key));
    found->second(item.second);
  }
  return absl::OkStatus();
}

Setters LoadSetters(LoadSpec& load) {
  return {{"requests", To(load.requests)},
          {"over_ms", ToMs(load.over)},
          {"prompt_tokens", ToRange(load.prompt_tokens)},
          {"output_tokens", ToRange(load.output_tokens)},
          {"documents", To(load.documents)},
          {"fresh_prompts", To(load.fresh_prompts)},
          {"greedy", To(load.greedy)},
          {"logprobs", To(load.logprobs)},
          {"several_choices", To(load.several_choices)},
          {"client_gone", To(load.client_gone)},
          {"choice_cancelled", To(load.choice_cancelled)},
          {"deadline", To(load.deadline)}};
}

Setters WorkersSetters(WorkersSpec& workers) {
  return {{"prefill", To(workers.prefill)},
          {"decode", To(workers.decode)},
          {"mixed", To(workers.mixed)},
          {"prefill_pages", To(workers.prefill_pages)},
          {"decode_pages", To(workers.decode_pages)},
          {"max_sequences", To(workers.max_sequences)},
          {"max_computing_prompts", To(workers.max_computing_prompts)},
          {"chunk_tokens", To(workers.chunk_tokens)},
          {"max_context", To(workers.max_context)}};
}

Setters FaultsSetters(FaultsSpec& faults) {
  return {{"kill_prefill", To(faults.kill_prefill)},
          {"kill_decode", To(faults.kill_decode)},
          {"lose_session", To(faults.lose_session)},
          {"stop_worker", To(faults.stop_worker)},
          {"drain_worker", To(faults.drain_worker)},
          {"spoil_pages", To(faults.spoil_pages)},
          {"min_restart_ms", ToMs(faults.min_restart)},
          {"max_restart_ms", ToMs(faults.max_restart)},
          {"min_stop_ms", ToMs(faults.min_stop)},
          {"max_stop_ms", ToMs(faults.max_stop)},
          {"link_min_delay_ms", ToMs(faults.link.min_delay)},
          {"link_max_delay_ms", ToMs(faults.link.max_delay)},
          {"link_drop", To(faults.link.drop)},
          {"link_duplicate", To(faults.link.duplicate)},
          {"link_reorder", To(faults.link.reorder)},
          {"corrupt_block", To(faults.link.corrupt_block)},
          {"corrupt_announce", To(faults.link.corrupt_announce)},
          {"min_pull_ms", ToMs(faults.link.min_pull)},
          {"max_pull_ms", ToMs(faults.link.max_pull)},
          {"late_pull", To(faults.link.late_pull)},
          {"late_by_ms", ToMs(faults.link.late_by)},
          {"stuck_pull", To(faults.link.stuck_pull)}};
}

absl::Status ReadTolerated(const YAML::Node& node, Scenario& scenario) {
  const std::map<std::string, absl::StatusCode> codes = {
      {"unavailable", absl::StatusCode::kUnavailable},
      {"resource_exhausted", absl::StatusCode::kResourceExhausted},
      {"data_loss", absl::StatusCode::kDataLoss},
      {"deadline_exceeded", absl::StatusCode::kDeadlineExceeded}};
  for (const auto& item : node) {
    const auto found = codes.find(item.as<std::string>());
    if (found == codes.end())
      return absl::InvalidArgumentError(
          absl::StrFormat("tolerates: unknown code %s", item.as<std::string>()));
    scenario.tolerates.insert(found->second);
  }
  return absl::OkStatus();
}

absl::Status Read(const YAML::Node& root, Scenario& scenario) {
  for (const auto& item : root) {
    const auto key = item.first.as<std::string>();
    absl::Status status;
    if (key == "name")
      scenario.name = item.second.as<std::string>();
    else if (key == "load")
      status = Apply(item.second, key, LoadSetters(scenario.load));
    else if (key == "workers")
      status = Apply(item.second, key, WorkersSetters(scenario.workers));
    else if (key == "faults")
      status = Apply(item.second, key, FaultsSetters(scenario.faults));
    else if (key == "tolerates")
      status = ReadTolerated(item.second, scenario);
    else if (key == "tolerated_after_faults")
      scenario.tolerated_after_faults = item.second.as<int>();
    else
      status = absl::InvalidArgumentError(absl::StrFormat("unknown key %s", key));
    RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Scenario> LoadScenario(const std::string& path) {
  Scenario scenario;
  try {
    const absl::Status status = Read(YAML::LoadFile(path), scenario);
    if (status.ok()) return scenario;
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, status.message()));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, e.what()));
  }
}

}  // namespace baton::sim
