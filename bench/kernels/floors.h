#pragma once

#include <string>
#include <vector>

// What the hardware allows (docs/spec/limits.md): per operator max(bytes / HBM rate, operations /
// tensor rate), added over the operators of a phase. Sizes are those of the real model.
namespace baton::bench {

enum class Rate { kFp8, kBf16, kTf32, kNone };

struct Work {
  double bytes = 0;
  double flops = 0;
  Rate rate = Rate::kNone;
};

struct Hardware {
  double bytes_per_second = 3.0e12;  // a measured copy; H200: 4.3e12
  double bf16 = 798e12, fp8 = 1.55e15;
};
Hardware HardwareOf(const std::string& device_name);

double FloorMicroseconds(const Hardware& hardware, const std::vector<Work>& work);

enum class Kind { kWindow, kCsa, kHca };  // of a layer

// Rows of a step, spread over sequences of `context` tokens, a sequence's rows last.
struct StepSize {
  int sequences = 1;
  int rows_per_sequence = 1;  // 1: decode; else the last chunk of a prompt
  int context = 0;
  double rows() const { return double{1} * sequences * rows_per_sequence; }
};

std::vector<Work> MixWork(const StepSize& step);
std::vector<Work> ProjectInWork(const StepSize& step, Kind kind);
std::vector<Work> StoreRowsWork(const StepSize& step, Kind kind);
std::vector<Work> ProjectQueryWork(const StepSize& step, Kind kind);
std::vector<Work> SelectWork(const StepSize& step);
std::vector<Work> AttendWork(const StepSize& step, Kind kind);
std::vector<Work> ProjectOutWork(const StepSize& step);
std::vector<Work> RouteWork(const StepSize& step);
// `distinct`: experts that the step's rows name.
std::vector<Work> ExpertsWork(const StepSize& step, int distinct);
std::vector<Work> LinearWork(int rows, int outputs, int columns, bool is_fp8_weight,
                             bool is_fp8_input);
std::vector<Work> SampleWork(int rows);

}  // namespace baton::bench
