#include "kernels/cuda/attend.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cpu/quantise.h"
#include "kernels/cuda/gpu_test_model.h"

// Attention over several blocks and segments of keys against sums in double, and against itself:
// a row's bits must depend neither on the rows beside it, nor on where its window rows come from,
// nor on whether its segments run beside one another or four blocks of threads share it.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;
using testing::RandomValues;

constexpr int kGroupCodes = 64;  // of one scale
constexpr int kDeadRows = 3;     // of a bucket

struct Case {
  const char* name;
  int heads = 64, dim = 512, rope = 64, window = 128;
  int ratio = 0, topk = 512;
  int first = 0, rows = 1;  // positions
  bool is_bounded = true;
};

// One sequence's keys and queries on the host, and what the kernel gets of them.
class Attended {
 public:
  Attended(const Case& c, CudaDevice& device) : c_(c), device_(device) {
    const int end = c.first + c.rows;
    query_ = Bf16Values(Count(c.rows, c.heads * c.dim), 1, 1.7f);
    window_ = Bf16Values(Count(c.rows + c.window - 1, c.dim), 2, 1.7f);
    sink_ = RandomValues(static_cast<size_t>(c.heads), 3, 2.0f);
    frequencies_.resize(static_cast<size_t>(c.rope / 2));
    for (int i = 0; i < c.rope / 2; ++i) {
      frequencies_[static_cast<size_t>(i)] = 1.0f / static_cast<float>(1 + i);
    }
    if (c.ratio > 0) MakeEntries(end / c.ratio);
    if (c.ratio == kCsaRatio) Select();
  }

  int NumEntries(int row) const {
    if (c_.ratio == kCsaRatio) return num_selected_[static_cast<size_t>(row)];
    return c_.ratio == 0 ? 0 : (c_.first + row + 1) / c_.ratio;
  }

  // Output of rows first_row .. + rows - 1, run as one step.
  std::vector<uint16_t> Run(int first_row, int rows, bool is_split) {
    AttendArgs args;
    args.shape.heads = c_.heads;
    args.shape.head_dim = c_.dim;
    args.shape.rope_dim = c_.rope;
    args.shape.window = c_.window;
    args.shape.index_topk = c_.topk;
    args.shape.score_scale = Scale();
    args.ratio = c_.ratio;
    args.has_bounded_scores = c_.is_bounded;
    SetStep(args.step, first_row, rows);
    SetPages(args.pages);
    args.frequencies = Up(frequencies_);
    args.query = Up(Part(query_, first_row, rows, c_.heads * c_.dim));
    const int reach = c_.window - 1;
    args.kv = Up(Part(window_, reach + first_row, rows, c_.dim));
    args.old_window = Up(Part(window_, first_row, reach, c_.dim));
    args.selected = Up(Part(selected_, first_row, rows, selected_.empty() ? 0 : c_.topk));
    args.num_selected =
        UpBucket(Part(num_selected_, first_row, rows, num_selected_.empty() ? 0 : 1));
    args.sink = Up(sink_);
    const int segments = AttendSegments(c_.ratio, c_.topk, NumEntries(c_.rows - 1));
    args.segments = is_split ? segments : 1;
    const auto floats = static_cast<size_t>(AttendPartialFloats(rows, segments, c_.heads, c_.dim));
    args.partials = Up(std::vector<float>(floats, std::nanf("")));
    const size_t outputs = Count(rows, c_.heads * c_.dim);
    auto* attended = Up(std::vector<uint16_t>(outputs, 0x7fff));
    args.attended = attended;
    EXPECT_EQ(RunAttend(args, device_.stream()), cudaSuccess);
    return Download<uint16_t>(device_, attended, outputs);
  }

