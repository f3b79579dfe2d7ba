// golden_check DIR [--judge-official | --no-judge-official] [--max-median=X]: runs DIR's checkpoint
// over the sequences of DIR/golden.safetensors in both numerics modes and prints how far the
// results are from the golden ones. Exits 1 where a bound is passed (tests/data/golden/README.md).
// Without a switch, end-to-end official logits are judged for trained weights only: on random ones
// a flipped code grows.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"

#include "common/status.h"
#include "engine/model/forward.h"
#include "tests/golden/golden_file.h"
#include "tests/golden/test_model.h"

namespace baton::golden {
namespace {

using kernels::NumericsMode;
using kernels::RowKind;

constexpr double kFloat32Error = 2e-3;    // of a logit
constexpr double kArgmaxMargin = 4e-3;    // below it two best logits may swap
constexpr double kEqualElements = 0.88;   // of a layer's official streams
constexpr double kOfficialArgmax = 0.99;  // of the positions
constexpr double kOfficialMedian = 0.05;  // |difference| of a logit, unless --max-median says more
constexpr int kChunk = 768;

// Differences of logits, over any number of positions.
struct LogitErrors {
  std::vector<float> differences;
  int positions = 0;
  int wrong_argmax = 0;         // any margin
  int wrong_beyond_margin = 0;  // the golden's two best differ by more than kArgmaxMargin

  double Largest() const {
    return differences.empty() ? 0 : *std::max_element(differences.begin(), differences.end());
  }
  double Median() {
    if (differences.empty()) return 0;
    const auto middle = differences.begin() + static_cast<int64_t>(differences.size() / 2);
    std::nth_element(differences.begin(), middle, differences.end());
    return *middle;
  }

  void Add(std::span<const float> got, std::span<const float> want) {
    for (size_t v = 0; v < want.size(); ++v) differences.push_back(std::abs(got[v] - want[v]));
    const auto best = std::max_element(want.begin(), want.end());
    float second = -INFINITY;
    for (auto it = want.begin(); it != want.end(); ++it)
      if (it != best) second = std::max(second, *it);
    const bool is_equal =
        std::max_element(got.begin(), got.end()) - got.begin() == best - want.begin();
    ++positions;
    wrong_argmax += is_equal ? 0 : 1;
    wrong_beyond_margin += !is_equal && *best - second > kArgmaxMargin ? 1 : 0;
  }

  void Add(const LogitErrors& other) {
    differences.insert(differences.end(), other.differences.begin(), other.differences.end());
    positions += other.positions;
    wrong_argmax += other.wrong_argmax;
    wrong_beyond_margin += other.wrong_beyond_margin;
  }
};

struct Verdict {
  bool is_good = true;
  void Judge(bool holds, const std::string& claim) {
    if (holds) return;
    is_good = false;
    std::printf("OUT OF TOLERANCE: %s\n", claim.c_str());
  }
};

class Checker {
 public:
  Checker(TestModel& model, NumericsMode mode, Verdict& verdict)
      : model_(model), mode_(mode), verdict_(verdict) {
    for (PageId page = 0;
         page < static_cast<PageId>(model.pages().size() / model.layout().stride_bytes()); ++page)
      page_ids_.push_back(page);
  }

  // Main model and MTP, chunk by chunk.
  absl::Status EndToEnd(const GoldenSequence& s, LogitErrors& main_errors) {
    const bool is_official = mode_ == NumericsMode::kOfficial;
    const GoldenLogits& golden = is_official ? s.official_logits : s.logits;
    const GoldenLogits& mtp_golden = is_official ? s.mtp_official_logits : s.mtp_logits;
    LogitErrors errors, mtp_errors;
    int wrong_argmax = 0;
    std::vector<double> layer_errors(s.layers.size());
    StartSequence();
    const int length = static_cast<int>(s.tokens.size());
    for (int first = 0; first < length; first += kChunk) {
      const int rows = std::min(kChunk, length - first);
      RETURN_IF_ERROR(Advance(s.tokens.data() + first, first, rows));
      RETURN_IF_ERROR(RunLayers(s, first, rows, layer_errors));
      RETURN_IF_ERROR(CompareLogits(golden, first, rows, errors));
      if (!is_official) RETURN_IF_ERROR(CompareArgmax(s, first, rows, wrong_argmax));
      RETURN_IF_ERROR(CompareDrafter(s, mtp_golden, first, rows, mtp_errors));
    }
    Report(s, errors, mtp_errors);
    for (size_t layer = 0; !is_official && layer < layer_errors.size(); ++layer)
      std::printf("s%d float32 layer %zu: max error of streams %.3g\n", s.number, layer,
                  layer_errors[layer]);
    if (!is_official) JudgeFloat32(s, errors, mtp_errors, wrong_argmax);
    main_errors.Add(errors);
    return absl::OkStatus();
  }

