#include "bench/step/gap.h"

#include <algorithm>
#include <functional>

#include "bench/kernels/fill.h"
#include "bench/kernels/real_shape.h"

namespace baton::bench {
namespace {

using kernels::LayerArgs;
using kernels::LayerWeights;
using kernels::Ops;

constexpr int kEmptyKernels = 1000;
constexpr double kRotated = 120e6;  // bytes of weights between two uses of one
constexpr double kFitsL2 = 24e6;    // bytes that stay there in full, whichever half they lie in

}  // namespace

// One phase on one of several layers with weights of their own.
struct GapTimer::Phase {
  std::function<absl::Status(const LayerWeights& layer)> queue;
  std::vector<Work> work;
  const std::vector<LayerWeights>* layers;
  int copies;
};

void Gap::Add(const Gap& other, int times) {
  floor += times * other.floor;
  launch += times * other.launch;
  latency += times * other.latency;
  bandwidth += times * other.bandwidth;
}

GapTimer::GapTimer(BenchModel& model, GraphTimer& timer, Hardware hardware, int ranks)
    : model_(model), timer_(timer), hardware_(hardware), ranks_(ranks) {
  const auto stream = model_.device().stream();
  launch_ = timer_.Time(kEmptyKernels, [stream](int) { QueueEmptyKernel(stream); }).microseconds;
}

Gap GapTimer::Split(const Timing& cold, double floor) const {
  Gap gap;
  gap.floor = floor;
  gap.launch = std::min(cold.launches * launch_, std::max(0.0, cold.microseconds - floor));
  gap.bandwidth = cold.microseconds - gap.floor - gap.launch;
  return gap;
}

Gap GapTimer::TimeLayer(const StepSize& step, Kind kind) {
  Gap sum;
  for (const Phase& phase : PhasesOf(step, kind)) sum.Add(TimePhase(phase), 1);
  return sum;
}

Gap GapTimer::TimePhase(const Phase& phase) {
  double bytes = 1;
  for (const Work& work : phase.work) bytes += work.bytes / ranks_;
  const int copies = std::clamp(static_cast<int>(kRotated / bytes) + 1, 2, phase.copies);
  const auto queue = [&](int layer) {
    Must(phase.queue((*phase.layers)[static_cast<size_t>(layer)]), "phase");
  };
  const Timing cold = timer_.Time(copies, queue);
  Gap gap = Split(cold, FloorMicroseconds(hardware_, phase.work) / ranks_);
  if (bytes > kFitsL2) return gap;
  const Timing warm = timer_.Time(copies, [&](int) { queue(0); });
  gap.latency = std::clamp(warm.microseconds - gap.launch, 0.0, std::max(0.0, gap.bandwidth));
  gap.bandwidth -= gap.latency;
  return gap;
}

std::vector<GapTimer::Phase> GapTimer::PhasesOf(const StepSize& step, Kind kind) {
  std::vector<Phase> phases;
  Ops& ops = model_.ops();
  const auto add = [&](auto queue, std::vector<Work> work, Kind layers, int copies) {
    phases.push_back({queue, std::move(work), &model_.layers(layers), copies});
  };
  const auto on_layer = [&ops](absl::Status (Ops::*phase)(const LayerArgs&)) {
    return [&ops, phase](const LayerWeights& layer) {
      return (ops.*phase)({.step = ops.view(), .layer = layer});
    };
  };
  const auto mix = [&ops](const LayerWeights& layer) {
    return ops.MixBoundary({.step = ops.view(),
                            .finish_previous = true,
                            .next = &layer.ffn_mix,
                            .norm = layer.ffn_norm});
  };
  constexpr int kAll = BenchModel::kLayers;
  add(mix, MixWork(step), kind, kAll);
  add(mix, MixWork(step), kind, kAll);
  add(on_layer(&Ops::ProjectIn), ProjectInWork(step, kind), kind, kAll);
  add(on_layer(&Ops::StoreRows), StoreRowsWork(step, kind), kind, kAll);
  add(on_layer(&Ops::ProjectQuery), ProjectQueryWork(step, kind), kind, kAll);
  if (kind == Kind::kCsa) {
    add(on_layer(&Ops::SelectEntries), SelectWork(step), kind, kAll);
  }
  add(on_layer(&Ops::Attend), AttendWork(step, kind), kind, kAll);
  add(on_layer(&Ops::ProjectOut), ProjectOutWork(step), kind, kAll);
  add(on_layer(&Ops::Route), RouteWork(step), kind, kAll);
  // Only some layers have experts, and most of them are CSA.
  add(on_layer(&Ops::Experts), ExpertsWork(step, model_.CountDistinctExperts(step)), Kind::kCsa,
      model_.NumWholeLayers(Kind::kCsa));
  return phases;
}

}  // namespace baton::bench
