// golden_cuda_check [--reference] DIR: golden_check for the CUDA back end, official numerics: each
// layer on golden input (share of stream elements that are equal bit for bit) and the whole model
// (argmax of golden positions, trained weights only). --reference: linears in the CPU's order of
// sums, so that only attention is computed otherwise; then the layers are judged too. On tensor
// cores they are printed: Hopper's fp8 products add up in fewer bits than fp32, which moves some
// values across a rounding border, and one e4m3 code more or less moves a whole row a little. Exits
// 1 where a bound is passed, 77 where there is no GPU.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"

#include "common/check.h"
#include "common/status.h"
#include "engine/load/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/forward.h"
#include "engine/model/weights.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cuda_ops_impl.h"
#include "tests/golden/golden_file.h"

namespace baton::golden {
namespace {

namespace cuda = kernels::cuda;

constexpr double kEqualElements = 0.88;  // of a layer's streams, reference linears
constexpr double kMedianError = 0.12;    // of a logit, trained weights: as in golden_check
constexpr double kEqualArgmax = 0.99;    // of the positions
constexpr int kChunk = 768;
constexpr int kSkipped = 77;

// A checkpoint on the GPU.
struct Model {
  std::unique_ptr<kernels::Device> device;
  kernels::ModelConfig config;
  kernels::ModelWeights weights;
  std::byte* pages = nullptr;
  size_t page_bytes = 0;
  std::vector<PageId> page_ids;
  std::unique_ptr<kernels::Ops> ops;

