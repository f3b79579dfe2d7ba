#pragma once

#include <map>
#include <string>

#include "kernels/cpu/cpu_ops_impl.h"
#include "kernels/cuda/gpu_test_model.h"

namespace baton::kernels::cuda::testing {

// Both back ends with one model, run phase by phase. Before a phase the GPU's activations become
// the CPU's, so each phase is compared on equal inputs and errors do not add up.
class Lockstep {
 public:
  static constexpr int kPages = 12;
  static constexpr int kMaxRows = 320;
  static constexpr int kManyRows = 100;

  Lockstep(const TestShape& shape, Device& gpu_device, bool has_reference_linears);

  // Run one phase on both. The activations named in `exact` must then be equal, the error of those
  // in `close` (1 - 2 <x, y> / (<x, x> + <y, y>)) below `limit` where there are kManyRows or more,
  // and that of every single row below 100 times the limit: one value that a rounding takes to
  // another e4m3 counts for much in few rows. With reference linears only attention may differ.
  // Reports by gtest.
  struct Expectation {
    std::vector<std::string> exact = {};
    std::vector<std::string> close = {};
    double limit = 0;
  };
  template <typename Phase>
  void Run(const char* name, const Expectation& expected, const Phase& phase) {
    Inject();
    const absl::Status cpu_status = phase(*cpu_, cpu_weights_);
    const absl::Status gpu_status = phase(*gpu_, gpu_weights_);
    ASSERT_TRUE(cpu_status.ok()) << name << ": " << cpu_status.ToString();
    ASSERT_TRUE(gpu_status.ok()) << name << ": " << gpu_status.ToString();
    Compare(name, expected);
  }
  // AdvanceStep on both; later phases compare the runs' rows.
  void Advance(std::span<const SequenceRows> runs);
  // The same of a step that follows, whose views must be equal. Returns its tokens.
  std::vector<int32_t> AdvanceFollowing(std::span<const SequenceRows> runs);
  // The same of the drafter, whose views must be equal.
  void AdvanceDrafter(DrafterRows rows);
  void ExpectEqualPages(const char* where);
  // What both have chosen, accepted and drafted. Returns the rows that stay by run.
  std::vector<int32_t> Harvest(size_t num_choices, size_t num_runs, size_t num_drafts);
  // Tails of both at position `num_tokens`, which must be equal; then unpacked into another slot.
  void MoveTail(int slot, uint64_t num_tokens, int to_slot);

  Ops& gpu() { return *gpu_; }
  int num_rows() const { return num_rows_; }
  // Largest error seen over many rows, by phase and activation.
  const std::map<std::string, double>& errors() const { return errors_; }

 private:
  void AdvanceBoth(const AdvanceArgs& args);
  void ExpectEqualViews();

  enum class Kind { kBf16, kF32, kI32 };
  struct Field {
    std::string name;
    Kind kind;
    std::vector<float>* cpu;  // or
    std::vector<int32_t>* cpu_ints;
    void* gpu;
    const std::vector<float>* scales = nullptr;  // of the CPU's groups of 128
  };
  void AddFields();
  const Field& Named(const std::string& name) const;
  size_t WidthOf(const Field& field) const;
  std::vector<float> ReadCpu(const Field& field) const;
  std::vector<float> ReadGpu(const Field& field);
  void Inject();
  void Compare(const char* name, const Expectation& expected);
  void CompareExactly(const char* name, const std::string& field);
  void CompareClosely(const char* name, const std::string& field, double limit);

  const TestShape shape_;
  const bool has_reference_linears_;
  CudaDevice& device_;
  std::unique_ptr<Device> cpu_device_;
  ModelWeights cpu_weights_, gpu_weights_;
  std::unique_ptr<Ops> cpu_, gpu_;
  std::byte *cpu_pages_ = nullptr, *gpu_pages_ = nullptr;
  PageLayout layout_;
  std::vector<Field> fields_;
  int num_rows_ = 0;
  std::map<std::string, double> errors_;
};

}  // namespace baton::kernels::cuda::testing
