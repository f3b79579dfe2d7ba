#include "kernels/cuda/select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/cpu/quantise.h"
#include "kernels/cuda/gpu_test_model.h"
#include "kernels/cuda/select_decode.h"

// The indexer's scores and top-k equal the CPU's bit for bit.
namespace baton::kernels::cuda {
namespace {

using testing::Count;
using testing::Download;

std::vector<int32_t> BestOnCpu(const float* scores, int n, int k) {
  std::vector<int32_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [scores](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  order.resize(static_cast<size_t>(std::min(n, k)));
  std::sort(order.begin(), order.end());
  return order;
}

std::vector<float> MaximaOf(const float* scores, int n) {
  std::vector<float> maxima;
  for (int i = 0; i < n; i += kGroupScores) {
    maxima.push_back(*std::max_element(scores + i, scores + std::min(i + kGroupScores, n)));
  }
  return maxima;
}

TEST(CudaSelect, PicksTheBestWithTiesToTheLowestIndex) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  constexpr int kStride = 5000;
  const std::vector<int32_t> counts = {0,    1,    511,  512,  513,  700,
                                       1023, 1024, 1025, 2048, 4999, 5000};
  const auto rows = static_cast<int>(counts.size());
  std::byte* memory = *device->Allocate(Count(rows, 600) * 4);
  for (const int k : {8, 512}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<float> scores = testing::RandomValues(Count(rows, kStride), 5, 3.0f);
      for (float& score : scores) {
        if (kind == 1) score = static_cast<float>(static_cast<int>(score));
        if (kind == 2) score = score > 2.0f ? score : -__builtin_inff();
        if (kind == 3) score = score > 0 ? 0.0f : -0.0f;
      }
      PickArgs args;
      args.scores =
          reinterpret_cast<const float*>(*cuda.UploadBytes(scores.data(), 4 * scores.size()));
      args.stride = kStride;
      args.counts = *device->UploadIndices(counts);
      args.rows = rows;
      args.k = k;
      args.selected = reinterpret_cast<int32_t*>(memory);
      args.num_selected = args.selected + rows * k;
      // As short rows and as long ones.
      for (const int longest : {kStride, 20 * kStride}) {
        args.longest = longest;
        testing::WriteTo(cuda, memory, std::vector<int32_t>(Count(rows, k + 1), -1));
        ASSERT_EQ(RunPick(args, cuda.stream()), cudaSuccess);
        const auto selected = Download<int32_t>(cuda, args.selected, Count(rows, k));
        const auto found = Download<int32_t>(cuda, args.num_selected, Count(rows, 1));
        for (size_t row = 0; row < counts.size(); ++row) {
          const auto expected = BestOnCpu(&scores[row * kStride], counts[row], k);
          ASSERT_EQ(found[row], static_cast<int32_t>(expected.size())) << counts[row];
          ASSERT_TRUE(std::equal(expected.begin(), expected.end(), &selected[row * Count(k, 1)]))
              << k << " " << kind << " " << counts[row] << " " << longest;
        }
      }
    }
  }
}

// Long rows with and without maxima. Kinds: as they come, many ties, few that are not -inf, one
// value, the best side by side.
TEST(CudaSelect, PicksTheBestOfLongRows) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  const std::vector<int32_t> counts = {100,   513,   2048,  2049,  2100,  4095,  5001,
                                       8193,  16383, 16384, 20000, 32767, 32768, 32700,
                                       30001, 29999, 28000, 9000,  700,   1024};
  constexpr int kLong = 262144;
  const auto random = testing::RandomValues(Count(kLong, 1) + 20 * 32768, 6, 3.0f);
  for (const int stride : {32768, 32770, kLong}) {
    const bool is_longest = stride == kLong;
    const std::vector<int32_t> of_rows = is_longest ? std::vector<int32_t>{kLong} : counts;
    for (int kind = 0; kind < 5; ++kind) {
      const auto rows = static_cast<int>(of_rows.size());
      std::vector<float> scores(Count(rows, stride));
      for (size_t i = 0; i < scores.size(); ++i) {
        const float score = random[i % random.size()];
        scores[i] = score;
        if (kind == 1) scores[i] = static_cast<float>(static_cast<int>(4.0f * score));
        if (kind == 2) scores[i] = score > 2.9f ? score : -__builtin_inff();
        if (kind == 3) scores[i] = 1.5f;
        if (kind == 4) scores[i] = score + (i / 700 % 7 == 3 ? 5.0f : 0.0f);
      }
      const int groups = (stride + kGroupScores - 1) / kGroupScores;
      std::vector<float> maxima(Count(rows, groups));
      for (int row = 0; row < rows; ++row) {
        const auto own = MaximaOf(&scores[Count(row, stride)], of_rows[static_cast<size_t>(row)]);
        std::copy(own.begin(), own.end(), &maxima[Count(row, groups)]);
      }
      for (const int k : {8, 512}) {
        PickArgs args;
        args.scores =
            reinterpret_cast<const float*>(*cuda.UploadBytes(scores.data(), 4 * scores.size()));
        args.stride = stride;
        args.counts = *device->UploadIndices(of_rows);
        args.k = k;
        args.longest = is_longest ? kLong : 32768;
        args.rows = rows;
        args.selected = reinterpret_cast<int32_t*>(*device->Allocate(Count(rows, k + 1) * 4));
        args.num_selected = args.selected + rows * k;
        args.maxima_stride = groups;
        const auto* uploaded =
            reinterpret_cast<const float*>(*cuda.UploadBytes(maxima.data(), 4 * maxima.size()));
        for (const bool has_maxima : {true, false}) {
          args.maxima = has_maxima ? uploaded : nullptr;
          ASSERT_EQ(RunPick(args, cuda.stream()), cudaSuccess);
          const auto selected = Download<int32_t>(cuda, args.selected, Count(rows, k));
          for (int row = 0; row < rows; ++row) {
            const auto expected =
                BestOnCpu(&scores[Count(row, stride)], of_rows[static_cast<size_t>(row)], k);
            ASSERT_TRUE(std::equal(expected.begin(), expected.end(), &selected[Count(row, k)]))
                << k << " " << kind << " " << stride << " " << row << " " << has_maxima;
          }
        }
      }
    }
  }
}