  cuda::CudaDevice& gpu() { return static_cast<cuda::CudaDevice&>(*device); }
  const cuda::Activations& activations() { return static_cast<cuda::CudaOps&>(*ops).activations(); }
};

absl::StatusOr<Model> LoadModel(const engine::Checkpoint& checkpoint, int num_pages,
                                bool has_reference_linears) {
  Model model;
  ASSIGN_OR_RETURN(model.device, cuda::MakeCudaDevice(0));
  model.config = checkpoint.config();
  ASSIGN_OR_RETURN(model.weights, engine::LoadWeights(checkpoint, *model.device));
  const kernels::PageLayout layout(
      engine::LayoutShapeOf(model.config, kernels::NumericsMode::kOfficial));
  model.page_bytes = static_cast<size_t>(num_pages) * layout.stride_bytes();
  ASSIGN_OR_RETURN(model.pages, model.device->Allocate(model.page_bytes));
  model.page_ids.resize(static_cast<size_t>(num_pages));
  std::iota(model.page_ids.begin(), model.page_ids.end(), 0);
  cuda::CudaOptions options{.config = model.config, .layout = layout};
  options.pages = model.pages;
  options.num_pages = num_pages;
  options.num_tail_slots = 1;
  options.max_rows = kChunk;
  options.max_sequences = 1;
  options.max_head_rows = kChunk;
  options.max_context = num_pages * kPageTokens;
  options.has_reference_linears = has_reference_linears;
  ASSIGN_OR_RETURN(model.ops, cuda::MakeCudaOps(std::move(options), *model.device));
  return model;
}

absl::Status Advance(Model& model, const GoldenSequence& s, int first, int rows) {
  if (first == 0) {
    model.ops->ResetTail(0);
    model.device->Zero(model.pages, model.page_bytes);
  }
  const kernels::SequenceRows run{.first_position = first,
                                  .num_rows = rows,
                                  .tokens = s.tokens.data() + first,
                                  .pages = model.page_ids.data(),
                                  .num_pages = static_cast<int32_t>(model.page_ids.size())};
  return model.ops->AdvanceStep({.runs = {&run, 1}});
}

template <typename T>
std::vector<T> Download(Model& model, const T* data, size_t count) {
  std::vector<T> values(count);
  CHECK(cudaStreamSynchronize(model.gpu().stream()) == cudaSuccess);
  CHECK(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost) == cudaSuccess);
  return values;
}

struct Share {
  int64_t equal = 0, total = 0;
  double Value() const {
    return total == 0 ? 1.0 : static_cast<double>(equal) / static_cast<double>(total);
  }
};

std::vector<uint16_t> ToBf16(const float* values, size_t count) {
  std::vector<uint16_t> codes(count);
  for (size_t i = 0; i < count; ++i) {  // the golden values are bf16
    codes[i] = static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
  }
  return codes;
}

absl::Status CompareLayers(Model& model, const GoldenSequence& s, std::vector<Share>& shares) {
  const auto width =
      static_cast<size_t>(model.config.hc_mult) * static_cast<size_t>(model.config.hidden_size);
  const int length = static_cast<int>(s.tokens.size());
  shares.resize(std::max(shares.size(), s.official_streams.size()));
  for (size_t layer = 0; layer + 1 < s.official_streams.size(); ++layer) {
    for (int first = 0; first < length; first += kChunk) {
      const int rows = std::min(kChunk, length - first);
      const size_t begin = static_cast<size_t>(first) * width;
      const size_t count = static_cast<size_t>(rows) * width;
      RETURN_IF_ERROR(Advance(model, s, first, rows));
      const std::vector<uint16_t> input = ToBf16(&s.official_streams[layer][begin], count);
      uint16_t* streams = model.activations().streams;
      CHECK(cudaStreamSynchronize(model.gpu().stream()) == cudaSuccess);
      CHECK(cudaMemcpy(streams, input.data(), 2 * count, cudaMemcpyHostToDevice) == cudaSuccess);
      RETURN_IF_ERROR(engine::RunLayer(*model.ops, model.weights.layers[layer], false));
      RETURN_IF_ERROR(engine::FinishLayers(*model.ops));
      const std::vector<uint16_t> got = Download(model, streams, count);
      const std::vector<uint16_t> want = ToBf16(&s.official_streams[layer + 1][begin], count);
      for (size_t i = 0; i < count; ++i) shares[layer].equal += got[i] == want[i] ? 1 : 0;
      shares[layer].total += static_cast<int64_t>(count);
    }
  }
  return absl::OkStatus();
}

absl::Status CompareLogits(Model& model, const GoldenSequence& s, Share& argmax,
                           std::vector<float>& differences) {
  const GoldenLogits& golden = s.official_logits;
  if (golden.values.empty()) return absl::OkStatus();
  const auto vocabulary = static_cast<size_t>(model.config.vocab_size);
  const int length = static_cast<int>(s.tokens.size());
  for (int first = 0; first < length; first += kChunk) {
    const int rows = std::min(kChunk, length - first);
    RETURN_IF_ERROR(Advance(model, s, first, rows));
    RETURN_IF_ERROR(engine::RunModel(*model.ops, model.weights, /*has_head=*/false));
    for (size_t i = 0; i < golden.positions.size(); ++i) {
      const int32_t row = golden.positions[i] - first;
      if (row < 0 || row >= rows) continue;
      RETURN_IF_ERROR(model.ops->Head({.step = model.ops->view(),
                                       .rows = {&row, 1},
                                       .mix = model.weights.head_mix,
                                       .norm = model.weights.norm,
                                       .head = model.weights.head}));
      const std::vector<float> got = Download<float>(model, model.activations().logits, vocabulary);
      const float* want = &golden.values[i * vocabulary];
      for (size_t v = 0; v < vocabulary; ++v) differences.push_back(std::fabs(got[v] - want[v]));
      const auto best = std::max_element(got.begin(), got.end()) - got.begin();
      argmax.equal += best == std::max_element(want, want + vocabulary) - want ? 1 : 0;
      ++argmax.total;
    }
  }
  return absl::OkStatus();
}

bool Judge(const std::string& claim, double value, double bound) {
  std::printf("%s: %.2f %%, at least %.0f\n", claim.c_str(), 100 * value, 100 * bound);
  if (value < bound) std::printf("OUT OF TOLERANCE: %s\n", claim.c_str());
  return value >= bound;
}

absl::StatusOr<bool> Check(const std::string& folder, bool is_reference) {
  ASSIGN_OR_RETURN(const engine::Checkpoint checkpoint, engine::Checkpoint::Open(folder));
  ASSIGN_OR_RETURN(const std::vector<GoldenSequence> sequences,
                   ReadGoldens(folder + "/golden.safetensors"));
  size_t longest = 0;
  bool is_trained = false;
  for (const GoldenSequence& s : sequences) {
    longest = std::max(longest, s.tokens.size());
    is_trained = is_trained || s.is_trained;
  }
  ASSIGN_OR_RETURN(Model model, LoadModel(checkpoint, static_cast<int>(longest) / kPageTokens + 1,
                                          is_reference));
  std::printf("%s\n", model.device->Describe().c_str());
  std::vector<Share> layers;
  Share argmax;
  std::vector<float> differences;
  for (const GoldenSequence& s : sequences) {
    RETURN_IF_ERROR(CompareLayers(model, s, layers));
    RETURN_IF_ERROR(CompareLogits(model, s, argmax, differences));
  }
  bool is_good = true;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    if (layers[layer].total == 0) continue;
    const std::string claim = absl::StrFormat("layer %d, equal elements", layer);
    const double share = layers[layer].Value();
    if (is_reference) {
      is_good = Judge(claim, share, kEqualElements) && is_good;
    } else {
      std::printf("%s: %.2f %%\n", claim.c_str(), 100 * share);
    }
  }
  if (differences.empty()) return is_good;
  const auto middle = differences.begin() + static_cast<std::ptrdiff_t>(differences.size() / 2);
  std::nth_element(differences.begin(), middle, differences.end());
  std::printf("logits of %d positions: median |difference| %.3g\n", static_cast<int>(argmax.total),
              *middle);
  if (!is_trained) return is_good;
  return Judge("end to end, equal argmax", argmax.Value(), kEqualArgmax) &&
         *middle <= kMedianError && is_good;
}

int Main(int argc, char** argv) {
  const bool is_reference = argc == 3 && std::string_view(argv[1]) == "--reference";
  if (argc != (is_reference ? 3 : 2) || argv[argc - 1][0] == '-') {
    std::printf(
        "usage: golden_cuda_check [--reference] DIR (a checkpoint with golden.safetensors)\n");
    return 2;
  }
  const absl::StatusOr<bool> is_good = Check(argv[argc - 1], is_reference);
  if (is_good.status().code() == absl::StatusCode::kUnavailable) {
    std::printf("skipped: %s\n", is_good.status().ToString().c_str());
    return kSkipped;
  }
  if (!is_good.ok()) {
    std::fprintf(stderr, "golden_cuda_check: %s\n", is_good.status().ToString().c_str());
    return 2;
  }
  std::printf("%s within tolerance\n", *is_good ? "all" : "NOT");
  return *is_good ? 0 : 1;
}

}  // namespace
}  // namespace baton::golden

int main(int argc, char** argv) { return baton::golden::Main(argc, argv); }
