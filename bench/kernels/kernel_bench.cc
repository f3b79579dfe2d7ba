// Times every operator of the CUDA back end at the shapes of the real model, with made-up weights
// that are not in L2, and compares with the floors of docs/spec/limits.md. --help says how.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "bench/kernels/bench_model.h"
#include "bench/kernels/fill.h"
#include "bench/kernels/floors.h"
#include "bench/kernels/graph_timer.h"
#include "bench/kernels/real_shape.h"
#include "common/check.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sample.h"

namespace baton::bench {
namespace {

using kernels::LayerArgs;
using kernels::LayerWeights;
using kernels::cuda::ValueFormat;

constexpr const char* kUsage =
    "usage: kernel_bench [--filter TEXT] [--csv FILE] [--machine TEXT] [--commit ID] [--eager]\n"
    "Times every operator of the CUDA back end on GPU 0 at the real model's shapes.\n"
    "  --filter TEXT   only rows whose \"operator shape\" contains TEXT; several with commas\n"
    "  --csv FILE      appends rows to FILE, with a heading if it is new\n"
    "  --machine TEXT  for the rows; the GPU's name without it\n"
    "  --commit ID     for the rows\n"
    "  --eager         every operator once, without graph: for a profiler; times mean nothing\n";

constexpr double kRotated = 120e6;  // bytes of weights between two uses of one
constexpr int kFewest = 4;          // copies of an operator in a graph

struct Options {
  std::string filter, csv, machine, commit = "unknown";
  bool is_eager = false;
};

// An operator to time.
struct Case {
  std::string name, shape;
  std::function<void(int copy)> queue;
  std::vector<Work> floor;
  int most_copies = BenchModel::kLayers;
};

class Bench {
 public:
  Bench(const Options& options, kernels::cuda::CudaDevice& device)
      : options_(options),
        model_(device),
        timer_(device, options.is_eager),
        device_name_(device.Describe().substr(0, device.Describe().find(','))),
        hardware_(HardwareOf(device_name_)) {
    if (options_.machine.empty()) options_.machine = device_name_;
    head_ = model_.MakeMatrix(ValueFormat::kBf16, kVocabulary, kHidden);
  }

  void Run() {
    std::printf("%-14s %-26s %10s %10s %7s %9s\n", "operator", "shape", "us", "floor us", "share",
                "launches");
    for (const int batch : {1, 8, 32, 128}) {
      for (const int context : {8192, 131072, BenchModel::kMaxContext}) {
        RunStep({batch, 1, context});
      }
      RunOutputs(batch);
    }
    for (const int context : {8192, 131072, BenchModel::kMaxContext}) {
      RunStep({1, BenchModel::kMaxRows, context});
    }
  }

  bool WriteCsv() const {
    if (options_.csv.empty()) return true;
    const bool is_new = !std::ifstream(options_.csv).good();
    std::ofstream file(options_.csv, std::ios::app);
    if (is_new) file << "machine,commit,command,operator,shape,us,floor_us,share,launches\n";
    file << csv_;
    return file.good();
  }

 private:
  kernels::cuda::CudaOps& ops() { return model_.ops(); }

  bool IsWanted(const std::string& name, const std::string& shape) const {
    if (options_.filter.empty()) return true;
    const std::string text = name + " " + shape;
    size_t first = 0;
    while (first <= options_.filter.size()) {
      const size_t end = std::min(options_.filter.find(',', first), options_.filter.size());
      if (text.find(options_.filter.substr(first, end - first)) != std::string::npos) return true;
      first = end + 1;
    }
    return false;
  }

  static std::string ShapeText(const StepSize& step, const char* kind) {
    const bool is_million = step.context >= 1 << 20;
    const std::string context =
        absl::StrFormat("%d%c", step.context >> (is_million ? 20 : 10), is_million ? 'M' : 'K');
    const std::string rows = step.rows_per_sequence > 1
                                 ? absl::StrFormat("prefill %d", step.rows_per_sequence)
                                 : absl::StrFormat("B=%d", step.sequences);
    return absl::StrFormat("%s %s%s%s", rows, context, *kind == '\0' ? "" : " ", kind);
  }