  // What a row's head should be, before the last rounding.
  std::vector<double> Expected(int row, int head) const {
    const std::vector<std::vector<float>> keys = KeysOf(row);
    const uint16_t* query = &query_[Count(row * c_.heads + head, c_.dim)];
    std::vector<double> sums(static_cast<size_t>(c_.dim));
    std::vector<float> scores;
    float max = c_.is_bounded ? 0.0f : sink_[static_cast<size_t>(head)];
    for (const std::vector<float>& key : keys) {
      double dot = 0;
      for (int i = 0; i < c_.dim; ++i) {
        dot += double{cpu::DecodeBf16(query[i])} * double{key[static_cast<size_t>(i)]};
      }
      scores.push_back(static_cast<float>(dot) * Scale());
      if (!c_.is_bounded) max = std::max(max, scores.back());
    }
    double denominator = std::exp(double{sink_[static_cast<size_t>(head)]} - double{max});
    for (size_t k = 0; k < keys.size(); ++k) {
      const double p = std::exp(double{scores[k]} - double{max});
      const double weight = double{cpu::RoundBf16(static_cast<float>(p))};
      denominator += p;
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += weight * double{keys[k][i]};
    }
    for (double& sum : sums) sum /= denominator;
    RotateBack(row, sums);
    return sums;
  }

