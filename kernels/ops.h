#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"

#include "common/ids.h"
#include "kernels/choices.h"
#include "kernels/model_config.h"
#include "kernels/page_layout.h"
#include "kernels/weights.h"

// The 17 phases of a step. A phase lies between two grid-wide dependencies; what flows between
// phases (activations) belongs to the back end and is opaque. Sizes come from StepView, so that a
// step can be captured in a graph. No phase allocates, logs or blocks, but Sample with outputs,
// Harvest and the tails, which wait for what is queued before them. Engine thread. Rounding points:
// model.md 10.6; order of sums: contracts.md 1.3.
namespace baton::kernels {

// The rows of one step. The arrays have stable addresses for the life of a bucket; AdvanceStep
// writes the contents.
struct StepView {
  int max_rows = 0;                    // bucket
  int max_sequences = 0;               // bucket
  int max_pages = 0;                   // columns of page_table
  const int32_t* num_rows = nullptr;   // [1] live rows; the rest are pads and touch no state (R10)
  const int32_t* token = nullptr;      // [max_rows]
  const int32_t* position = nullptr;   // [max_rows]
  const int32_t* sequence = nullptr;   // [max_rows] index into page_table and tail_slot
  const PageId* page_table = nullptr;  // [max_sequences, max_pages]
  const int32_t* tail_slot = nullptr;  // [max_sequences]
};

enum class RowKind : uint8_t {
  kPrefill,
  kVerify,
  kReplay
};  // prefill and replay rows are accepted by definition

// One sequence's part in a step: rows at positions first_position .. first_position + rows - 1,
// ascending.
struct SequenceRows {
  int32_t tail_slot = 0;
  RowKind kind = RowKind::kPrefill;
  int32_t first_position = 0;
  int32_t num_rows = 0;
  const int32_t* tokens = nullptr;  // [num_rows]
  const PageId* pages = nullptr;    // [num_pages]; covers every position of the run
  int32_t num_pages = 0;
};

// Starts a step: writes the view, and folds the accepted rows of each slot's last verify step
// (positions below first_position that are still raw) into its compressor state (contracts.md 1.4).
struct AdvanceArgs {
  std::span<const SequenceRows> runs;  // in row order
  // The last step's runs, all of which were verified and drafted, go on in their order before it is
  // harvested (choices.h): each by the token after the rows that stay and its kept drafts, equally
  // many rows and no fewer than it had. `first_position` is the latest there may be, after all rows
  // of the last run; tokens are none; pages are the last run's and perhaps more. Positions told to
  // Sample and Accept count from it and move with it to where the run begins; logits are of all
  // rows. The earlier step is harvested after this one's drafts are queued, and before anything
  // else.
  bool follows = false;
};

// streams[r][s] = embed[token[r]], four copies.
struct EmbedArgs {
  const StepView& step;
  const Matrix* embed;  // [V, H]
};

// One mHC border: post of the site that just ran (its branch output and the post/comb kept since
// its pre), then pre of the next, the norm of its input and that input's fp8 form
// (model.md 2.3-2.5).
struct MixArgs {
  const StepView& step;
  bool finish_previous = false;      // apply post; false at the first site
  const MixWeights* next = nullptr;  // null after the last site
  Vector norm;                       // [H], of the next site
};

struct LayerArgs {  // ProjectIn, StoreRows, ProjectQuery, SelectEntries, Attend, ProjectOut, Route,
                    // Experts
  const StepView& step;
  const LayerWeights& layer;
};

// logits[i] = head . norm(collapse(streams[rows[i]])), fp32 [rows, V], kept by the back end until
// the next Head.
struct HeadArgs {
  const StepView& step;
  std::span<const int32_t> rows;
  bool has_all_rows = false;  // instead of `rows`: every live row of the step, in order
  const MixWeights& mix;
  Vector norm;
  const Matrix* head;
};

// Inputs of the MTP block: streams[r][s] = e_proj.norm(embed[token[r]]) + h_proj.norm(H[s])
// (model.md 8.1). H is the main model's at position[r], of the step or kept in the slot, or what
// the row's streams are before the call.
struct DraftInputArgs {
  const StepView& step;
  const Matrix* embed;
  const MtpWeights& mtp;
  bool goes_on = false;  // from the row's own streams, which the block has left there
};

// A tail between its device slot and the wire form (contracts.md 3.4). Section 7 and the header are
// the caller's.
struct TailArgs {
  int32_t tail_slot = 0;
  uint64_t num_tokens = 0;  // N; Pack requires that positions 0..N-1 are computed and accepted
  bool has_drafter_state = true;  // Pack: false writes zeros into section 2; Unpack: false leaves
                                  // the drafter's window empty
  std::span<std::byte> wire;      // sections at TailLayout's offsets, header included
};

// Digests of whole pages or buffers under one secret (contracts.md 3.5).
struct DigestItem {
  std::span<const std::byte> header;  // <= 1,024 bytes
  std::span<const std::byte> data;
};
struct DigestArgs {
  Secret secret;
  std::span<const DigestItem> items;
  std::span<Digest128> digests;  // [items], out
};

// Runs of phases that recur with every step.
enum class StepPart { kModel, kModelAndHead, kDrafter };

class Ops {
 public:
  virtual ~Ops() = default;
  virtual absl::Status AdvanceStep(const AdvanceArgs& args) = 0;
  virtual absl::Status Embed(const EmbedArgs& args) = 0;
  virtual absl::Status MixBoundary(const MixArgs& args) = 0;
  virtual absl::Status ProjectIn(
      const LayerArgs& args) = 0;  // q_a, kv, compressors, index weights: one input
  virtual absl::Status StoreRows(
      const LayerArgs& args) = 0;  // norms, rope, window row, compressor state, closing entries
  virtual absl::Status ProjectQuery(const LayerArgs& args) = 0;   // q, index q
  virtual absl::Status SelectEntries(const LayerArgs& args) = 0;  // CSA: top-k, ascending
  virtual absl::Status Attend(const LayerArgs& args) = 0;  // window + entries, sink, inverse rope
  virtual absl::Status ProjectOut(const LayerArgs& args) = 0;
  virtual absl::Status Route(const LayerArgs& args) = 0;
  virtual absl::Status Experts(const LayerArgs& args) = 0;  // incl. shared
  virtual absl::Status Head(const HeadArgs& args) = 0;
  virtual absl::Status Sample(const SampleArgs& args) = 0;
  virtual absl::Status DraftInput(const DraftInputArgs& args) = 0;
  virtual absl::Status PackTail(const TailArgs& args) = 0;
  virtual absl::Status UnpackTail(const TailArgs& args) = 0;
  virtual absl::Status Digest(const DigestArgs& args) = 0;

