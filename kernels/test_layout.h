#pragma once

#include "kernels/page_layout.h"

namespace baton::kernels {

// Two layers, one of each kind, for tests of what lies in a tail.
inline PageLayout SmallLayout() {
  return PageLayout({.head_dim = 512,
                     .rope_dim = 64,
                     .index_head_dim = 128,
                     .window = 128,
                     .hc_mult = 4,
                     .hidden_size = 128,
                     .num_layers = 2,
                     .num_mtp_layers = 1,
                     .csa_layers = {1},
                     .hca_layers = {0}});
}

}  // namespace baton::kernels
