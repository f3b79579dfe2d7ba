// Times whole layers of the real model's size, adds them up to its 43 layers, and compares the sum
// with the floor of docs/spec/limits.md. --help says how.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"

#include "bench/kernels/bench_model.h"
#include "bench/kernels/floors.h"
#include "bench/kernels/graph_timer.h"
#include "bench/kernels/real_shape.h"
#include "bench/step/all_reduce.h"
#include "bench/step/gap.h"
#include "engine/model/forward.h"

namespace baton::bench {
namespace {

constexpr char kUsage[] =
    "usage: step_bench [--gpus 1|2] [--csv FILE] [--machine TEXT] [--commit ID]\n"
    "\n"
    "Needs a Hopper GPU with 40 GB free. A layer's time is that of several layers of its kind "
    "with\n"
    "weights of their own, queued as one CUDA graph, so that no weight is in L2. A step of the "
    "model\n"
    "is 2 window layers, 21 CSA, 20 HCA, embedding and (decode) the head of every row; sampling "
    "and\n"
    "the MTP block are not in it.\n"
    "\n"
    "  --gpus 2        decode steps on two GPUs: one rank of two is measured on this one (half "
    "the\n"
    "                  heads, output groups and width of every expert; the indexer whole), two\n"
    "                  all-reduces a layer are added, timed between this GPU and a second one, or "
    "at\n"
    "                  the cost that docs/spec/limits.md assumes where there is none; the gap to "
    "the\n"
    "                  floor is split by cause\n"
    "  --csv FILE      appends rows to FILE, with a heading if it is new\n"
    "  --machine TEXT  for the rows; the GPU's name without it\n"
    "  --commit ID     for the rows\n";

constexpr int kModelLayers = 43;
constexpr int kMaxReducedRows = 32;

struct LayerKind {
  Kind kind;
  const char* name;
  int in_model;  // layers of the kind
};
constexpr LayerKind kKinds[] = {
    {Kind::kWindow, "SWA", 2}, {Kind::kCsa, "CSA", 21}, {Kind::kHca, "HCA", 20}};

// docs/spec/limits.md, two GPUs: assumed where there is no second one.
constexpr double kAllReduce = 3.0, kLinkBytes = 393e3;  // microseconds; bytes a microsecond

struct Options {
  std::string csv, machine, commit = "unknown";
  int gpus = 1;
};

// What a step is made of, in microseconds.
struct Part {
  double measured = 0, floor = 0, launches = 0;
  void Add(const Part& other, int times) {
    measured += times * other.measured;
    floor += times * other.floor;
    launches += times * other.launches;
  }
};

class Bench {
 public:
  Bench(const Options& options, kernels::cuda::CudaDevice& device)
      : options_(options),
        model_(device, options.gpus),
        timer_(device, /*eager=*/false),
        device_name_(device.Describe().substr(0, device.Describe().find(','))),
        hardware_(HardwareOf(device_name_)) {
    if (options_.machine.empty()) options_.machine = device_name_;
    head_ =
        model_.MakeMatrix(kernels::cuda::ValueFormat::kBf16, kVocabulary / options_.gpus, kHidden);
  }

  void Run() {
    std::printf("%-20s %-6s %10s %10s %7s %9s\n", "step", "part", "us", "floor us", "share",
                "launches");
    if (options_.gpus > 1) {
      GapTimer gaps(model_, timer_, hardware_, options_.gpus);
      FindPeer();
      for (const int batch : {1, 8, 32}) RunRank({batch, 1, 8192}, gaps);
      return;
    }
    for (const int batch : {1, 8, 32, 128}) RunStep({batch, 1, 8192});
    RunStep({1, BenchModel::kMaxRows, BenchModel::kMaxRows});
  }

  bool WriteCsv() const {
    if (options_.csv.empty()) return true;
    const bool is_new = !std::ifstream(options_.csv).good();
    std::ofstream file(options_.csv, std::ios::app);
    if (is_new) file << "machine,commit,command,step,part,us,floor_us,share,launches\n";
    file << csv_;
    return file.good();
  }

 private:
  void RunStep(const StepSize& step) {
    const std::string name = step.rows_per_sequence > 1
                                 ? absl::StrFormat("prefill %d", step.rows_per_sequence)
                                 : absl::StrFormat("decode B=%d 8K", step.sequences);
    model_.Start(step);
    model_.RunAllPhases();
    Part whole = TimeOutputs(step);
    Print(name, "rest", whole);
    for (const LayerKind& kind : kKinds) {
      const Part layer = TimeLayer(step, kind.kind);
      Print(name, kind.name, layer);
      whole.Add(layer, kind.in_model);
    }
    Print(name, "model", whole);
  }

  // One rank's step and why it takes longer than the floor.
  void RunRank(const StepSize& step, GapTimer& gaps) {
    const std::string name = absl::StrFormat("decode B=%d 8K 2 GPUs", step.sequences);
    model_.Start(step);
    model_.RunAllPhases();
    const Part outputs = TimeOutputs(step);
    Gap gap = gaps.Split({outputs.measured, outputs.launches}, outputs.floor);
    Part whole = outputs;
    for (const LayerKind& kind : kKinds) {
      gap.Add(gaps.TimeLayer(step, kind.kind), kind.in_model);
      whole.Add(TimeLayer(step, kind.kind), kind.in_model);
    }
    const double links = 2 * kModelLayers * TimeAllReduce(name, step.sequences);
    const auto print = [&](const char* part, double us) { Print(name, part, {us, gap.floor, 0}); };
    print("floor", gap.floor);
    print("launch", gap.launch);
    print("latency", gap.latency);
    print("bandwidth", gap.bandwidth);
    print("between",
          whole.measured - gap.total());  // phases queued one behind the other, or beside
    print("links", links);
    Print(name, "model", {whole.measured + links, gap.floor, whole.launches});
  }

