#include <cmath>

#include "kernels/cuda/gpu_test_model.h"
#include "kernels/cuda/rows.h"
#include "kernels/cuda/slot_book.h"

// StoreRows of short runs goes two ways, which must not differ in a bit: in one launch, or as runs
// of any length do.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;

constexpr int kPageTokens256 = 256, kMaxDraftRows = 8;

struct Case {
  int head_dim, rope_dim, index_dim, q_lora, window, ratio;
  bool has_fp4_index;
  // Rows, first position, whether they are verified.
  std::vector<RunInfo> runs;
};

// Device memory of one case; made again from the same seed it is equal.
class StoreCase {
 public:
  StoreCase(CudaDevice& device, const Case& c) : device_(device), case_(c) {
    MakeStep();
    MakeShape();
    MakeSlots();
    MakePages();
    MakeActivations();
  }

  RowsArgs& args() { return args_; }

  // All that StoreRows writes and later steps read.
  std::vector<std::vector<uint8_t>> Results() const {
    std::vector<std::vector<uint8_t>> results;
    for (const auto& [data, bytes] : outputs_) {
      results.push_back(Download<uint8_t>(device_, data, bytes));
    }
    return results;
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }

  template <typename T>
  T* Up(const std::vector<T>& values, bool is_output = false) {
    auto* data = const_cast<uint8_t*>(
        *device_.UploadBytes(values.data(), std::max<size_t>(values.size(), 1) * sizeof(T)));
    if (is_output) outputs_.push_back({data, values.size() * sizeof(T)});
    return reinterpret_cast<T*>(data);
  }
  float* Floats(size_t count, float spread, float center = 0.0f) {
    std::vector<float> values(count);
    for (float& v : values) {
      v = center + (static_cast<float>(Below(20001)) * 1e-4f - 1.0f) * spread;
    }
    return Up(values);
  }
  uint16_t* Bf16(size_t count, bool is_output) {
    std::vector<uint16_t> values(count);
    for (uint16_t& v : values) {
      v = static_cast<uint16_t>(Below(2) << 15 | (120 + Below(9)) << 7 | Below(128));
    }
    return Up(values, is_output);
  }

  void MakeStep() {
    std::vector<int32_t> position, sequence;
    int slot = 0;
    for (RunInfo run : case_.runs) {
      run.slot = slot++;
      run.first_row = static_cast<int32_t>(position.size());
      for (int i = 0; i < run.num_rows; ++i) {
        position.push_back(static_cast<int32_t>(run.first) + i);
        sequence.push_back(static_cast<int32_t>(runs_.size()));
      }
      runs_.push_back(run);
    }
    rows_ = static_cast<int>(position.size());
    args_.step.rows = rows_ + 3;  // pads
    args_.step.sequences = static_cast<int>(runs_.size()) + 1;
    args_.step.max_pages = 8;
    std::vector<int32_t> pages(runs_.size() * 8);
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(pages.size() - 1 - i);
    std::vector<RunInfo> infos = runs_;
    infos.emplace_back();  // no rows
    position.resize(position.size() + 3);
    sequence.resize(sequence.size() + 3);
    args_.step.num_rows = Up(std::vector<int32_t>{rows_});
    args_.step.position = Up(position);
    args_.step.sequence = Up(sequence);
    args_.step.page_table = Up(pages);
    args_.step.runs = Up(infos);
    num_pages_ = static_cast<int>(pages.size());
  }

  void MakeShape() {
    ModelShape& shape = args_.shape;
    shape.head_dim = case_.head_dim;
    shape.rope_dim = case_.rope_dim;
    shape.index_dim = case_.index_dim;
    shape.q_lora = case_.q_lora;
    shape.window = case_.window;
    shape.norm_epsilon = 1e-6f;
    shape.index_norm = 1.0f / std::sqrt(static_cast<float>(case_.index_dim));
    args_.ratio = case_.ratio;
    args_.layer = 0;
  }

  void MakeSlots() {
    LayoutShape shape;
    shape.head_dim = case_.head_dim;
    shape.rope_dim = case_.rope_dim;
    shape.index_head_dim = case_.index_dim;
    shape.window = case_.window;
    shape.hc_mult = 4;
    shape.hidden_size = 128;
    shape.num_layers = 1;
    if (case_.ratio == 4) shape.csa_layers = {0};
    if (case_.ratio == 128) shape.hca_layers = {0};
    args_.slots = SlotBook::LayoutOf(shape, kMaxDraftRows);
    const size_t floats = args_.slots.slot_bytes / 4 * runs_.size();
    std::vector<float> memory(floats);
    // Cached codes and fp32 sums alike: any small positive value is both.
    for (float& v : memory) v = 0.5f + static_cast<float>(Below(1000)) * 1e-3f;
    args_.slots.base = reinterpret_cast<uint8_t*>(Up(memory, true));
  }