// The indexer at the real model's shape: 64 heads of 128 values. Queries and keys are e2m1 values
// times powers of two, as the model's are, so that products add up exactly.
class IndexCase {
 public:
  static constexpr int kHeads = 64, kDim = 128, kPageRows = 64, kTopK = 16;

  // Sequences of that many rows, whose last sees that many entries.
  IndexCase(std::vector<std::pair<int, int>> sequences, bool is_fp4, uint32_t seed)
      : is_fp4_(is_fp4), random_(seed) {
    int pages = 0;
    for (const auto& [rows, entries] : sequences) {
      const int64_t first = int64_t{4} * entries - rows + Below(4);
      runs_.push_back({.first_row = num_rows_, .num_rows = rows, .first = first});
      for (int i = 0; i < rows; ++i) {
        positions_.push_back(static_cast<int32_t>(first) + i);
        sequence_of_.push_back(static_cast<int32_t>(runs_.size()) - 1);
      }
      num_rows_ += rows;
      max_pages_ = std::max(max_pages_, (entries + kPageRows) / kPageRows);
      longest_ = std::max(longest_, entries + 1);
    }
    pages = static_cast<int>(sequences.size()) * max_pages_;
    for (int i = 0; i < pages; ++i) page_table_.push_back(pages - 1 - i);
    MakeKeys(pages);
    for (int i = 0; i < num_rows_ * kHeads * kDim; ++i) {
      const float scale = std::ldexp(1.0f, -3 + static_cast<int>(i / 32 * 7 % 5));
      query_.push_back(cpu::EncodeBf16(cpu::DecodeE2m1(static_cast<uint8_t>(Below(16))) * scale));
    }
    for (int i = 0; i < num_rows_ * kHeads; ++i) {
      weights_.push_back(static_cast<float>(Below(2000) - 700) * 1e-3f);
    }
  }

