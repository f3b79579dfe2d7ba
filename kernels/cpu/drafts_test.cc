#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "gtest/gtest.h"

#include "kernels/cpu/one_layer_model.h"

// From a step's choices to its drafts: Accept, AdvanceDrafter, KeepDraft, Harvest.
namespace baton::kernels::cpu {
namespace {

using testing::kHidden;
using testing::kVocabulary;
using testing::OneLayerModel;
using testing::OneLayerOptions;
using testing::Tokens;

// The step's streams before they are replaced: a row behind the first takes another row's.
TEST(DraftInput, ReadsEverySourceBeforeItWritesARow) {
  OneLayerModel model({});
  const std::vector<int32_t> tokens = Tokens(20);
  const auto draft = [&](int first) {
    model.Start({tokens.data(), 3});
    model.Step({{.first_position = 3, .num_rows = 17, .tokens = &tokens[3]}});
    const AcceptRun run{.next_token = 5, .first = first};
    CHECK(model.ops().Accept({.runs = {&run, 1}}).ok());
    CHECK(model.ops().AdvanceDrafter(DrafterRows::kKnown).ok());
    EXPECT_EQ(*model.ops().view().num_rows, 20 - first);
    model.EnterDrafter(/*goes_on=*/false);
    return model.act().streams;
  };
  const std::vector<float> from_slot = draft(2), from_step = draft(3), last = draft(19);
  constexpr size_t kWidth = 4 * kHidden;
  EXPECT_TRUE(std::equal(&from_step[0], &from_step[17 * kWidth], &from_slot[kWidth]));
  EXPECT_TRUE(std::equal(&last[0], &last[kWidth], &from_step[16 * kWidth]));
}

// Two drafts from the first rows' last on.
class DraftPair {
 public:
  explicit DraftPair(float inv_temperature) {
    model_.Start(Tokens(kRows));
    spec_.greedy = inv_temperature == 0;
    spec_.inv_temperature = inv_temperature;
    const AcceptRun run{
        .next_token = 7, .first = kRows - 1, .drafts = true, .spec = &spec_, .key = 99};
    CHECK(model_.ops().Accept({.runs = {&run, 1}}).ok());
    CHECK(model_.ops().AdvanceDrafter(DrafterRows::kDrafting).ok());
  }

  // Each token is chosen and given to the view by the caller.
  std::vector<int32_t> ByHand() {
    SampleRow row;
    row.spec = &spec_;
    row.key = 99;
    row.position = kRows + 1;
    row.is_draft = true;
    std::vector<int32_t> drafts;
    for (int i = 0; i < 2; ++i) {
      EnterAndScore(/*goes_on=*/i > 0);
      TokenRecord chosen;
      uint8_t is_empty = 1;
      CHECK(model_.ops()
                .Sample({.rows = {&row, 1}, .chosen = {&chosen, 1}, .is_empty = {&is_empty, 1}})
                .ok());
      drafts.push_back(chosen.token);
      const_cast<int32_t&>(model_.ops().view().token[0]) = chosen.token;
      ++row.position;
    }
    return drafts;
  }

  std::vector<int32_t> OneAfterTheOther() {
    EXPECT_EQ(model_.ops().view().token[0], 7);
    for (int i = 0; i < 2; ++i) {
      EnterAndScore(/*goes_on=*/i > 0);
      CHECK(model_.ops().KeepDraft().ok());
    }
    std::vector<int32_t> accepted(1), drafts(2);
    CHECK(model_.ops()
              .Harvest({.chosen = {}, .is_empty = {}, .accepted = accepted, .drafts = drafts})
              .ok());
    EXPECT_EQ(accepted[0], kRows);
    EXPECT_EQ(model_.ops().view().token[0], drafts[1]);
    EXPECT_EQ(model_.ops().view().position[0], kRows + 1);
    return drafts;
  }

 private:
  static constexpr int kRows = 20;

  void EnterAndScore(bool goes_on) {
    model_.EnterDrafter(goes_on);
    CHECK(model_.Head({}, /*has_all_rows=*/true).ok());
  }

  OneLayerModel model_{OneLayerOptions{}};
  SamplingSpec spec_;
};

TEST(Drafts, FollowOneAnotherAsIfTheCallerHadGivenEachToken) {
  for (const float inv_temperature : {0.0f, 1.0f, 0.4f}) {
    EXPECT_EQ(DraftPair(inv_temperature).OneAfterTheOther(), DraftPair(inv_temperature).ByHand())
        << inv_temperature;
  }
}

// A step of two verify runs, whose sampler is told what to choose, and a prompt's end.
class Acceptance : public ::testing::Test {
 protected:
  static constexpr int32_t kNothing = -1;  // the sampler finds no token