  void Time(const Case& c) {
    if (!IsWanted(c.name, c.shape)) return;
    double bytes = 1;
    for (const Work& work : c.floor) bytes += work.bytes;
    const int copies = std::clamp(static_cast<int>(std::ceil(kRotated / bytes)), kFewest,
                                  std::max(kFewest, c.most_copies));
    const Timing timing = timer_.Time(std::min(copies, c.most_copies), c.queue);
    const double floor = FloorMicroseconds(hardware_, c.floor);
    const double share = floor / timing.microseconds;
    std::printf("%-14s %-26s %10.1f %10.1f %7.3f %9.1f\n", c.name.c_str(), c.shape.c_str(),
                timing.microseconds, floor, share, timing.launches);
    std::fflush(stdout);
    csv_ += absl::StrFormat("\"%s\",%s,kernel_bench,%s,%s,%.2f,%.2f,%.4f,%.1f\n", options_.machine,
                            options_.commit, c.name, c.shape, timing.microseconds, floor, share,
                            timing.launches);
  }

  // A phase of layers, each copy of it another layer's.
  using Phase = absl::Status (kernels::Ops::*)(const LayerArgs&);
  std::function<void(int)> OnLayers(Kind kind, Phase phase) {
    return [this, kind, phase](int copy) {
      const LayerWeights& layer = model_.layers(kind)[static_cast<size_t>(copy)];
      Must((ops().*phase)({.step = ops().view(), .layer = layer}), "phase");
    };
  }

  void RunStep(const StepSize& step) {
    std::vector<Case> cases = AttentionCases(step);
    if (step.context == 8192) AddPlainCases(step, cases);
    const bool is_wanted = std::any_of(cases.begin(), cases.end(),
                                       [this](const Case& c) { return IsWanted(c.name, c.shape); });
    if (!is_wanted) return;
    model_.Start(step);
    model_.RunAllPhases();
    for (Case& c : cases) {
      if (c.name == "experts") c.floor = ExpertsWork(step, model_.CountDistinctExperts(step));
      Time(c);
    }
  }

  std::vector<Case> AttentionCases(const StepSize& step) {
    using kernels::Ops;
    std::vector<Case> cases;
    cases.push_back({"select", ShapeText(step, ""), OnLayers(Kind::kCsa, &Ops::SelectEntries),
                     SelectWork(step)});
    cases.push_back({"attend", ShapeText(step, "CSA"), OnLayers(Kind::kCsa, &Ops::Attend),
                     AttendWork(step, Kind::kCsa)});
    cases.push_back({"attend", ShapeText(step, "HCA"), OnLayers(Kind::kHca, &Ops::Attend),
                     AttendWork(step, Kind::kHca)});
    return cases;
  }

  void AddPlainCases(const StepSize& step, std::vector<Case>& cases) {
    using kernels::Ops;
    const auto add = [&](const char* name, Kind kind, Phase phase, std::vector<Work> floor) {
      const char* text = kind == Kind::kCsa ? "CSA" : (kind == Kind::kHca ? "HCA" : "SWA");
      cases.push_back({name, ShapeText(step, text), OnLayers(kind, phase), std::move(floor)});
    };
    add("attend", Kind::kWindow, &Ops::Attend, AttendWork(step, Kind::kWindow));
    for (const Kind kind : {Kind::kCsa, Kind::kHca, Kind::kWindow}) {
      add("project_in", kind, &Ops::ProjectIn, ProjectInWork(step, kind));
      add("store_rows", kind, &Ops::StoreRows, StoreRowsWork(step, kind));
    }
    add("project_query", Kind::kCsa, &Ops::ProjectQuery, ProjectQueryWork(step, Kind::kCsa));
    add("project_query", Kind::kHca, &Ops::ProjectQuery, ProjectQueryWork(step, Kind::kHca));
    const std::string shape = ShapeText(step, "");
    cases.push_back(
        {"project_out", shape, OnLayers(Kind::kCsa, &Ops::ProjectOut), ProjectOutWork(step)});
    cases.push_back({"mix_boundary", shape,
                     [this](int copy) {
                       const auto& layers = model_.layers(Kind::kHca);
                       const LayerWeights& layer = layers[static_cast<size_t>(copy)];
                       Must(ops().MixBoundary({.step = ops().view(),
                                               .finish_previous = true,
                                               .next = &layer.ffn_mix,
                                               .norm = layer.ffn_norm}),
                            "MixBoundary");
                     },
                     MixWork(step)});
    cases.push_back({"route", shape, OnLayers(Kind::kCsa, &Ops::Route), RouteWork(step)});
    cases.push_back({"experts", shape, OnLayers(Kind::kCsa, &Ops::Experts), {}, kFewest});
  }

