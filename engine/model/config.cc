#include "engine/model/config.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace baton::engine {
namespace {

using nlohmann::json;

constexpr int kMaxVocabulary = 1 << 17;  // ids fill 17 bits of a rank key (contracts.md 2.3)
constexpr int kMaxPositions = 1 << 20;   // rope tables are exact up to here (contracts.md 2.6)
constexpr size_t kMaxJsonBytes = 1 << 20;
constexpr int kMaxJsonDepth = 16;

struct IntField {
  const char* name;
  int ModelConfig::*member;
  int low;
  int high;
  int multiple;
};

// model.md 1.1; the multiples are contracts.md 3.1's. The 128 of head_dim: its fp8 weights have
// whole 128 x 128 blocks.
constexpr IntField kIntFields[] = {
    {"vocab_size", &ModelConfig::vocab_size, 2, kMaxVocabulary, 1},
    {"hidden_size", &ModelConfig::hidden_size, 128, 16'384, 128},
    {"num_hidden_layers", &ModelConfig::num_hidden_layers, 1, 256, 1},
    {"num_attention_heads", &ModelConfig::num_attention_heads, 1, 256, 1},
    {"head_dim", &ModelConfig::head_dim, 128, 1'024, 128},
    {"qk_rope_head_dim", &ModelConfig::qk_rope_head_dim, 64, 960, 64},
    {"q_lora_rank", &ModelConfig::q_lora_rank, 128, 8'192, 128},
    {"o_groups", &ModelConfig::o_groups, 1, 64, 1},
    {"o_lora_rank", &ModelConfig::o_lora_rank, 1, 8'192, 1},
    {"n_routed_experts", &ModelConfig::n_routed_experts, 1, 1'024, 1},
    {"num_experts_per_tok", &ModelConfig::num_experts_per_tok, 1, 16, 1},
    {"moe_intermediate_size", &ModelConfig::moe_intermediate_size, 128, 16'384, 128},
    {"num_hash_layers", &ModelConfig::num_hash_layers, 0, 256, 1},
    {"index_n_heads", &ModelConfig::index_n_heads, 1, 256, 1},
    {"index_head_dim", &ModelConfig::index_head_dim, 64, 512, 32},
    {"index_topk", &ModelConfig::index_topk, 1, 4'096, 1},
    {"sliding_window", &ModelConfig::sliding_window, 128, 128, 1},
    {"hc_mult", &ModelConfig::hc_mult, 4, 4, 1},
    {"hc_sinkhorn_iters", &ModelConfig::hc_sinkhorn_iters, 1, 100, 1},
    {"num_nextn_predict_layers", &ModelConfig::num_nextn_predict_layers, 0, 1, 1},
    {"max_position_embeddings", &ModelConfig::max_position_embeddings, 1, kMaxPositions, 1},
    {"bos_token_id", &ModelConfig::bos_token_id, 0, kMaxVocabulary - 1, 1},
    {"eos_token_id", &ModelConfig::eos_token_id, 0, kMaxVocabulary - 1, 1},
};

struct NumberField {
  const char* name;
  double ModelConfig::*member;
  double low;
  double high;
};

constexpr NumberField kNumberFields[] = {
    {"rms_norm_eps", &ModelConfig::rms_norm_eps, 1e-12, 1e-2},
    {"hc_eps", &ModelConfig::hc_eps, 1e-12, 1e-2},
    {"rope_theta", &ModelConfig::rope_theta, 2, 1e9},
    {"compress_rope_theta", &ModelConfig::compress_rope_theta, 2, 1e9},
    {"routed_scaling_factor", &ModelConfig::routed_scaling_factor, 1e-3, 1e3},
    {"swiglu_limit", &ModelConfig::swiglu_limit, 1e-3, 1e3},
};

constexpr NumberField kYarnFields[] = {
    {"factor", &ModelConfig::yarn_factor, 1, 1'024},
    {"beta_fast", &ModelConfig::yarn_beta_fast, 1e-3, 1e4},
    {"beta_slow", &ModelConfig::yarn_beta_slow, 1e-3, 1e4},
};

// Reads fields of one JSON object and collects what is wrong with them, so that one message tells
// everything.
class FieldReader {
 public:
  FieldReader(const json& object, std::string prefix, std::vector<std::string>& problems)
      : object_(object), prefix_(std::move(prefix)), problems_(problems) {}

  const json* Find(const char* name) const {
    const auto it = object_.find(name);
    return it == object_.end() ? nullptr : &*it;
  }

  const json* Required(const char* name) {
    const json* value = Find(name);
    if (value == nullptr) Report(name, "is missing");
    return value;
  }

  int Int(const IntField& field) {
    const json* value = Required(field.name);
    if (value == nullptr) return field.low;
    const bool fits = value->is_number_integer() && *value >= field.low && *value <= field.high;
    if (fits && value->get<int>() % field.multiple == 0) return value->get<int>();
    const std::string unit =
        field.multiple == 1 ? "" : absl::StrFormat(", a multiple of %d", field.multiple);
    Report(field.name, absl::StrFormat("is %s, must be an integer of %d..%d%s", Shown(*value),
                                       field.low, field.high, unit));
    return field.low;
  }

  double Number(const NumberField& field) {
    const json* value = Required(field.name);
    if (value == nullptr) return field.low;
    if (value->is_number()) {
      const double number = value->get<double>();
      if (number >= field.low && number <= field.high) return number;
    }
    Report(field.name, absl::StrFormat("is %s, must be a number of %g..%g", Shown(*value),
                                       field.low, field.high));
    return field.low;
  }

  // The field must have exactly this value.
  void Expect(const char* name, const json& expected) {
    const json* value = Required(name);
    if (value != nullptr) ExpectValue(name, *value, expected);
  }
  void ExpectIfPresent(const char* name, const json& expected) {
    const json* value = Find(name);
    if (value != nullptr) ExpectValue(name, *value, expected);
  }

  void Report(std::string_view name, std::string_view problem) {
    problems_.push_back(absl::StrFormat("%s%s %s", prefix_, name, problem));
  }

  static std::string Shown(const json& value) {
    constexpr size_t kMaxShown = 80;
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    if (text.size() > kMaxShown) text = text.substr(0, kMaxShown) + "...";
    return text;
  }

 private:
  void ExpectValue(const char* name, const json& value, const json& expected) {
    if (value == expected) return;
    Report(name, absl::StrFormat("is %s, must be %s", Shown(value), Shown(expected)));
  }

  const json& object_;
  std::string prefix_;
  std::vector<std::string>& problems_;
};

// Models that look like ours and are not (model.md Appendix B): the one reason says more than a
// list of fields.
std::string ForeignModel(const json& root) {
  const std::string type = root.contains("model_type") && root["model_type"].is_string()
                               ? root["model_type"].get<std::string>()
                               : "";
  if (type == "deepseek_v41")
    return "model_type is deepseek_v41 (V4.1), another architecture; only deepseek_v4 is served";
  for (const auto& [key, value] : root.items()) {
    if (key.rfind("dspark_", 0) == 0)
      return absl::StrFormat("%s: checkpoints with a DSpark drafter (0731) are not served", key);
    if (key == "vision_config") return "vision_config: models with a vision tower are not served";
  }
  const auto ratios = root.find("compress_ratios");
  const auto layers = root.find("num_hidden_layers");
  if (ratios != root.end() && layers != root.end() && ratios->is_array() &&
      layers->is_number_unsigned() && ratios->size() > layers->get<uint64_t>() + 1) {
    return absl::StrFormat(
        "compress_ratios has %d entries for %d layers, at most %d: checkpoints with a DSpark "
        "drafter (0731) are not served",
        ratios->size(), layers->get<uint64_t>(), layers->get<uint64_t>() + 1);
  }
  return "";
}

void CheckFixedFields(FieldReader& fields) {
  fields.Expect("architectures", json::array({"DeepseekV4ForCausalLM"}));
  fields.Expect("model_type", "deepseek_v4");
  fields.Expect("hidden_act", "silu");
  fields.Expect("n_shared_experts", 1);
  fields.Expect("norm_topk_prob", true);
  fields.Expect("num_key_value_heads", 1);
  fields.Expect("scoring_func", "sqrtsoftplus");
  fields.Expect("topk_method", "noaux_tc");
  fields.ExpectIfPresent("attention_bias", false);
  fields.ExpectIfPresent("attention_dropout", 0.0);
  fields.ExpectIfPresent("tie_word_embeddings", false);
  fields.ExpectIfPresent("torch_dtype", "bfloat16");
}

void ReadYarn(const json& scaling, std::vector<std::string>& problems, ModelConfig& config) {
  FieldReader fields(scaling, "rope_scaling.", problems);
  fields.Expect("type", "yarn");
  for (const NumberField& field : kYarnFields) config.*field.member = fields.Number(field);
  config.yarn_original_positions =
      fields.Int({"original_max_position_embeddings", &ModelConfig::yarn_original_positions, 1,
                  kMaxPositions, 1});
  for (const char* name : {"mscale", "mscale_all_dim"}) {
    if (fields.Find(name) != nullptr) fields.Report(name, "is present, must be absent");
  }
  if (config.yarn_beta_fast < config.yarn_beta_slow) {
    fields.Report("beta_fast", absl::StrFormat("is %g, at least beta_slow %g",
                                               config.yarn_beta_fast, config.yarn_beta_slow));
  }
}

void CheckQuantisation(const json& quantisation, std::vector<std::string>& problems) {
  FieldReader fields(quantisation, "quantization_config.", problems);
  fields.Expect("quant_method", "fp8");
  fields.Expect("weight_block_size", json::array({128, 128}));
  fields.ExpectIfPresent("fmt", "e4m3");
  fields.ExpectIfPresent("scale_fmt", "ue8m0");
  fields.ExpectIfPresent("activation_scheme", "dynamic");
}

void ReadRatios(FieldReader& fields, ModelConfig& config) {
  const json* ratios = fields.Required("compress_ratios");
  if (ratios == nullptr) return;
  const size_t layers = static_cast<size_t>(config.num_hidden_layers);
  const size_t with_mtp = layers + 1;
  const bool has_length =
      ratios->is_array() && (ratios->size() == with_mtp ||
                             (config.num_nextn_predict_layers == 0 && ratios->size() == layers));
  if (!has_length) {
    fields.Report("compress_ratios",
                  absl::StrFormat("is %s, must have %d entries for %d layers and %d MTP layers",
                                  FieldReader::Shown(*ratios),
                                  layers + static_cast<size_t>(config.num_nextn_predict_layers),
                                  layers, config.num_nextn_predict_layers));
    return;
  }
  for (size_t layer = 0; layer < ratios->size(); ++layer) {
    const json& ratio = (*ratios)[layer];
    const bool is_known =
        ratio == 0 ||
        (layer < layers && (ratio == kernels::kCsaRatio || ratio == kernels::kHcaRatio));
    if (!is_known || !ratio.is_number_integer()) {
      fields.Report(absl::StrFormat("compress_ratios[%d]", layer),
                    absl::StrFormat("is %s, must be %s", FieldReader::Shown(ratio),
                                    layer < layers ? "0, 4 or 128" : "0 (MTP)"));
      return;
    }
    if (layer < layers) config.compress_ratios.push_back(ratio.get<int>());
  }
}

void ReadExpertType(FieldReader& fields, ModelConfig& config) {
  config.expert_dtype = "fp4";
  const json* type = fields.Find("expert_dtype");
  if (type == nullptr) return;
  if (*type == "fp4" || *type == "fp8") {
    config.expert_dtype = type->get<std::string>();
    return;
  }
  fields.Report("expert_dtype",
                absl::StrFormat("is %s, must be \"fp4\" or \"fp8\"", FieldReader::Shown(*type)));
}

// What several fields together must fulfil; only meaningful once each of them is right.
void CheckRelations(const ModelConfig& c, FieldReader& fields) {
  const auto at_most = [&fields](const char* name, int value, const char* limit_name, int limit) {
    if (value <= limit) return;
    fields.Report(name, absl::StrFormat("is %d, at most %s = %d", value, limit_name, limit));
  };
  const auto multiple = [&fields](const char* name, int value, int unit) {
    if (value % unit == 0) return;
    fields.Report(name, absl::StrFormat("is %d, must be a multiple of %d", value, unit));
  };
  at_most("num_experts_per_tok", c.num_experts_per_tok, "n_routed_experts", c.n_routed_experts);
  at_most("num_hash_layers", c.num_hash_layers, "num_hidden_layers", c.num_hidden_layers);
  at_most("qk_rope_head_dim", c.qk_rope_head_dim, "head_dim - 64", c.head_dim - 64);
  at_most("qk_rope_head_dim", c.qk_rope_head_dim, "index_head_dim", c.index_head_dim);
  at_most("bos_token_id", c.bos_token_id, "vocab_size - 1", c.vocab_size - 1);
  at_most("eos_token_id", c.eos_token_id, "vocab_size - 1", c.vocab_size - 1);
  multiple("head_dim - qk_rope_head_dim", c.head_dim - c.qk_rope_head_dim, 64);
  multiple("num_attention_heads", c.num_attention_heads, c.o_groups);
  multiple("num_attention_heads * head_dim / o_groups",
           c.num_attention_heads * c.head_dim / c.o_groups, 128);
  multiple("o_lora_rank * o_groups", c.o_lora_rank * c.o_groups, 128);
  multiple("index_n_heads * index_head_dim", c.index_n_heads * c.index_head_dim, 128);
  if ((c.index_head_dim & (c.index_head_dim - 1)) != 0) {
    fields.Report("index_head_dim",
                  absl::StrFormat("is %d, must be a power of two (Hadamard)", c.index_head_dim));
  }
}

absl::StatusOr<json> ParseObject(const std::string& text, const std::string& path) {
  if (text.size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: %d bytes, at most %d", path, text.size(), kMaxJsonBytes));
  }
  bool is_deep = false;
  const auto keep = [&is_deep](int depth, json::parse_event_t, json&) {
    is_deep = is_deep || depth > kMaxJsonDepth;
    return depth <= kMaxJsonDepth;
  };
  json root = json::parse(text, keep, /*allow_exceptions=*/false);
  if (is_deep)
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: nested deeper than %d", path, kMaxJsonDepth));
  if (!root.is_object())
    return absl::InvalidArgumentError(absl::StrFormat("%s: is no JSON object", path));
  return root;
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& path) {
  auto root = ParseObject(text, path);
  if (!root.ok()) return root.status();
  const std::string foreign = ForeignModel(*root);
  if (!foreign.empty()) return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, foreign));

  ModelConfig config;
  std::vector<std::string> problems;
  FieldReader fields(*root, "", problems);
  CheckFixedFields(fields);
  for (const IntField& field : kIntFields) config.*field.member = fields.Int(field);
  for (const NumberField& field : kNumberFields) config.*field.member = fields.Number(field);
  if (const json* scaling = fields.Required("rope_scaling")) ReadYarn(*scaling, problems, config);
  if (const json* quantisation = fields.Required("quantization_config"))
    CheckQuantisation(*quantisation, problems);
  ReadExpertType(fields, config);
  ReadRatios(fields, config);
  if (problems.empty()) CheckRelations(config, fields);
  if (problems.empty()) return config;
  return absl::InvalidArgumentError(absl::StrFormat("%s: %s", path, absl::StrJoin(problems, "; ")));
}

kernels::LayoutShape LayoutShapeOf(const ModelConfig& config, kernels::NumericsMode mode) {
  const bool is_float32 = mode == kernels::NumericsMode::kFloat32;
  kernels::LayoutShape shape;
  shape.head_dim = config.head_dim;
  shape.rope_dim = config.qk_rope_head_dim;
  shape.index_head_dim = config.index_head_dim;
  shape.window = config.sliding_window;
  shape.hc_mult = config.hc_mult;
  shape.hidden_size = config.hidden_size;
  shape.num_layers = config.num_hidden_layers;
  shape.num_mtp_layers = config.num_nextn_predict_layers;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.IsCsa(layer)) shape.csa_layers.push_back(layer);
    if (config.IsHca(layer)) shape.hca_layers.push_back(layer);
  }
  shape.rows = is_float32 ? kernels::RowFormat::kF32 : kernels::RowFormat::kFp8;
  shape.index = is_float32 ? kernels::IndexFormat::kF32 : kernels::IndexFormat::kFp8;
  return shape;
}

}  // namespace baton::engine
