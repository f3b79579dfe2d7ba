#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cpu/test_matrices.h"

// A made-up model of one layer for tests of single phases.
namespace baton::kernels::cpu::testing {

inline constexpr int kHidden = 128;
inline constexpr int kVocabulary = 300;
inline constexpr int kExperts = 5;
inline constexpr int kMaxRows = 640;  // more than one expert slice

ModelConfig OneLayerConfig();
LayoutShape OneLayerShape();

struct OneLayerOptions {
  int spread = 3;  // of expert 2's group scales; the others have 3
  bool has_fp8_experts = false;
  bool is_hashed = false;
  bool is_scalar = false;
  NumericsMode mode = NumericsMode::kOfficial;
  ParallelFor parallel = nullptr;
};

// The layer's weights and the ops that run it, with three tail slots and sequences.
class OneLayerModel {
 public:
  explicit OneLayerModel(const OneLayerOptions& options);

  Activations& act() { return static_cast<CpuOps&>(*ops_).activations(); }
  Ops& ops() { return *ops_; }
  ModelWeights& weights() { return weights_; }

  // Positions 0 .. of slot 0 as they enter the layer.
  void Start(std::span<const int32_t> tokens);
  // The runs' rows as they enter the layer; pages are filled in.
  void Step(std::vector<SequenceRows> runs);
  void EnterDrafter(bool goes_on);
  absl::Status Head(std::span<const int32_t> rows, bool has_all_rows);
  // Everything each row goes through except attention itself; [rows][values].
  std::vector<std::vector<float>> Run(std::span<const int32_t> tokens);

 private:
  const Matrix* Upload(StoredMatrix m);
  const Matrix* Fp8(int rows, int cols) { return Upload(RandomFp8(rows, cols, ++seed_)); }
  const Matrix* Bf16(int rows, int cols);
  Vector Values(int n, float size);
  MixWeights Mix(int outputs, int scales);
  ExpertWeights Expert(int spread, bool has_fp8);
  void Load(const OneLayerOptions& options);

  uint32_t seed_ = 100;
  std::unique_ptr<Device> device_;
  ModelWeights weights_;
  std::unique_ptr<Ops> ops_;
};

std::vector<int32_t> Tokens(int count);

}  // namespace baton::kernels::cpu::testing
