#pragma once

#include <memory>

#include "absl/status/statusor.h"

namespace baton::bench {

// One all-reduce of bf16 rows between two GPUs of this process, timed in a chain of its own
// kernels.
struct AllReduceTime {
  double packets = 0;  // us, flags travel with the data, eight bytes at once
  double blocks = 0;   // us, one flag behind each block's data
  double best() const { return packets < blocks ? packets : blocks; }
};

// Both GPUs write into each other's memory over peer access and add in rank order, so that both
// hold the same bits (R6 of contracts.md 1.3); the sums are checked. kUnavailable where there is no
// second GPU that may do that.
class AllReducePair {
 public:
  static absl::StatusOr<AllReducePair> Create(int max_rows, int width);
  AllReducePair(AllReducePair&& other) noexcept;
  ~AllReducePair();

  absl::StatusOr<AllReduceTime> Time(int rows);

 private:
  struct State;
  explicit AllReducePair(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace baton::bench
