// Operations on registers that need AVX2 or AVX-512.
#pragma once

#include <immintrin.h>

#include "arithmetic.h"

#if !defined __AVX2__ || !defined __FMA__
#error "AVX2 and FMA are required"
#endif

// NaN stays NaN, as in torch.
inline Floats clamp_min(Floats value, float minimum) { return value < minimum ? broadcast(minimum) : value; }

// Sets broadcast lanes but the keep_first n to 0.
inline Floats keep_first(Floats values, int64_t n) {
    for (int64_t i = n; i < LANES; ++i) values[i] = 0;
    return values;
}

inline float sum_lanes(Floats values) {
#if defined __AVX512F__
    return _mm512_reduce_add_ps((__m512)values);
#else
    const __m256 eight = (__m256)values;
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}

// Exchanges the lanes of one register whose index has bit STEP set with the lanes of another whose index has not.
template <int STEP>
inline void exchange(Floats& upper, Floats& lower) {
    Ints above, below;
    for (int32_t i = 0; i < LANES; ++i) {
        above[i] = i & STEP ? LANES + i - STEP : i;
        below[i] = i & STEP ? LANES + i : i + STEP;
    }
    const Floats original = upper;
    upper = __builtin_shuffle(original, lower, above);
    lower = __builtin_shuffle(original, lower, below);
}

template <int STEP>
inline void exchange_rows(Floats* rows) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i)
        if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP]);
}

// Transposes a square block of LANES x LANES values.
inline void transpose(const float* from, int64_t from_step, float* to, int64_t to_step) {
    Floats rows[LANES];
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i) rows[i] = load(from + i * from_step);
    exchange_rows<1>(rows), exchange_rows<2>(rows), exchange_rows<4>(rows);
    if (LANES == 16) exchange_rows<LANES / 2>(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i) store(to + i * to_step, rows[i]);
}