  // Each layer on golden input.
  absl::Status LayerByLayer(const GoldenSequence& s) {
    const auto width = static_cast<int64_t>(model_.Streams(0).size());
    const int length = static_cast<int>(s.tokens.size());
    layers_.resize(std::max(layers_.size(), s.official_streams.size()));
    for (size_t layer = 0; layer + 1 < s.official_streams.size(); ++layer) {
      EqualElements elements{.total = length * width};
      StartSequence();
      for (int first = 0; first < length; first += kChunk) {
        const int rows = std::min(kChunk, length - first);
        RETURN_IF_ERROR(Advance(s.tokens.data() + first, first, rows));
        std::copy_n(s.official_streams[layer].begin() + first * width, rows * width,
                    model_.Streams(0).begin());
        RETURN_IF_ERROR(engine::RunLayer(model_.ops(), model_.weights().layers[layer], false));
        RETURN_IF_ERROR(engine::FinishLayers(model_.ops()));
        const float* want = s.official_streams[layer + 1].data() + first * width;
        const float* got = model_.Streams(0).data();
        for (int64_t i = 0; i < rows * width; ++i) elements.equal += got[i] == want[i] ? 1 : 0;
      }
      std::printf("s%d official layer %zu: %.2f %% of elements equal\n", s.number, layer,
                  100 * elements.Share());
      layers_[layer].equal += elements.equal;
      layers_[layer].total += elements.total;
    }
    return absl::OkStatus();
  }

  // Over all sequences: in a short one a single flipped code is many per cent already.
  void JudgeLayers() {
    for (size_t layer = 0; layer < layers_.size(); ++layer) {
      if (layers_[layer].total == 0) continue;
      const double share = layers_[layer].Share();
      std::printf("official layer %zu: %.2f %% of elements equal\n", layer, 100 * share);
      verdict_.Judge(share >= kEqualElements, absl::StrFormat("layer %d: %.4f equal, at least %.2f",
                                                              layer, share, kEqualElements));
    }
  }

 private:
  struct EqualElements {
    int64_t equal = 0;
    int64_t total = 0;
    double Share() const { return static_cast<double>(equal) / static_cast<double>(total); }
  };

  void StartSequence() {
    model_.ops().ResetTail(0);
    std::ranges::fill(model_.pages(), std::byte{0});
  }

  absl::Status Advance(const int32_t* tokens, int first, int rows) {
    const kernels::SequenceRows run{.tail_slot = 0,
                                    .kind = RowKind::kPrefill,
                                    .first_position = first,
                                    .num_rows = rows,
                                    .tokens = tokens,
                                    .pages = page_ids_.data(),
                                    .num_pages = static_cast<int32_t>(page_ids_.size())};
    return model_.ops().AdvanceStep({.runs = {&run, 1}});
  }

  // RunModel, with a look at the streams after each layer.
  absl::Status RunLayers(const GoldenSequence& s, int first, int rows, std::vector<double>& worst) {
    if (worst.empty()) return engine::RunModel(model_.ops(), model_.weights(), /*has_head=*/false);
    const auto width = static_cast<int64_t>(model_.Streams(0).size());
    RETURN_IF_ERROR(
        model_.ops().Embed({.step = model_.ops().view(), .embed = model_.weights().embed}));
    for (size_t layer = 0; layer < model_.weights().layers.size(); ++layer) {
      RETURN_IF_ERROR(engine::RunLayer(model_.ops(), model_.weights().layers[layer], false));
      RETURN_IF_ERROR(engine::FinishLayers(model_.ops()));
      if (layer >= worst.size()) continue;
      const float* want = s.layers[layer].data() + first * width;
      const float* got = model_.Streams(0).data();
      for (int64_t i = 0; i < rows * width; ++i)
        worst[layer] = std::max(worst[layer], static_cast<double>(std::abs(got[i] - want[i])));
    }
    return absl::OkStatus();
  }

  absl::Status Head(std::span<const int32_t> rows, bool is_mtp) {
    const kernels::ModelWeights& w = model_.weights();
    return model_.ops().Head({.step = model_.ops().view(),
                              .rows = rows,
                              .mix = is_mtp ? w.mtp.head_mix : w.head_mix,
                              .norm = is_mtp ? w.mtp.norm : w.norm,
                              .head = w.head});
  }

