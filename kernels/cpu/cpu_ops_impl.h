#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "common/status.h"
#include "kernels/cpu/activations.h"
#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/dot.h"
#include "kernels/cpu/expert_plan.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/quantise.h"
#include "kernels/cpu/rope.h"
#include "kernels/cpu/sample.h"
#include "kernels/cpu/swiglu.h"
#include "kernels/slot_progress.h"

namespace baton::kernels::cpu {

struct AttentionState;  // attention_state.h: tail slots and what attention keeps between phases
struct AttentionStateDeleter {
  void operator()(AttentionState* state) const;
};

// The 17 phases on host memory; one .cc per phase or pair of phases. Engine thread; parts of a
// phase may run on the threads behind options.parallel. Nothing here depends on who runs a part:
// parts follow shapes, and no two parts write the same value (R11).
//
// What lies where between phases (activations.h):
//   MixBoundary   streams, post, comb, normed, normed8
//   ProjectIn     query_low = r(wq_a.x8), kv = r(wkv.x8); compressor_*, index_compressor_* = raw
//                 fp32 products without ape (StoreRows adds it by absolute position);
//                 index_weights = r(weights.x) * I^-0.5 * heads^-0.5
//   StoreRows     query_low = qr, query_low8; kv = the row as attended; compressors and entries
//   ProjectQuery  query = q after norm and rope; index_query after rope and IndexForm
//   SelectEntries selected, num_selected
//   Attend        attended = o after the inverse rope
//   ProjectOut    branch
//   Route         expert_ids, expert_weights
//   Experts       branch
class CpuOps final : public Ops {
 public:
  explicit CpuOps(CpuOptions options);
  ~CpuOps() override;

  absl::Status AdvanceStep(const AdvanceArgs& args) override;
  absl::Status Embed(const EmbedArgs& args) override;
  absl::Status MixBoundary(const MixArgs& args) override;
  absl::Status ProjectIn(const LayerArgs& args) override;
  absl::Status StoreRows(const LayerArgs& args) override;
  absl::Status ProjectQuery(const LayerArgs& args) override;
  absl::Status SelectEntries(const LayerArgs& args) override;
  absl::Status Attend(const LayerArgs& args) override;
  absl::Status ProjectOut(const LayerArgs& args) override;
  absl::Status Route(const LayerArgs& args) override;
  absl::Status Experts(const LayerArgs& args) override;
  absl::Status Head(const HeadArgs& args) override;
  absl::Status Sample(const SampleArgs& args) override;
  absl::Status DraftInput(const DraftInputArgs& args) override;
  absl::Status PackTail(const TailArgs& args) override;
  absl::Status UnpackTail(const TailArgs& args) override;
  absl::Status Digest(const DigestArgs& args) override;
  absl::Status Accept(const AcceptArgs& args) override;  // drafts.cc
  absl::Status AdvanceDrafter(DrafterRows rows) override;
  absl::Status KeepDraft() override;
  absl::Status Harvest(const HarvestArgs& args) override;
  absl::Status Repeat(StepPart, int, const std::function<absl::Status()>& phases) override {
    return phases();
  }
  const StepView& view() const override { return view_; }
  void ResetTail(int32_t tail_slot) override;

  Activations& activations() { return act_; }  // tests look at intermediates

 private:
  friend class AttentionPhases;  // attention_phases.h: what knows positions, tails and pages

  static constexpr int kRowPiece = 16;  // rows of one part where each row is a little work

  // fn(begin, end) over [0, count) in pieces of `piece` rows, a constant of the caller; possibly on
  // several threads.
  template <typename F>
  void ForRows(int count, int piece, const F& fn) const {
    const auto part = [&](int index) { fn(index * piece, std::min(count, (index + 1) * piece)); };
    const int parts = (count + piece - 1) / piece;
    if (options_.parallel && parts > 1) {
      options_.parallel(parts, std::ref(part));
    } else {
      for (int index = 0; index < parts; ++index) part(index);
    }
  }

  bool is_official() const { return mode_ == NumericsMode::kOfficial; }
  float Round(float x) const { return is_official() ? RoundBf16(x) : x; }
  void Round(float* x, int n) const {
    if (is_official()) RoundBf16(x, n);
  }
  // y = round(weight * (x * rsqrt(mean(x^2) + eps))) (model.md 2.2); null weight: none. y may be x.
  void NormRow(const float* x, const float* weight, int n, float* y) const;
  // Row `row` of an fp8 linear's input, from x [width].
  void QuantiseInto(const float* x, int width, int row, QuantisedRows& out) const;