  void FindPeer() {
    auto pair = AllReducePair::Create(kMaxReducedRows, kHidden);
    if (pair.ok())
      peer_.emplace(*std::move(pair));
    else
      std::printf("all-reduces as assumed: %s\n", pair.status().ToString().c_str());
  }

  // Microseconds of one all-reduce of the step's rows.
  double TimeAllReduce(const std::string& step, int rows) {
    const double bytes_time = rows * kHidden * sizeof(uint16_t) / kLinkBytes;
    if (!peer_) return kAllReduce + bytes_time;
    const auto time = peer_->Time(rows);
    Must(time.status(), "all-reduce");
    Print(step, "all-reduce packets", {time->packets, bytes_time, 1});
    Print(step, "all-reduce blocks", {time->blocks, bytes_time, 1});
    return time->best();
  }

  Part TimeLayer(const StepSize& step, Kind kind) {
    const int copies = model_.NumWholeLayers(kind);
    const auto queue = [&](int copy) {
      const kernels::LayerWeights& layer = model_.layers(kind)[static_cast<size_t>(copy)];
      Must(engine::RunLayer(model_.ops(), layer, /*finishes_previous=*/true), "layer");
    };
    for (int i = 0; i < copies; ++i) queue(i);  // makes the tables of experts
    const Timing timing = timer_.Time(copies, queue);
    return {timing.microseconds, LayerFloor(step, kind) / options_.gpus, timing.launches};
  }

  double LayerFloor(const StepSize& step, Kind kind) {
    std::vector<Work> work;
    const auto add = [&work](const std::vector<Work>& more) {
      work.insert(work.end(), more.begin(), more.end());
    };
    add(MixWork(step));
    add(MixWork(step));
    add(ProjectInWork(step, kind));
    add(StoreRowsWork(step, kind));
    add(ProjectQueryWork(step, kind));
    if (kind == Kind::kCsa) add(SelectWork(step));
    add(AttendWork(step, kind));
    add(ProjectOutWork(step));
    add(RouteWork(step));
    add(ExpertsWork(step, model_.CountDistinctExperts(step)));
    return FloorMicroseconds(hardware_, work);
  }

  // Embedding and last merge, and in decode the head of every row. Arguments of the head go through
  // host memory, so that it is timed by its parts: the product is nearly all of it.
  Part TimeOutputs(const StepSize& step) {
    kernels::Ops& ops = model_.ops();
    const Timing ends = timer_.Time(1, [&](int) {
      Must(ops.Embed({.step = ops.view(), .embed = model_.embed()}), "Embed");
      Must(engine::FinishLayers(ops), "FinishLayers");
    });
    Part part{ends.microseconds, FloorMicroseconds(hardware_, MixWork(step)), ends.launches};
    if (step.rows_per_sequence > 1) return part;
    kernels::cuda::LinearArgs linear;
    linear.weight = kernels::cuda::ViewOf(head_);
    linear.x = model_.ops().activations().normed;
    linear.x_stride = kHidden;
    linear.rows = step.sequences;
    linear.y = model_.ops().activations().logits;
    linear.y_stride = head_->rows();
    linear.output = kernels::cuda::OutputFormat::kF32;
    const auto stream = model_.device().stream();
    const Timing head = timer_.Time(1, [&](int) {
      Must(kernels::cuda::RunLinear(linear, stream) == cudaSuccess
               ? absl::OkStatus()
               : absl::InternalError("cannot launch"),
           "head");
    });
    const std::vector<Work> work = LinearWork(step.sequences, kVocabulary, kHidden, false, false);
    part.Add({head.microseconds, FloorMicroseconds(hardware_, work) / options_.gpus, head.launches},
             1);
    return part;
  }

  void Print(const std::string& step, const char* part, const Part& p) {
    const double share = p.floor / p.measured;
    std::printf("%-20s %-6s %10.1f %10.1f %7.3f %9.1f\n", step.c_str(), part, p.measured, p.floor,
                share, p.launches);
    std::fflush(stdout);
    csv_ += absl::StrFormat("\"%s\",%s,step_bench,%s,%s,%.1f,%.1f,%.4f,%.1f\n", options_.machine,
                            options_.commit, step, part, p.measured, p.floor, share, p.launches);
  }

  Options options_;
  BenchModel model_;
  GraphTimer timer_;
  std::string device_name_;
  Hardware hardware_;
  const kernels::Matrix* head_ = nullptr;
  std::optional<AllReducePair> peer_;
  std::string csv_;
};

bool Parse(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--gpus") {
      options.gpus = std::atoi(argv[i + 1]);
      if (options.gpus != 1 && options.gpus != 2) return false;
    } else if (name == "--csv") {
      options.csv = argv[i + 1];
    } else if (name == "--machine") {
      options.machine = argv[i + 1];
    } else if (name == "--commit") {
      options.commit = argv[i + 1];
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
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