  std::span<const float> Logits(size_t row) {
    const auto vocabulary = static_cast<size_t>(model_.config().vocab_size);
    return std::span(model_.activations().logits).subspan(row * vocabulary, vocabulary);
  }

  absl::Status CompareLogits(const GoldenLogits& golden, int first, int rows, LogitErrors& errors,
                             bool is_mtp = false) {
    const auto vocabulary = static_cast<size_t>(model_.config().vocab_size);
    for (size_t i = 0; i < golden.positions.size() && !golden.values.empty(); ++i) {
      const int32_t row = golden.positions[i] - first;
      if (row < 0 || row >= rows) continue;
      RETURN_IF_ERROR(Head({&row, 1}, is_mtp));
      errors.Add(Logits(0), std::span(golden.values).subspan(i * vocabulary, vocabulary));
    }
    return absl::OkStatus();
  }

  // Every position of the sequence, by our own margin.
  absl::Status CompareArgmax(const GoldenSequence& s, int first, int rows, int& wrong) {
    if (s.argmax.empty()) return absl::OkStatus();
    for (int32_t row = 0; row < rows; ++row) {
      RETURN_IF_ERROR(Head({&row, 1}, false));
      const std::span<const float> logits = Logits(0);
      const auto want = static_cast<size_t>(s.argmax[static_cast<size_t>(first + row)]);
      const auto best = std::max_element(logits.begin(), logits.end());
      if (*best - logits[want] > kArgmaxMargin) ++wrong;
    }
    return absl::OkStatus();
  }

  // Rows first .. of the MTP: streams of position i and token i + 1, from the step that has just
  // run.
  absl::Status CompareDrafter(const GoldenSequence& s, const GoldenLogits& golden, int first,
                              int rows, LogitErrors& errors) {
    const int length = static_cast<int>(s.tokens.size());
    const int mtp_rows = std::min(rows, length - 1 - first);
    if (!model_.weights().has_mtp || golden.values.empty() || mtp_rows <= 0)
      return absl::OkStatus();
    kernels::AcceptRun run;
    run.first = first;
    if (mtp_rows == rows) run.next_token = s.tokens[static_cast<size_t>(first + rows)];
    RETURN_IF_ERROR(model_.ops().Accept({.runs = {&run, 1}}));
    RETURN_IF_ERROR(model_.ops().AdvanceDrafter(kernels::DrafterRows::kKnown));
    RETURN_IF_ERROR(model_.ops().DraftInput({.step = model_.ops().view(),
                                             .embed = model_.weights().embed,
                                             .mtp = model_.weights().mtp}));
    RETURN_IF_ERROR(engine::RunLayer(model_.ops(), model_.weights().mtp.block, false));
    RETURN_IF_ERROR(engine::FinishLayers(model_.ops()));
    return CompareLogits(golden, first, mtp_rows, errors, /*is_mtp=*/true);
  }

  void Report(const GoldenSequence& s, LogitErrors& errors, LogitErrors& mtp_errors) const {
    const char* mode = mode_ == NumericsMode::kOfficial ? "official" : "float32";
    for (const auto& [name, e] : {std::pair{"main", &errors}, std::pair{"mtp", &mtp_errors}}) {
      if (e->positions == 0) continue;
      std::printf(
          "s%d %s %s (%zu tokens): %d positions, max error %.3g, median %.3g, argmax differs %d\n",
          s.number, mode, name, s.tokens.size(), e->positions, e->Largest(), e->Median(),
          e->wrong_argmax);
    }
  }

  void JudgeFloat32(const GoldenSequence& s, const LogitErrors& errors,
                    const LogitErrors& mtp_errors, int wrong_argmax) {
    verdict_.Judge(errors.Largest() <= kFloat32Error && mtp_errors.Largest() <= kFloat32Error,
                   absl::StrFormat("s%d float32: max error %.3g, mtp %.3g, at most %.3g", s.number,
                                   errors.Largest(), mtp_errors.Largest(), kFloat32Error));
    verdict_.Judge(errors.wrong_beyond_margin + mtp_errors.wrong_beyond_margin + wrong_argmax == 0,
                   absl::StrFormat(
                       "s%d float32: argmax differs beyond the margin at %d positions", s.number,
                       errors.wrong_beyond_margin + mtp_errors.wrong_beyond_margin + wrong_argmax));
  }

