#include "common/class_id.h"

#include "gtest/gtest.h"

namespace baton {
namespace {

TEST(ClassId, OfTheCpuMatchesItsVector) {
  const NumericsClass numerics = CpuNumericsClass(/*is_float32=*/false);
  EXPECT_EQ(CanonicalText(numerics),
            "arch=cpu;kernels=1;mode=official;index=fp8;tp=1;ep=1;cp=1;placement=0;role=unified;");
  EXPECT_EQ(ClassIdOf(numerics).Hex(), "49568d2f47f8263e");
}

TEST(ClassId, OfFloat32ModeDiffers) {
  const NumericsClass numerics = CpuNumericsClass(/*is_float32=*/true);
  EXPECT_EQ(CanonicalText(numerics),
            "arch=cpu;kernels=1;mode=float32;index=f32;tp=1;ep=1;cp=1;placement=0;role=unified;");
  EXPECT_NE(ClassIdOf(numerics), ClassIdOf(NumericsClass{}));
}

}  // namespace
}  // namespace baton