  // Bits and choices of the GPU; `slice_rows` at a time.
  void Check(CudaDevice& device, int slice_rows) {
    SelectArgs args;
    const std::vector<int32_t> num_rows = {num_rows_};
    args.step.num_rows = *device.UploadIndices(num_rows);
    args.step.position = *device.UploadIndices(positions_);
    args.step.sequence = *device.UploadIndices(sequence_of_);
    args.step.page_table = *device.UploadIndices(page_table_);
    args.step.runs = Up<RunInfo>(device, runs_);
    args.step.max_pages = max_pages_;
    args.step.rows = num_rows_ + 1;  // a pad
    args.step.sequences = static_cast<int>(runs_.size()) + 1;
    args.shape.index_heads = kHeads;
    args.shape.index_dim = kDim;
    args.shape.index_topk = kTopK;
    SetPages(device, args.pages);
    args.index_query = Up<uint16_t>(device, query_);
    args.index_weights = Up<float>(device, weights_);
    args.slice_rows = slice_rows;
    args.max_entries = longest_;
    args.arrivals =
        const_cast<uint32_t*>(Up<uint32_t>(device, std::vector<uint32_t>(Count(num_rows_ + 1, 1))));
    const size_t all = Count(slice_rows, longest_), chosen = Count(num_rows_ + 1, kTopK);
    const std::vector<float> poison(all, -12345.0f);
    args.scores = const_cast<float*>(Up<float>(device, poison));
    const std::vector<float> maxima(all / kGroupScores + Count(num_rows_ + 1, 1), -12345.0f);
    args.maxima = const_cast<float*>(Up<float>(device, maxima));
    args.selected = const_cast<int32_t*>(Up<int32_t>(device, std::vector<int32_t>(chosen, -1)));
    args.num_selected = const_cast<int32_t*>(
        Up<int32_t>(device, std::vector<int32_t>(Count(num_rows_ + 1, 1), -1)));
    ASSERT_EQ(RunSelect(args, longest_, device.stream()), cudaSuccess);
    const auto selected = Download<int32_t>(device, args.selected, chosen);
    const auto counts = Download<int32_t>(device, args.num_selected, Count(num_rows_, 1));
    const auto scores = Download<float>(device, args.scores, all);
    const auto largest = Download<float>(device, args.maxima, maxima.size());
    for (int row = 0; row < num_rows_; ++row) {
      const std::vector<float> expected = Scores(row);
      const auto n = static_cast<int>(expected.size());
      const auto best = BestOnCpu(expected.data(), n, kTopK);
      ASSERT_EQ(counts[static_cast<size_t>(row)], std::min(n, kTopK)) << row;
      ASSERT_TRUE(std::equal(best.begin(), best.end(), &selected[Count(row, kTopK)])) << row;
      const int last_slice = (num_rows_ / slice_rows) * slice_rows;
      if (n <= kTopK || row < last_slice) continue;  // not scored, or written over
      const float* got = &scores[Count(row - last_slice, longest_)];
      ASSERT_EQ(std::memcmp(got, expected.data(), expected.size() * 4), 0) << row;
      if (longest_ <= kMostShort) continue;
      const int groups = (longest_ + kGroupScores - 1) / kGroupScores;
      const auto of_groups = MaximaOf(expected.data(), n);
      ASSERT_TRUE(
          std::equal(of_groups.begin(), of_groups.end(), &largest[Count(row - last_slice, groups)]))
          << row;
    }
  }