 private:
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(c_.dim)); }

  static std::vector<uint16_t> Bf16Values(size_t count, uint32_t seed, float size) {
    std::vector<uint16_t> values;
    for (const float value : RandomValues(count, seed, size)) {
      values.push_back(cpu::EncodeBf16(value));
    }
    return values;
  }
  template <typename T>
  static std::vector<T> Part(const std::vector<T>& all, int first, int rows, int width) {
    const auto begin = all.begin() + int64_t{first} * width;
    return {begin, begin + int64_t{rows} * width};
  }
  template <typename T>
  T* Up(const std::vector<T>& values) {
    if (values.empty()) return nullptr;
    return reinterpret_cast<T*>(
        const_cast<uint8_t*>(*device_.UploadBytes(values.data(), values.size() * sizeof(T))));
  }

  // Rows of the bucket that are not live hold nonsense.
  int32_t* UpBucket(std::vector<int32_t> rows) {
    if (!rows.empty()) rows.resize(rows.size() + kDeadRows, 1 << 28);
    return Up(rows);
  }

  int DataBytes() const { return c_.dim + c_.rope; }
  int RowsPerPage() const { return kPageTokens / c_.ratio; }
  uint64_t Stride() const { return static_cast<uint64_t>(RowsPerPage()) * (DataBytes() + 8) + 64; }

  // Random codes without NaN, scales of a wide range, bf16 rope values; pages in reverse order.
  void MakeEntries(int entries) {
    const int pages = entries / RowsPerPage() + 1, nope = c_.dim - c_.rope;
    pages_.resize(Stride() * static_cast<uint64_t>(pages), 0xff);
    page_table_.resize(static_cast<size_t>(pages));
    std::iota(page_table_.rbegin(), page_table_.rend(), 0);
    const std::vector<float> random = RandomValues(Count(entries, DataBytes()), 4, 1.0f);
    for (int entry = 0; entry < entries; ++entry) {
      uint8_t* data = RowOf(entry);
      uint8_t* scales = ScalesOf(entry);
      std::fill_n(scales, 8, uint8_t{0});
      for (int group = 0; group < nope / kGroupCodes; ++group) {
        scales[group] = static_cast<uint8_t>(119 + (entry + 3 * group) % 4);
      }
      for (int i = 0; i < nope; ++i) {
        const float value = random[Count(entry, DataBytes()) + static_cast<size_t>(i)];
        data[i] = cpu::EncodeE4m3(i % 17 == 0 ? value * 0.01f : value * 200.0f);
      }
      for (int i = 0; i < c_.rope; ++i) {
        const float value = random[Count(entry, DataBytes()) + static_cast<size_t>(nope + i)];
        const uint16_t code = cpu::EncodeBf16(value);
        data[nope + 2 * i] = static_cast<uint8_t>(code & 255);
        data[nope + 2 * i + 1] = static_cast<uint8_t>(code >> 8);
      }
    }
  }
  uint8_t* PageOf(int entry) {
    const auto page =
        static_cast<uint64_t>(page_table_[static_cast<size_t>(entry / RowsPerPage())]);
    return pages_.data() + page * Stride();
  }
  uint8_t* RowOf(int entry) { return PageOf(entry) + entry % RowsPerPage() * DataBytes(); }
  uint8_t* ScalesOf(int entry) {
    return PageOf(entry) + RowsPerPage() * DataBytes() + entry % RowsPerPage() * 8;
  }

  // Every row another sorted choice of its entries.
  void Select() {
    std::mt19937 random(5);
    for (int row = 0; row < c_.rows; ++row) {
      std::vector<int32_t> entries(static_cast<size_t>((c_.first + row + 1) / c_.ratio));
      std::iota(entries.begin(), entries.end(), 0);
      std::shuffle(entries.begin(), entries.end(), random);
      if (entries.size() > static_cast<size_t>(c_.topk))
        entries.resize(static_cast<size_t>(c_.topk));
      std::sort(entries.begin(), entries.end());
      num_selected_.push_back(static_cast<int32_t>(entries.size()));
      entries.resize(static_cast<size_t>(c_.topk), -1);
      selected_.insert(selected_.end(), entries.begin(), entries.end());
    }
  }

  void SetStep(DeviceStep& step, int first_row, int rows) {
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), c_.first + first_row);
    RunInfo run;
    run.num_rows = rows;
    run.first = c_.first + first_row;
    step.num_rows = Up(std::vector<int32_t>{rows});
    step.position = UpBucket(positions);
    step.sequence = UpBucket(std::vector<int32_t>(static_cast<size_t>(rows), 0));
    step.page_table = Up(page_table_);
    step.runs = Up(std::vector<RunInfo>{run});
    step.max_pages = static_cast<int>(page_table_.size());
    step.rows = rows + kDeadRows;
    step.sequences = 1;
  }
  void SetPages(LayerPages& pages) {
    if (c_.ratio == 0) return;
    pages.base = Up(pages_);
    pages.stride = Stride();
    pages.data_bytes = DataBytes();
    pages.scale_bytes = 8;
    pages.rows_per_page = RowsPerPage();
    pages.scales = static_cast<uint64_t>(RowsPerPage() * DataBytes());
  }

  std::vector<std::vector<float>> KeysOf(int row) const {
    std::vector<std::vector<float>> keys;
    const int position = c_.first + row;
    for (int p = std::max(position - c_.window + 1, 0); p <= position; ++p) {
      const size_t at = Count(p - c_.first + c_.window - 1, c_.dim);
      keys.emplace_back();
      for (int i = 0; i < c_.dim; ++i) {
        keys.back().push_back(cpu::DecodeBf16(window_[at + static_cast<size_t>(i)]));
      }
    }
    for (int rank = 0; rank < NumEntries(row); ++rank) {
      keys.push_back(Entry(c_.ratio == kCsaRatio
                               ? selected_[Count(row, c_.topk) + static_cast<size_t>(rank)]
                               : rank));
    }
    return keys;
  }
  std::vector<float> Entry(int entry) const {
    auto& self = const_cast<Attended&>(*this);
    const uint8_t* data = self.RowOf(entry);
    const uint8_t* scales = self.ScalesOf(entry);
    const int nope = c_.dim - c_.rope;
    std::vector<float> values;
    for (int i = 0; i < nope; ++i) {
      values.push_back(cpu::DecodeE4m3(data[i]) * cpu::DecodeE8m0(scales[i / kGroupCodes]));
    }
    for (int i = 0; i < c_.rope; ++i) {
      const int code = data[nope + 2 * i] | data[nope + 2 * i + 1] << 8;
      values.push_back(cpu::DecodeBf16(static_cast<uint16_t>(code)));
    }
    return values;
  }
  void RotateBack(int row, std::vector<double>& sums) const {
    for (int i = 0; i < c_.rope / 2; ++i) {
      const auto at = static_cast<size_t>(c_.dim - c_.rope + 2 * i);
      const double angle =
          double{static_cast<float>(c_.first + row) * frequencies_[static_cast<size_t>(i)]};
      const double a = sums[at], b = sums[at + 1];
      sums[at] = a * std::cos(angle) + b * std::sin(angle);
      sums[at + 1] = b * std::cos(angle) - a * std::sin(angle);
    }
  }

  const Case c_;
  CudaDevice& device_;
  std::vector<uint16_t> query_, window_;
  std::vector<float> sink_, frequencies_;
  std::vector<uint8_t> pages_;
  std::vector<int32_t> page_table_, selected_, num_selected_;
};