  // What runs once a step: head and sampler, on their own.
  void RunOutputs(int batch) {
    const std::string shape = absl::StrFormat("B=%d", batch);
    kernels::cuda::LinearArgs linear;
    linear.weight = kernels::cuda::ViewOf(head_);
    linear.x = ops().activations().normed;
    linear.x_stride = kHidden;
    linear.rows = batch;
    linear.y = ops().activations().logits;
    linear.y_stride = kVocabulary;
    linear.output = kernels::cuda::OutputFormat::kF32;
    const auto stream = model_.device().stream();
    Time({"head", shape,
          [linear, stream](int) { CHECK(kernels::cuda::RunLinear(linear, stream) == cudaSuccess); },
          LinearWork(batch, kVocabulary, kHidden, false, false), 1});
    FillF32(ops().activations().logits, static_cast<size_t>(batch) * kVocabulary, 12.0f, 77);
    FinishFills();
    kernels::cuda::SampleRowArgs plain;
    plain.inv_temperature = 1.25f;
    plain.top_p = uint64_t{1} << 32;  // off
    kernels::cuda::SampleRowArgs greedy = plain, truncated = plain;
    greedy.greedy = 1;
    truncated.top_k = 50;
    truncated.top_p = uint64_t{4080218931};  // 0.95 * 2^32
    TimeSampler("sample greedy", batch, greedy);
    TimeSampler("sample plain", batch, plain);
    TimeSampler("sample top-k/p", batch, truncated);
  }

  void TimeSampler(const char* name, int batch, kernels::cuda::SampleRowArgs row) {
    if (!IsWanted(name, absl::StrFormat("B=%d", batch))) return;
    std::vector<kernels::cuda::SampleRowArgs> rows;
    for (int i = 0; i < batch; ++i) {
      row.logits_row = i;
      row.key = 1000 + static_cast<uint64_t>(i);
      row.position = 77;
      rows.push_back(row);
    }
    kernels::cuda::SampleKernelArgs args;
    args.rows = reinterpret_cast<const kernels::cuda::SampleRowArgs*>(
        Must(model_.device().UploadBytes(rows.data(), rows.size() * sizeof(rows[0])), "rows"));
    args.num_rows = batch;
    args.keeps_scores = kernels::cuda::KeepsScores(row);
    args.vocabulary = kVocabulary;
    args.logits = ops().activations().logits;
    args.results = reinterpret_cast<kernels::cuda::SampleResult*>(Must(
        model_.device().Allocate(rows.size() * sizeof(kernels::cuda::SampleResult)), "results"));
    const auto stream = model_.device().stream();
    Time({name, absl::StrFormat("B=%d", batch),
          [args, stream](int) { CHECK(kernels::cuda::RunSample(args, stream) == cudaSuccess); },
          SampleWork(batch), kFewest});
  }

  Options options_;
  BenchModel model_;
  GraphTimer timer_;
  std::string device_name_;
  Hardware hardware_;
  const kernels::Matrix* head_ = nullptr;
  std::string csv_;
};

bool Parse(int argc, char** argv, Options& options) {
  const auto value = [&](int& i, std::string& text) {
    if (i + 1 >= argc) return false;
    text = argv[++i];
    return true;
  };
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    bool is_known = false;
    if (name == "--filter") is_known = value(i, options.filter);
    if (name == "--csv") is_known = value(i, options.csv);
    if (name == "--machine") is_known = value(i, options.machine);
    if (name == "--commit") is_known = value(i, options.commit);
    if (name == "--eager") is_known = options.is_eager = true;
    if (!is_known) return false;
  }
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (!Parse(argc, argv, options)) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  auto device = kernels::cuda::CudaDevice::Create(0);
  Must(device.status(), "GPU");
  Bench bench(options, **device);
  bench.Run();
  return bench.WriteCsv() ? 0 : 1;
}

}  // namespace
}  // namespace baton::bench

int main(int argc, char** argv) { return baton::bench::Main(argc, argv); }
