#include "router/model_facts.h"

#include <climits>
#include <fstream>
#include <iterator>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "router/text/json_value.h"

namespace baton::router {
namespace {

absl::StatusOr<int> PositiveInt(const JsonValue& config, std::string_view key,
                                const std::string& name) {
  const JsonValue* value = config.FindNonNull(key);
  const std::optional<int64_t> number =
      value != nullptr && value->is_number() ? value->AsInt64() : std::nullopt;
  if (!number || *number < 1 || *number > INT_MAX)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s must be an integer of at least 1", name, key));
  return static_cast<int>(*number);
}

absl::Status CheckFamily(const JsonValue& config, const std::string& name) {
  const JsonValue* list = config.FindNonNull("architectures");
  const bool has_one = list != nullptr && list->is_array() && list->items().size() == 1 &&
                       list->items()[0].is_string();
  const std::string architecture = has_one ? list->items()[0].text() : "";
  if (architecture != "DeepseekV4ForCausalLM")
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s: architectures is '%s', only DeepseekV4ForCausalLM is served", name, architecture));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ModelFacts> ParseModelFacts(std::string_view json, const std::string& name) {
  const absl::StatusOr<JsonValue> config = JsonValue::ParseDocument(json);
  if (!config.ok())
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %s", name, std::string(config.status().message())));
  RETURN_IF_ERROR(CheckFamily(*config, name));
  ModelFacts facts;
  ASSIGN_OR_RETURN(facts.max_context, PositiveInt(*config, "max_position_embeddings", name));
  ASSIGN_OR_RETURN(facts.vocab_size, PositiveInt(*config, "vocab_size", name));
  for (const auto& [key, value] : config->members())
    if (key.rfind("dspark_", 0) == 0) facts.profile = EffortProfile::k0731;
  return facts;
}

absl::StatusOr<ModelFacts> ReadModelFacts(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrFormat("%s: cannot be opened", path));
  const std::string json((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return ParseModelFacts(json, path);
}

}  // namespace baton::router