  // From the choices to the drafts without the caller, once a step. Accept says which rows stay;
  // AdvanceDrafter then writes the view of the MTP block's rows, for which nothing is folded and no
  // page is needed. What is accepted decides how many rows are live. KeepDraft samples each row
  // that drafts from the last Head of all rows and keeps its token, which becomes the row's input
  // at the next position; kMaxKeptDrafts at most. Harvest waits for the oldest step that is not
  // harvested yet.
  static constexpr int kMaxKeptDrafts = 8;
  virtual absl::Status Accept(const AcceptArgs& args) = 0;
  virtual absl::Status AdvanceDrafter(DrafterRows rows) = 0;
  virtual absl::Status KeepDraft() = 0;
  virtual absl::Status Harvest(const HarvestArgs& args) = 0;

  // Runs `phases`: a fixed list of such whose arguments are the view and weights (Embed to Head of
  // all rows; AdvanceDrafter to KeepDraft), the same for every call of `part` with `drafts`. A back
  // end may record what they queue and repeat the record for a step of the same size instead of
  // calling them; the drafter's view is not to be looked at afterwards.
  virtual absl::Status Repeat(StepPart part, int drafts,
                              const std::function<absl::Status()>& phases) = 0;

  // The view AdvanceStep or AdvanceDrafter has filled last.
  virtual const StepView& view() const = 0;
  // Slots are zeroed (compressor scores -inf) before a sequence starts in them.
  virtual void ResetTail(int32_t tail_slot) = 0;
};

}  // namespace baton::kernels