 private:
  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }
  template <typename T>
  static const T* Up(CudaDevice& device, const std::vector<T>& values) {
    return reinterpret_cast<const T*>(
        *device.UploadBytes(values.data(), values.size() * sizeof(T)));
  }

  void MakeKeys(int pages) {
    const size_t rows = Count(pages, kPageRows);
    for (size_t row = 0; row < rows; ++row) {
      const float scale = std::ldexp(1.0f, Below(6) - 4);
      if (!is_fp4_) {
        scales_.resize(4 * (row + 1));
        std::memcpy(&scales_[4 * row], &scale, 4);
      }
      for (int group = 0; group < kDim / 32; ++group) {
        const float part = std::ldexp(1.0f, Below(5) - 2);
        if (is_fp4_) scales_.push_back(cpu::EncodeE8m0(part));
        for (int i = 0; i < 32; ++i) {
          const auto code = static_cast<uint8_t>(Below(16));
          const float value = cpu::DecodeE2m1(code) * part;
          keys_.push_back(is_fp4_ ? value : value * scale);
          if (!is_fp4_) {
            codes_.push_back(cpu::EncodeE4m3(value));
          } else if (i % 2 == 0) {
            codes_.push_back(code);
          } else {
            codes_.back() = static_cast<uint8_t>(codes_.back() | code << 4);
          }
        }
      }
    }
  }

  void SetPages(CudaDevice& device, LayerPages& pages) const {
    const size_t code_bytes = is_fp4_ ? 4096 : 8192, scale_bytes = 256;
    pages.index_values = 512;
    pages.index_scales = pages.index_values + code_bytes;
    pages.stride = pages.index_scales + scale_bytes + 768;
    pages.index_value_bytes = static_cast<int>(code_bytes) / kPageRows;
    pages.index_scale_bytes = 4;
    pages.rows_per_page = kPageRows;
    pages.has_fp4_index = is_fp4_;
    std::vector<uint8_t> memory(pages.stride * page_table_.size(), 0xff);
    for (size_t page = 0; page < page_table_.size(); ++page) {
      uint8_t* to = &memory[page * pages.stride];
      std::memcpy(to + pages.index_values, &codes_[page * code_bytes], code_bytes);
      std::memcpy(to + pages.index_scales, &scales_[page * scale_bytes], scale_bytes);
    }
    pages.base = const_cast<uint8_t*>(Up<uint8_t>(device, memory));
  }

  std::vector<float> Scores(int row) const {
    const auto run = static_cast<size_t>(sequence_of_[static_cast<size_t>(row)]);
    std::vector<float> scores(static_cast<size_t>(positions_[static_cast<size_t>(row)] + 1) / 4);
    for (size_t entry = 0; entry < scores.size(); ++entry) {
      const auto page =
          static_cast<size_t>(page_table_[run * Count(max_pages_, 1) + entry / kPageRows]);
      const float* key = &keys_[(page * kPageRows + entry % kPageRows) * kDim];
      float sum = 0;
      for (size_t h = 0; h < kHeads; ++h) {
        const size_t head = Count(row, kHeads) + h;
        float dot = 0;
        for (size_t i = 0; i < kDim; ++i) dot += cpu::DecodeBf16(query_[head * kDim + i]) * key[i];
        sum += weights_[head] * std::max(dot, 0.0f);
      }
      scores[entry] = sum;
    }
    return scores;
  }

  bool is_fp4_;
  std::mt19937 random_;
  int num_rows_ = 0, max_pages_ = 0, longest_ = 0;
  std::vector<RunInfo> runs_;
  std::vector<int32_t> positions_, sequence_of_, page_table_;
  std::vector<uint16_t> query_;
  std::vector<float> weights_, keys_;
  std::vector<uint8_t> codes_, scales_;
};

TEST(CudaSelect, ScoresOfTheRealShapeEqualTheCpus) {
  const auto device = testing::DeviceOrSkip();
  if (device == nullptr) return;
  auto& cuda = static_cast<CudaDevice&>(*device);
  for (const bool is_fp4 : {false, true}) {
    // A row a sequence, short or long; several, as in verify steps; prefill beside them.
    IndexCase({{1, 5}, {1, 16}, {1, 17}, {1, 64}, {1, 65}, {1, 640}}, is_fp4, 1).Check(cuda, 7);
    IndexCase({{1, 8191}, {1, 2048}, {1, 2049}, {1, 4500}}, is_fp4, 1).Check(cuda, 5);
    IndexCase({{1, 70}, {1, 9000}, {1, 3}, {1, 20000}, {1, 64}}, is_fp4, 5).Check(cuda, 6);
    IndexCase({{1, 9000}, {1, 300}, {1, 8500}}, is_fp4, 6).Check(cuda, 2);
    IndexCase({{3, 9000}, {2, 40}}, is_fp4, 7).Check(cuda, 6);
    IndexCase({{3, 70}, {3, 300}, {3, 20}}, is_fp4, 2).Check(cuda, 10);
    IndexCase({{1, 200}, {75, 150}, {2, 33}}, is_fp4, 3).Check(cuda, 79);
    IndexCase({{64, 500}}, is_fp4, 4).Check(cuda, 20);
  }
}

}  // namespace
}  // namespace baton::kernels::cuda