  // Slots 0 and 1 verify 4 and 3 rows from positions 9 and 5 on; slot 2 has rows 0 and 1 of a
  // prompt. Choices by row, the prompt's last one.
  void Choose(const std::vector<int32_t>& choices) {
    const std::vector<int32_t> tokens = Tokens(9);
    for (int slot = 0; slot < 3; ++slot) model_.ops().ResetTail(slot);
    model_.Step({{.tail_slot = 0, .num_rows = 9, .tokens = tokens.data()},
                 {.tail_slot = 1, .num_rows = 5, .tokens = tokens.data()}});
    static constexpr int32_t kFirst[] = {10, 11, 12, 13}, kSecond[] = {20, 21, 22};
    model_.Step({{.tail_slot = 0,
                  .kind = RowKind::kVerify,
                  .first_position = 9,
                  .num_rows = 4,
                  .tokens = kFirst},
                 {.tail_slot = 1,
                  .kind = RowKind::kVerify,
                  .first_position = 5,
                  .num_rows = 3,
                  .tokens = kSecond},
                 {.tail_slot = 2, .num_rows = 2, .tokens = tokens.data()}});
    const std::vector<int32_t> head_rows = {0, 1, 2, 3, 4, 5, 6, 8};
    CHECK(model_.Head(head_rows, /*has_all_rows=*/false).ok());
    std::vector<SamplingSpec> specs(8);
    std::vector<SampleRow> rows(8);
    for (size_t i = 0; i < rows.size(); ++i) {
      specs[i].greedy = true;
      specs[i].allowed_tokens = {choices[i] == kNothing ? kVocabulary : choices[i]};
      rows[i].spec = &specs[i];
      rows[i].logits_row = static_cast<int32_t>(i);
    }
    for (size_t i = 0; i < rows.size(); i += 4) {
      CHECK(model_.ops().Sample({.rows = {&rows[i], 4}, .chosen = {}, .is_empty = {}}).ok());
    }
  }

  absl::Status Accept(int prompt_first) {
    const std::vector<AcceptRun> runs = {
        {.choice = 0, .first = 9, .drafts = true, .spec = &spec_, .key = 1},
        {.choice = 4, .first = 4, .drafts = true, .spec = &spec_, .key = 2},
        {.choice = 7, .first = prompt_first}};
    return model_.ops().Accept({.runs = runs});
  }

  // (token, position, tail slot) of the drafter's rows.
  using Rows = std::vector<std::array<int32_t, 3>>;
  Rows View(DrafterRows rows) {
    CHECK(model_.ops().AdvanceDrafter(rows).ok());
    const StepView& view = model_.ops().view();
    Rows seen;
    for (int i = 0; i < *view.num_rows; ++i) {
      seen.push_back({view.token[i], view.position[i], view.tail_slot[view.sequence[i]]});
    }
    return seen;
  }

  std::vector<int32_t> Accepted() {
    std::vector<TokenRecord> chosen(8);
    std::vector<uint8_t> is_empty(8);
    std::vector<int32_t> accepted(3);
    CHECK(model_.ops()
              .Harvest({.chosen = chosen, .is_empty = is_empty, .accepted = accepted, .drafts = {}})
              .ok());
    return accepted;
  }

