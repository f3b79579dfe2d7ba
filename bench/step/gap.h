#pragma once

#include <string>
#include <vector>

#include "bench/kernels/bench_model.h"
#include "bench/kernels/floors.h"
#include "bench/kernels/graph_timer.h"

// Why a decode step takes longer than its floor, phase by phase.
namespace baton::bench {

// Microseconds; they add up to the time measured.
struct Gap {
  double floor = 0;
  double launch = 0;     // kernels times what an empty one costs in a graph
  double latency = 0;    // what remains when the weights already lie in L2
  double bandwidth = 0;  // the rest: bytes that come slower than the floor's rate
  double total() const { return floor + launch + latency + bandwidth; }
  void Add(const Gap& other, int times);
};

class GapTimer {
 public:
  // `ranks`: the floor of a phase is divided by it, as its weights are.
  GapTimer(BenchModel& model, GraphTimer& timer, Hardware hardware, int ranks);

  // All phases of one layer, each timed alone.
  Gap TimeLayer(const StepSize& step, Kind kind);
  // What is not a phase of a layer: `microseconds` and `launches` as measured.
  Gap Split(const Timing& cold, double floor) const;
  double launch_microseconds() const { return launch_; }

 private:
  struct Phase;
  std::vector<Phase> PhasesOf(const StepSize& step, Kind kind);
  Gap TimePhase(const Phase& phase);

  BenchModel& model_;
  GraphTimer& timer_;
  const Hardware hardware_;
  const int ranks_;
  double launch_ = 0;
};

}  // namespace baton::bench
