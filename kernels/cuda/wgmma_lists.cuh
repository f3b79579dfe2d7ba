#pragma once

// Operand lists of wgmma: the numbers of the first operands, and an accumulator's constraints.

// "%t0, %t1, .. %t9, "; no t: the first ten.
#define BATON_TEN(t)                                                                               \
  "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t \
  "9, "
#define BATON_NUMBERS_4 "%0, %1, %2, %3"
#define BATON_NUMBERS_16 BATON_TEN() "%10, %11, %12, %13, %14, %15"
#define BATON_NUMBERS_32 BATON_TEN() BATON_TEN(1) BATON_TEN(2) "%30, %31"
#define BATON_NUMBERS_64 \
  BATON_TEN() BATON_TEN(1) BATON_TEN(2) BATON_TEN(3) BATON_TEN(4) BATON_TEN(5) "%60, " \
                                                                               "%61, %62, %63"
#define BATON_NUMBERS_128 \
  BATON_TEN() BATON_TEN(1) BATON_TEN(2) BATON_TEN(3) BATON_TEN(4) BATON_TEN(5) BATON_TEN(6)  \
      BATON_TEN(7) BATON_TEN(8) BATON_TEN(9) BATON_TEN(10) BATON_TEN(11) "%120, %121, %122, " \
                                                                         "%123, %124, %125, " \
                                                                         "%126, %127"

// Values i, i + 1, .. of d, read and written.
#define BATON_SUMS_4(d, i) "+f"(d[i]), "+f"(d[(i) + 1]), "+f"(d[(i) + 2]), "+f"(d[(i) + 3])
#define BATON_SUMS_16(d, i) \
  BATON_SUMS_4(d, i), BATON_SUMS_4(d, (i) + 4), BATON_SUMS_4(d, (i) + 8), BATON_SUMS_4(d, (i) + 12)
#define BATON_SUMS_32(d, i) BATON_SUMS_16(d, i), BATON_SUMS_16(d, (i) + 16)
#define BATON_SUMS_64(d, i) BATON_SUMS_32(d, i), BATON_SUMS_32(d, (i) + 32)
#define BATON_SUMS_128(d, i) BATON_SUMS_64(d, i), BATON_SUMS_64(d, (i) + 64)