  // linears.cc. y [rows, weight rows]: an fp8 linear, rounded; a linear on unquantised values,
  // unrounded.
  GemmArgs Fp8Linear(const Matrix* weight, const QuantisedRows& x, int rows, float* y) const;
  GemmArgs PlainLinear(const Matrix* weight, const std::vector<float>& x, int rows, float* y) const;
  // Runs independent linears. Errors: kInvalidArgument where an fp8 linear's weight has no scales
  // (official mode).
  absl::Status RunLinears(std::span<const GemmArgs> linears) const;

  // mix_boundary.cc: one row at a site.
  void LeaveSite(size_t row);
  void EnterSite(const MixWeights& mix, Vector norm, size_t row);

  // drafts.cc. What the drafter does after one run of the main step.
  struct DrafterRun {
    StepRun main;
    int32_t next_token = AcceptRun::kNone;  // after the rows that stay
    int first = 0;                          // position of its first row
    std::vector<int32_t> tokens;            // by row, each the one after the row's position
    bool can_draft = false;                 // what Accept was told
    bool drafts = false;                    // from the last row
    SampleRow sample;                       // of its drafts
  };
  int AcceptedRows(const StepRun& run, int first_choice) const;
  DrafterRun FollowRun(const StepRun& run, const AcceptRun& args, int accepted) const;
  // What a step has chosen, until it is harvested.
  struct Outcome {
    std::vector<TokenRecord> kept;
    std::vector<uint8_t> kept_empty;  // [kept]
    std::vector<int32_t> accepted;    // by run
    std::vector<int32_t> drafts;      // kept, [drafts, runs]
  };
  absl::Status AdvanceFollowing(const AdvanceArgs& args);

  // experts.cc
  void RunExpertSlice(const LayerWeights& layer, int first_row, int num_rows);
  void RunExpertPart(const ExpertPart& part, int first_row);
  void SumExperts(int first_row, int row, int num_rows);

  const CpuOptions options_;
  const ModelConfig& config_;  // options_.config
  const NumericsMode mode_;
  Activations act_;
  const GemmRunner gemm_;
  const DotFunction dot_;
  const SwigluFunction swiglu_;
  const RopeTable rope_;

  // The view's arrays, written by AdvanceStep.
  int32_t num_rows_ = 0;
  std::vector<int32_t> token_, position_, sequence_;  // [max_rows]
  std::vector<PageId> page_table_;                    // [max_sequences, max_pages]
  std::vector<int32_t> tail_slot_;                    // [max_sequences]
  StepView view_;

  std::unique_ptr<AttentionState, AttentionStateDeleter> attention_;

  // Scratch, sized once.
  std::vector<float> mixes_;          // [rows, (2 + S) * S]
  std::vector<float> low_out_;        // [rows, o_groups * o_lora]
  QuantisedRows low_out8_;            // the same, fp8
  std::vector<float> gate_logits_;    // [rows, E]
  std::vector<float> head_products_;  // [max head rows, S]
  std::vector<float> collapsed_;      // [max head rows, H]
  QuantisedRows draft_streams8_;      // [rows * S, H]
  std::vector<float> draft_streams_;  // [rows * S, H]
  ExpertPlan expert_plan_;
  std::vector<ExpertPart> expert_parts_;
  ExpertScratch expert_scratch_;
  std::vector<SampleScratch> sample_scratch_;  // one for each part
  std::vector<int32_t> all_rows_;              // 0, 1, .. [max head rows]

  // The step's choices and what follows from them, drafts.cc.
  Outcome outcome_;
  std::optional<Outcome> earlier_;  // of the step that this one follows
  std::vector<int32_t> early_by_;   // by run, what told positions are ahead of; empty: nothing
  std::vector<DrafterRun> drafter_runs_;  // by run
  std::vector<int32_t> source_rows_;      // by row of AdvanceDrafter's view; kFromSlot
  std::vector<SampleRow> draft_rows_;     // by row that drafts
  std::vector<size_t> drafting_;          // the same rows' runs
  static constexpr int32_t kFromSlot = -1;
};

}  // namespace baton::kernels::cpu
