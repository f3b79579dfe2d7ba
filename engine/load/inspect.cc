#include "engine/load/inspect.h"

#include <cstdint>
#include <map>
#include <set>

#include "absl/strings/str_format.h"

#include "common/class_id.h"
#include "engine/load/safetensors.h"
#include "kernels/page_layout.h"

namespace baton::engine {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// "3 of 0, 2 of 4 (CSA), 1 of 128 (HCA)", in words.
std::string LayerText(const ModelConfig& config) {
  int csa = 0;
  int hca = 0;
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    csa += config.IsCsa(layer) ? 1 : 0;
    hca += config.IsHca(layer) ? 1 : 0;
  }
  return absl::StrFormat("%d (%d sliding, %d CSA, %d HCA; %d hash-routed) + %d MTP",
                         config.num_hidden_layers, config.num_hidden_layers - csa - hca, csa, hca,
                         config.num_hash_layers, config.num_nextn_predict_layers);
}

std::string ConfigText(const ModelConfig& c) {
  std::string text;
  const auto line = [&text](const char* name, const std::string& value) {
    text += absl::StrFormat("  %-18s %s\n", name, value);
  };
  line("layers", LayerText(c));
  line("hidden", absl::StrFormat("%d, %d streams", c.hidden_size, c.hc_mult));
  line("attention", absl::StrFormat("%d heads of %d (%d rope), q rank %d, o rank %d x %d groups",
                                    c.num_attention_heads, c.head_dim, c.qk_rope_head_dim,
                                    c.q_lora_rank, c.o_lora_rank, c.o_groups));
  line("index",
       absl::StrFormat("%d heads of %d, top %d", c.index_n_heads, c.index_head_dim, c.index_topk));
  line("experts", absl::StrFormat("%d routed, %d a token, inner %d, %s", c.n_routed_experts,
                                  c.num_experts_per_tok, c.moe_intermediate_size, c.expert_dtype));
  line("window", absl::StrFormat("%d", c.sliding_window));
  line("vocabulary", absl::StrFormat("%d", c.vocab_size));
  line("max positions", absl::StrFormat("%d", c.max_position_embeddings));
  return text;
}

// Names of the dtypes of wo_a and of the scales, the two things the variants of model.md 9.5 differ
// in.
std::string VariantText(const Checkpoint& checkpoint) {
  std::set<std::string_view> out_projection;
  std::set<std::string_view> scales;
  for (const HostTensor* tensor : checkpoint.tensors()) {
    if (tensor->name.ends_with("wo_a.weight")) out_projection.insert(DTypeName(tensor->dtype));
    if (tensor->name.ends_with(".scale")) scales.insert(DTypeName(tensor->dtype));
  }
  std::string text = "wo_a";
  for (std::string_view dtype : out_projection) text += absl::StrFormat(" %s", dtype);
  text += ", scales";
  for (std::string_view dtype : scales) text += absl::StrFormat(" %s", dtype);
  return text;
}

std::string BytesText(const char* title, const std::map<std::string_view, uint64_t>& bytes) {
  std::string text = absl::StrFormat("%s\n", title);
  for (const auto& [name, count] : bytes) text += absl::StrFormat("  %-18s %16d\n", name, count);
  return text;
}

std::string IdsText(const Checkpoint& checkpoint, const std::string& cache_folder) {
  const auto weights = checkpoint.ComputeWeightsId(cache_folder);
  std::string text = "ids\n";
  const std::string weights_text = weights.ok() ? weights->Hex() : weights.status().ToString();
  text += absl::StrFormat("  %-18s %s\n", "weights", weights_text);
  for (const bool is_float32 : {false, true}) {
    const auto mode =
        is_float32 ? kernels::NumericsMode::kFloat32 : kernels::NumericsMode::kOfficial;
    const kernels::PageLayout layout(LayoutShapeOf(checkpoint.config(), mode));
    const NumericsClass numerics = CpuNumericsClass(is_float32);
    text += absl::StrFormat("  layout, %-10s %s  %s\n", numerics.mode, layout.Id().Hex(),
                            layout.CanonicalText());
    text += absl::StrFormat("  class, %-11s %s  %s\n", numerics.mode, ClassIdOf(numerics).Hex(),
                            CanonicalText(numerics));
  }
  return text;
}

}  // namespace

std::string_view CategoryOf(std::string_view name) {
  if (name.starts_with("mtp.")) return "MTP";
  if (name == "embed.weight") return "embed";
  if (name == "head.weight") return "head";
  if (Contains(name, ".experts."))
    return name.ends_with(".scale") ? "expert scales" : "expert weights";
  if (Contains(name, ".shared_experts.")) return "shared experts";
  if (name.ends_with("tid2eid")) return "tid2eid";
  if (Contains(name, ".gate.")) return "gates";
  if (Contains(name, ".indexer.")) return "indexers";
  if (Contains(name, ".compressor.")) return "compressors";
  if (Contains(name, "hc_")) return "mHC";
  if (name.ends_with("norm.weight")) return "norms";
  return "attention";
}

std::string InspectCheckpoint(const Checkpoint& checkpoint, const std::string& cache_folder) {
  std::map<std::string_view, uint64_t> by_category;
  std::map<std::string_view, uint64_t> by_dtype;
  for (const HostTensor* tensor : checkpoint.tensors()) {
    by_category[CategoryOf(tensor->name)] += tensor->bytes.size();
    by_dtype[DTypeName(tensor->dtype)] += tensor->bytes.size();
  }
  std::string text = absl::StrFormat("checkpoint %s\n", checkpoint.folder());
  text += ConfigText(checkpoint.config());
  text += absl::StrFormat("  %-18s %s\n", "variant", VariantText(checkpoint));
  text += absl::StrFormat("tensors %d, bytes %d\n", checkpoint.tensors().size(),
                          checkpoint.total_bytes());
  text += BytesText("bytes by category", by_category);
  text += BytesText("bytes by dtype", by_dtype);
  return text + IdsText(checkpoint, cache_folder);
}

}  // namespace baton::engine