  void MakePages() {
    const int rows = case_.ratio == 0 ? 1 : kPageTokens256 / case_.ratio;
    LayerPages& pages = args_.pages;
    pages.rows_per_page = rows;
    pages.data_bytes = case_.head_dim + case_.rope_dim;
    pages.scale_bytes = 8;
    pages.index_value_bytes = case_.has_fp4_index ? case_.index_dim / 2 : case_.index_dim;
    pages.index_scale_bytes = 4;
    pages.has_fp4_index = case_.has_fp4_index;
    pages.data = 256;
    const auto after = [rows](uint64_t offset, int bytes) {
      return (offset + Count(rows, bytes) + 255) / 256 * 256;
    };
    pages.scales = after(pages.data, pages.data_bytes);
    pages.index_values = after(pages.scales, pages.scale_bytes);
    pages.index_scales = after(pages.index_values, pages.index_value_bytes);
    pages.stride = after(pages.index_scales, pages.index_scale_bytes);
    pages.base = Up(std::vector<uint8_t>(pages.stride * Count(num_pages_, 1), 0x5a), true);
  }

  void MakeActivations() {
    const size_t rows = Count(rows_ + 3, 1), dim = Count(case_.head_dim, 1);
    const size_t index = Count(case_.index_dim, 1), low = Count(case_.q_lora, 1);
    const size_t ratio = Count(std::max(case_.ratio, 1), 1);
    args_.frequencies = Floats(Count(case_.rope_dim, 1), 0.4f, 0.5f);
    args_.entry_frequencies = Floats(Count(case_.rope_dim, 1), 0.4f, 0.5f);
    args_.query_low = Bf16(rows * low, true);
    args_.query_low8 = Bf16(rows * low, true);
    args_.kv = Bf16(rows * dim, true);
    args_.old_window = Bf16(Count(args_.step.sequences, case_.window - 1) * dim, true);
    args_.q_norm = Floats(low, 0.3f, 1.0f);
    args_.kv_norm = Floats(dim, 0.3f, 1.0f);
    args_.entry_norm = Floats(dim, 0.3f, 1.0f);
    args_.index_entry_norm = Floats(index, 0.3f, 1.0f);
    args_.compressor_kv = Floats(rows * 2 * dim, 2.0f);
    args_.compressor_score = Floats(rows * 2 * dim, 4.0f);
    args_.index_kv = Floats(rows * 2 * index, 2.0f);
    args_.index_score = Floats(rows * 2 * index, 4.0f);
    args_.ape = Floats(ratio * 2 * dim, 1.0f);
    args_.index_ape = Floats(ratio * 2 * index, 1.0f);
    args_.pooled = Floats(rows * dim, 0.0f);
    args_.hca_state = Floats(Count(args_.step.sequences, 3) * dim, 0.0f);
  }

  CudaDevice& device_;
  const Case& case_;
  std::mt19937 random_{7};
  RowsArgs args_;
  int rows_ = 0, num_pages_ = 0;
  std::vector<RunInfo> runs_;
  std::vector<std::pair<const uint8_t*, size_t>> outputs_;
};

TEST(CudaStoreRows, ShortRunsAreStoredAlikeBothWays) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  const auto run = [](int rows, int64_t first, bool is_verify) {
    return RunInfo{.is_verify = is_verify ? 1 : 0, .num_rows = rows, .first = first};
  };
  // Entries close inside, at the end of and behind runs; positions from 0 on.
  const std::vector<RunInfo> runs = {run(1, 0, false),  run(4, 0, true),     run(1, 127, false),
                                     run(8, 124, true), run(5, 1147, false), run(3, 383, true),
                                     run(2, 640, true), run(1, 511, true),   run(8, 1016, false)};
  for (const int ratio : {0, 4, 128}) {
    for (const Case& c : {Case{512, 64, 128, 1024, 128, ratio, false, runs},
                          Case{512, 64, 128, 1024, 128, ratio, true, runs},
                          Case{96, 32, 32, 256, 16, ratio, false, runs},
                          Case{192, 64, 64, 1152, 40, ratio, true, runs}}) {
      StoreCase in_one(cuda, c), as_long(cuda, c);
      in_one.args().has_short_runs = true;
      ASSERT_EQ(RunStoreRows(in_one.args(), cuda.stream()), cudaSuccess);
      ASSERT_EQ(RunStoreLongRows(as_long.args(), cuda.stream()), cudaSuccess);
      const auto expected = in_one.Results(), got = as_long.Results();
      ASSERT_EQ(expected.size(), got.size());
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(got[i] == expected[i]) << "ratio " << ratio << " D " << c.head_dim << " FP4 "
                                           << c.has_fp4_index << " output " << i;
      }
    }
  }
}

}  // namespace
}  // namespace baton::kernels::cuda