  OneLayerModel model_{OneLayerOptions{}};
  SamplingSpec spec_;
};

TEST_F(Acceptance, RowsStayUpToTheFirstWrongDraft) {
  Choose({11, 12, 99, 14, 98, 22, 23, 30});
  ASSERT_TRUE(Accept(0).ok());
  EXPECT_EQ(View(DrafterRows::kKnown),
            (Rows{{11, 9, 0}, {12, 10, 0}, {20, 4, 1}, {7, 0, 2}, {30, 1, 2}}));
  EXPECT_EQ(View(DrafterRows::kDrafting), (Rows{{99, 11, 0}, {98, 5, 1}}));
  EXPECT_EQ(Accepted(), (std::vector<int32_t>{3, 1, 2}));
}

TEST_F(Acceptance, AllRowsStayWhereEveryDraftIsRight) {
  Choose({11, 12, 13, 14, 21, 22, 23, 30});
  ASSERT_TRUE(Accept(AcceptRun::kNone).ok());
  EXPECT_EQ(View(DrafterRows::kKnown),
            (Rows{{11, 9, 0}, {12, 10, 0}, {13, 11, 0}, {20, 4, 1}, {21, 5, 1}, {22, 6, 1}}));
  EXPECT_EQ(View(DrafterRows::kDrafting), (Rows{{14, 12, 0}, {23, 7, 1}}));
  EXPECT_EQ(Accepted(), (std::vector<int32_t>{4, 3, 2}));
}

TEST_F(Acceptance, AChoiceOfNoTokenEndsItsRun) {
  Choose({kNothing, 12, 13, 14, 21, kNothing, 23, kNothing});
  ASSERT_TRUE(Accept(0).ok());
  EXPECT_EQ(View(DrafterRows::kKnown), (Rows{{20, 4, 1}, {7, 0, 2}}));
  EXPECT_EQ(View(DrafterRows::kDrafting), (Rows{{21, 5, 1}}));
  EXPECT_EQ(Accepted(), (std::vector<int32_t>{0, 1, 2}));
}

TEST_F(Acceptance, RefusesWhatTheStepHasNot) {
  Choose({11, 12, 13, 14, 21, 22, 23, 30});
  Ops& ops = model_.ops();
  EXPECT_EQ(ops.Accept({.runs = {}}).code(), absl::StatusCode::kInvalidArgument);
  std::vector<AcceptRun> runs = {{.choice = 0}, {.choice = 6}, {}};
  const absl::Status status = ops.Accept({.runs = runs});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("3 choices from choice 6 on, 8 were kept"),
            std::string::npos);
  runs[1] = {.choice = 4, .first = 3};
  EXPECT_EQ(ops.Accept({.runs = runs}).code(), absl::StatusCode::kInvalidArgument);
  runs[1] = {.choice = 4, .drafts = true};
  EXPECT_EQ(ops.Accept({.runs = runs}).code(), absl::StatusCode::kInvalidArgument);
  std::vector<TokenRecord> chosen(7);
  EXPECT_EQ(ops.Harvest({.chosen = chosen, .is_empty = {}, .accepted = {}, .drafts = {}}).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Following, RefusesRunsThatDoNotGoOn) {
  const std::vector<StepRun> last = {
      {.slot = 3, .kind = RowKind::kVerify, .num_rows = 2, .first = 9},
      {.slot = 1, .kind = RowKind::kVerify, .num_rows = 1, .first = 0}};
  const AdvanceLimits limits{.max_draft_rows = 4, .max_pages = 1, .max_rows = 8};
  const std::array<PageId, 2> pages = {};
  const auto check = [&](const auto& edit, bool do_all_draft = true) {
    std::vector<SequenceRows> runs;
    for (const StepRun& run : last) {
      runs.push_back({.tail_slot = run.slot,
                      .kind = RowKind::kVerify,
                      .first_position = static_cast<int32_t>(run.end()),
                      .num_rows = 2,
                      .pages = pages.data(),
                      .num_pages = 1});
    }
    edit(runs);
    return CheckFollowing({.runs = runs, .follows = true}, limits, last, do_all_draft).ok();
  };
  EXPECT_TRUE(check([](auto&) {}));
  EXPECT_FALSE(check([](auto&) {}, /*do_all_draft=*/false));
  EXPECT_FALSE(check([](auto& runs) { runs.pop_back(); }));
  EXPECT_FALSE(check([](auto& runs) { runs.clear(); }));
  EXPECT_FALSE(check([](auto& runs) { std::swap(runs[0], runs[1]); }));
  EXPECT_FALSE(check([](auto& runs) { runs[0].kind = RowKind::kReplay; }));
  EXPECT_FALSE(check([](auto& runs) { --runs[1].first_position; }));
  EXPECT_FALSE(check([](auto& runs) { runs[1].num_rows = 3; }));
  EXPECT_FALSE(check([](auto& runs) { runs[0].num_rows = runs[1].num_rows = 1; }));  // fewer
  EXPECT_FALSE(check([](auto& runs) { runs[0].num_rows = runs[1].num_rows = 5; }));
  EXPECT_FALSE(check([](auto& runs) { runs[0].num_pages = 0; }));
  EXPECT_FALSE(check([](auto& runs) { runs[0].num_pages = 2; }));
}

}  // namespace
}  // namespace baton::kernels::cpu