  TestModel& model_;
  const NumericsMode mode_;
  Verdict& verdict_;
  std::vector<PageId> page_ids_;
  std::vector<EqualElements> layers_;
};

enum class JudgeOfficial { kIfTrained, kYes, kNo };

struct CheckOptions {
  std::string folder;
  JudgeOfficial judge = JudgeOfficial::kIfTrained;
  double max_median = kOfficialMedian;
};

void JudgeEndToEnd(LogitErrors& errors, double max_median, Verdict& verdict) {
  if (errors.positions == 0) return;
  const double equal = 1 - static_cast<double>(errors.wrong_argmax) / errors.positions;
  std::printf("official end to end: argmax equal at %.2f %% of %d positions, median error %.3g\n",
              100 * equal, errors.positions, errors.Median());
  verdict.Judge(equal >= kOfficialArgmax,
                absl::StrFormat("official end to end: argmax equal at %.4f, at least %.2f", equal,
                                kOfficialArgmax));
  verdict.Judge(errors.Median() <= max_median,
                absl::StrFormat("official end to end: median error %.3g, at most %.2f",
                                errors.Median(), max_median));
}

absl::Status CheckMode(const engine::Checkpoint& checkpoint,
                       const std::vector<GoldenSequence>& sequences, NumericsMode mode,
                       const CheckOptions& options, Verdict& verdict) {
  size_t longest = 0;
  bool is_trained = false;
  for (const GoldenSequence& s : sequences) {
    longest = std::max(longest, s.tokens.size());
    is_trained = is_trained || s.is_trained;
  }
  const int pages = static_cast<int>(longest) / kPageTokens + 1;
  ASSIGN_OR_RETURN(const std::unique_ptr<TestModel> model,
                   TestModel::Load(checkpoint, {.mode = mode,
                                                .max_rows = kChunk,
                                                .max_sequences = 1,
                                                .num_pages = pages,
                                                .num_tail_slots = 1,
                                                .max_head_rows = 1,
                                                .max_context = pages * kPageTokens,
                                                .num_threads = 2}));
  Checker checker(*model, mode, verdict);
  LogitErrors errors;
  for (const GoldenSequence& s : sequences) {
    RETURN_IF_ERROR(checker.EndToEnd(s, errors));
    if (mode == NumericsMode::kOfficial) RETURN_IF_ERROR(checker.LayerByLayer(s));
  }
  if (mode == NumericsMode::kFloat32) return absl::OkStatus();
  checker.JudgeLayers();
  const bool judges = options.judge == JudgeOfficial::kYes ||
                      (options.judge == JudgeOfficial::kIfTrained && is_trained);
  if (judges) JudgeEndToEnd(errors, options.max_median, verdict);
  return absl::OkStatus();
}

absl::Status Check(const CheckOptions& options, Verdict& verdict) {
  ASSIGN_OR_RETURN(const engine::Checkpoint checkpoint, engine::Checkpoint::Open(options.folder));
  ASSIGN_OR_RETURN(const std::vector<GoldenSequence> sequences,
                   ReadGoldens(options.folder + "/golden.safetensors"));
  RETURN_IF_ERROR(CheckMode(checkpoint, sequences, NumericsMode::kFloat32, options, verdict));
  return CheckMode(checkpoint, sequences, NumericsMode::kOfficial, options, verdict);
}

int Main(int argc, char** argv) {
  constexpr std::string_view kMaxMedian = "--max-median=";
  CheckOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--judge-official") {
      options.judge = JudgeOfficial::kYes;
    } else if (argument == "--no-judge-official") {
      options.judge = JudgeOfficial::kNo;
    } else if (argument.starts_with(kMaxMedian)) {
      options.max_median = std::strtod(argument.c_str() + kMaxMedian.size(), nullptr);
    } else {
      options.folder = argument;
    }
  }
  if (options.folder.empty()) {
    std::fprintf(stderr,
                 "usage: golden_check DIR [--judge-official | --no-judge-official] "
                 "[--max-median=X]\n");
    return 2;
  }
  Verdict verdict;
  const absl::Status status = Check(options, verdict);
  if (!status.ok()) {
    std::fprintf(stderr, "golden_check: %s\n", status.ToString().c_str());
    return 2;
  }
  std::printf("%s within tolerance\n", verdict.is_good ? "all" : "NOT");
  return verdict.is_good ? 0 : 1;
}

}  // namespace
}  // namespace baton::golden

int main(int argc, char** argv) { return baton::golden::Main(argc, argv); }
