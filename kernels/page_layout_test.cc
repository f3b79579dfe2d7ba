#include "kernels/page_layout.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"

// Vectors of contracts.md 3.1 and 3.4.
namespace baton::kernels {
namespace {

LayoutShape RealShape() {
  LayoutShape shape = {.head_dim = 512,
                       .rope_dim = 64,
                       .index_head_dim = 128,
                       .window = 128,
                       .hc_mult = 4,
                       .hidden_size = 4096,
                       .num_layers = 43,
                       .num_mtp_layers = 1,
                       .csa_layers = {},
                       .hca_layers = {}};
  for (int layer = 2; layer < 43; ++layer)
    (layer % 2 == 0 ? shape.csa_layers : shape.hca_layers).push_back(layer);
  return shape;
}

LayoutShape TinyShape() {
  LayoutShape shape = RealShape();
  shape.hidden_size = 128;
  shape.num_layers = 4;
  shape.csa_layers = {1, 3};
  shape.hca_layers = {2};
  return shape;
}

TEST(PageLayout, RealModelHasThePublishedSizes) {
  const PageLayout layout(RealShape());
  EXPECT_EQ(layout.row_data_bytes(), 576);
  EXPECT_EQ(layout.row_scale_bytes(), 8);
  EXPECT_EQ(layout.index_value_bytes() + layout.index_scale_bytes(), 132);
  EXPECT_EQ(layout.payload_bytes(), 985'664u);
  EXPECT_EQ(layout.stride_bytes(), 995'328u);
  EXPECT_EQ(layout.Id().Hex(), "95ad7d6c967f017a");
}

TEST(PageLayout, RealModelHasThePublishedOffsets) {
  const PageLayout layout(RealShape());
  EXPECT_EQ(layout.CsaRowData(2, 0), 0u);
  EXPECT_EQ(layout.CsaRowData(2, 63), 63u * 576);
  EXPECT_EQ(layout.CsaRowScales(2, 0), 36'864u);
  EXPECT_EQ(layout.IndexValues(2, 0), 37'376u);
  EXPECT_EQ(layout.IndexScales(2, 0), 45'568u);
  EXPECT_EQ(layout.IndexScales(2, 5), 45'568u + 20);
  EXPECT_EQ(layout.CsaRowData(4, 0), 45'824u);
  EXPECT_EQ(layout.HcaRowData(3, 0), 962'304u);
  EXPECT_EQ(layout.HcaRowScales(3, 1), 962'304u + 1152 + 8);
  EXPECT_EQ(layout.HcaRowData(5, 0), 962'304u + 1'168);
}

TEST(PageLayout, Fp4IndexMakesSmallerSections) {
  LayoutShape shape = RealShape();
  shape.index = IndexFormat::kFp4;
  const PageLayout layout(shape);
  EXPECT_EQ(layout.index_value_bytes() + layout.index_scale_bytes(), 68);
  EXPECT_EQ(layout.CsaRowData(4, 0), 41'728u);
  EXPECT_EQ(layout.payload_bytes(), 899'648u);
  EXPECT_EQ(layout.stride_bytes(), 921'600u);
}

TEST(PageLayout, TinyModelHasThePublishedTextAndId) {
  const PageLayout layout(TinyShape());
  EXPECT_EQ(layout.CanonicalText(),
            "page=256;d=512;r=64;i=128;rows=fp8;index=fp8;csa=1,3;hca=2;window=128;mtp=1;tail=1;"
            "stride=110592;");
  EXPECT_EQ(layout.Id().Hex(), "82bdcbab59d1e78b");
  EXPECT_EQ(layout.payload_bytes(), 92'816u);
  EXPECT_EQ(layout.stride_bytes(), 110'592u);
}

TEST(PageLayout, Float32ModeHasNoScales) {
  LayoutShape shape = TinyShape();
  shape.rows = RowFormat::kF32;
  shape.index = IndexFormat::kF32;
  const PageLayout layout(shape);
  EXPECT_EQ(layout.row_scale_bytes(), 0);
  EXPECT_EQ(layout.index_scale_bytes(), 0);
  EXPECT_EQ(layout.payload_bytes(), 331'776u);
  EXPECT_EQ(layout.stride_bytes(), 331'776u);
  EXPECT_EQ(layout.IndexValues(1, 0), 64u * 2048);
}

TEST(PageLayout, WithoutCompressedLayersAPageIsOneEmptyUnit) {
  LayoutShape shape = TinyShape();
  shape.csa_layers.clear();
  shape.hca_layers.clear();
  shape.num_mtp_layers = 0;
  const PageLayout layout(shape);
  EXPECT_EQ(layout.payload_bytes(), 0u);
  EXPECT_EQ(layout.stride_bytes(), 36'864u);
  EXPECT_EQ(layout.CanonicalText(),
            "page=256;d=512;r=64;i=128;rows=fp8;index=fp8;csa=;hca=;window=128;mtp=0;tail=1;"
            "stride=36864;");
  const TailLayout tail = MakeTailLayout(layout, 3, 0);
  EXPECT_EQ(tail.streams, 128u + 4 * 1'760);  // 3 rows of 584, aligned to 16
}

TEST(TailLayout, RealModelHasThePublishedSizes) {
  const PageLayout layout(RealShape());
  EXPECT_EQ(MakeTailLayout(layout, 8192, 0).total_bytes, 3'751'488u);
  EXPECT_EQ(MakeTailLayout(layout, 8191, 0).total_bytes, 4'519'488u);
  EXPECT_EQ(MakeTailLayout(layout, 8192, 1).total_bytes, 3'751'664u);
  EXPECT_EQ(MakeTailLayout(layout, 8191, 1).total_bytes, 4'519'664u);
}

TEST(TailLayout, CountsRowsByPosition) {
  const PageLayout layout(TinyShape());
  const TailLayout first = MakeTailLayout(layout, 1, 1);
  EXPECT_EQ(first.window_rows, 1);
  EXPECT_EQ(first.mtp_rows, 0);
  EXPECT_EQ(first.csa_open_rows, 1);
  EXPECT_TRUE(first.has_hca_state);
  const TailLayout full = MakeTailLayout(layout, 256, 0);
  EXPECT_EQ(full.window_rows, 128);
  EXPECT_EQ(full.mtp_rows, 127);
  EXPECT_EQ(full.csa_open_rows, 0);
  EXPECT_FALSE(full.has_hca_state);
  EXPECT_TRUE(full.hca_state.empty());
  EXPECT_EQ(full.first_tokens, full.total_bytes);
}

TEST(TailLayout, SectionsFollowOneAnotherInOrder) {
  const PageLayout layout(TinyShape());
  const TailLayout tail = MakeTailLayout(layout, 259, 2);
  const uint64_t rows = 128 * 584;
  EXPECT_EQ(tail.window[0], 128u);
  EXPECT_EQ(tail.window[3], 128 + 3 * rows);
  EXPECT_EQ(tail.mtp_window[0], 128 + 4 * rows);
  EXPECT_EQ(tail.csa_state[0], 128 + 4 * rows + 74'176);  // 127 * 584 = 74,168, aligned to 16
  EXPECT_EQ(tail.csa_state[1], tail.csa_state[0] + 4 * 1280 * 4);
  EXPECT_EQ(tail.csa_open[0], tail.csa_state[1] + 4 * 1280 * 4);
  EXPECT_EQ(tail.csa_open[1], tail.csa_open[0] + 3 * 2560 * 4);
  EXPECT_EQ(tail.hca_state[0], tail.csa_open[1] + 3 * 2560 * 4);
  EXPECT_EQ(tail.streams, tail.hca_state[0] + 12 * 512);
  EXPECT_EQ(tail.first_tokens, tail.streams + 2 * 4 * 128);
  EXPECT_EQ(tail.total_bytes, tail.first_tokens + 2 * 176);
}

TEST(TailLayout, EveryPieceIsAlignedAndMaxTailBytesIsTheMaximum) {
  for (LayoutShape shape : {RealShape(), TinyShape()}) {
    const PageLayout layout(shape);
    uint64_t largest = 0;
    for (uint64_t n = 1; n <= 700; ++n) {
      const TailLayout tail = MakeTailLayout(layout, n, 3);
      for (const auto* pieces :
           {&tail.window, &tail.mtp_window, &tail.csa_state, &tail.csa_open, &tail.hca_state}) {
        for (uint64_t start : *pieces) EXPECT_EQ(start % 16, 0u) << n;
      }
      EXPECT_EQ(tail.streams % 16, 0u);
      EXPECT_EQ(tail.first_tokens % 16, 0u);
      largest = std::max(largest, tail.total_bytes);
    }
    EXPECT_EQ(MaxTailBytes(layout, 3), largest);
  }
}

}  // namespace
}  // namespace baton::kernels