// |output - expected| / |expected| over some heads of some rows; bf16 alone gives about 2e-3.
double ErrorOf(const Case& c, const Attended& attended, const std::vector<uint16_t>& output) {
  double error = 0, size = 0;
  for (int row = 0; row < c.rows; row += std::max(c.rows / 4, 1)) {
    for (int head = 0; head < c.heads; head += std::max(c.heads / 3, 1)) {
      const std::vector<double> expected = attended.Expected(row, head);
      for (size_t i = 0; i < expected.size(); ++i) {
        const double got = double{cpu::DecodeBf16(output[Count(row * c.heads + head, c.dim) + i])};
        error += (got - expected[i]) * (got - expected[i]);
        size += expected[i] * expected[i];
      }
    }
  }
  return std::sqrt(error / size);
}

void Check(const Case& c) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  Attended attended(c, static_cast<CudaDevice&>(*device));
  const std::vector<uint16_t> all = attended.Run(0, c.rows, /*is_split=*/false);
  const double error = ErrorOf(c, attended, all);
  std::printf("  %-28s %.2e\n", c.name, error);
  EXPECT_LT(error, 3e-3) << c.name;
  for (int i = 0; i < 3; ++i) EXPECT_EQ(attended.Run(0, c.rows, false), all) << c.name << " again";
  for (int i = 0; i < 2 && c.rows <= kMaxSplitRows; ++i) {
    EXPECT_EQ(attended.Run(0, c.rows, /*is_split=*/true), all) << c.name << " split";
  }
  const auto width = static_cast<int64_t>(c.heads) * c.dim;
  for (int row = 0; row < c.rows; row += std::max(c.rows / 5, 1)) {
    const std::vector<uint16_t> part(all.begin() + row * width, all.begin() + (row + 1) * width);
    for (const bool is_split : {false, true}) {
      EXPECT_EQ(attended.Run(row, 1, is_split), part) << c.name << " row " << row << is_split;
    }
  }
}

TEST(CudaAttend, Windows) {
  Check({.name = "window from 0", .first = 0, .rows = 200});
  Check({.name = "window", .first = 1000, .rows = 300});
  Check({.name = "window, maximum", .first = 77, .rows = 30, .is_bounded = false});
  Check({.name = "odd sizes",
         .heads = 8,
         .dim = 160,
         .rope = 32,
         .window = 96,
         .first = 90,
         .rows = 40});
}

TEST(CudaAttend, SelectedEntries) {
  Check({.name = "CSA", .ratio = 4, .first = 5000, .rows = 20});
  Check({.name = "CSA, many rows", .ratio = 4, .first = 1900, .rows = 290});
  Check({.name = "CSA, rows in turn", .ratio = 4, .first = 5000, .rows = 45});
  Check({.name = "CSA, maximum", .ratio = 4, .first = 3000, .rows = 9, .is_bounded = false});
  Check({.name = "CSA, maximum, many rows",
         .ratio = 4,
         .first = 1990,
         .rows = 100,
         .is_bounded = false});
  Check({.name = "CSA, three segments", .ratio = 4, .topk = 1100, .first = 4400, .rows = 5});
  Check({.name = "CSA, demo heads", .heads = 4, .ratio = 4, .topk = 64, .first = 250, .rows = 32});
  Check({.name = "CSA, odd heads", .heads = 40, .ratio = 4, .first = 2500, .rows = 6});
}

TEST(CudaAttend, DenseEntries) {
  Check({.name = "HCA", .ratio = 128, .first = 8100, .rows = 20});
  Check({.name = "HCA, four segments", .ratio = 128, .first = 140000, .rows = 5});
  Check({.name = "HCA, many rows", .ratio = 128, .first = 70000, .rows = 90});
  Check({.name = "HCA, many segments", .ratio = 128, .first = 140000, .rows = 30});
  Check({.name = "HCA, border", .ratio = 128, .first = 65530, .rows = 12});
  Check({.name = "HCA, maximum", .ratio = 128, .first = 140000, .rows = 3, .is_bounded = false});
  Check({.name = "small heads", .heads = 4, .dim = 128, .ratio = 128, .first = 9000, .rows = 32});
  Check({.name = "many heads", .heads = 128, .ratio = 128, .first = 300, .rows = 6});
}

}  // namespace
}  // namespace baton::kernels::cuda
