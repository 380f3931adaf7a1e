// As many floats at a time as a register holds: 16 with AVX-512, 8 with AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined __AVX512F__
constexpr int64_t LANES = 16;
#elif defined __AVX2__ && defined __FMA__
constexpr int64_t LANES = 8;
#else
#error "AVX2 and FMA are needed"
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

inline Floats all(float value) { return Floats{} + value; }

// What is no number stays so, as in torch.
inline Floats at_least(Floats value, float least) { return value < least ? all(least) : value; }

// The first n of a register; the others are 0.
inline Floats load_some(const float* from, int64_t n) {
    Floats values = {};
    if (n == LANES) return load(from);
    std::memcpy(&values, from, n * sizeof(float));
    return values;
}

inline void store_some(float* to, Floats values, int64_t n) {
    if (n == LANES) return store(to, values);
    std::memcpy(to, &values, n * sizeof(float));
}

inline Floats first(Floats values, int64_t n) {
    for (int64_t i = n; i < LANES; ++i) values[i] = 0;
    return values;
}

// One over the square root of positive numbers: a first guess, and Newton's steps until float32 is filled.
inline Floats inverse_root(Floats value) {
#if defined __AVX512F__
    Floats guess = (Floats)_mm512_rsqrt14_ps((__m512)value);
#else
    Floats guess = (Floats)_mm256_rsqrt_ps((__m256)value);
    guess = guess * (1.5f - 0.5f * value * guess * guess);
#endif
    return guess * (1.5f - 0.5f * value * guess * guess);
}

// The natural logarithm of positive numbers: 2 artanh((m - 1) / (m + 1)) of a mantissa m from sqrt(1/2) to sqrt(2).
inline Floats ln(Floats value) {
    const Words bits = (Words)value, lowest = Words{} + 0x3f3504f3;  // sqrt(1/2)
    const Ints exponent = (Ints)(bits - lowest) >> 23;
    const Floats m = (Floats)(bits - ((Words)exponent << 23));
    const Floats t = (m - 1) / (m + 1), squared = t * t;
    const Floats series = 1 + squared * (1 / 3.0f + squared * (1 / 5.0f + squared * (1 / 7.0f + squared * (1 / 9.0f))));
    return 2 * t * series + __builtin_convertvector(exponent, Floats) * 0.69314718f;
}

// e^value: 2^whole times the series of e^rest, |rest| <= ln(2) / 2.
inline Floats exp(Floats value) {
    const Floats bounded = value < -87.0f ? all(-87.0f) : (value > 88.0f ? all(88.0f) : value);
    const Floats shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the fraction is rounded away
    const Floats whole = shifted - 12582912.0f, rest = bounded - whole * 0.693145752f - whole * 1.42860677e-6f;
    Floats series = all(1 / 5040.0f);
    for (const float factor : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f})
        series = series * rest + factor;
    return (Floats)((Words)series + ((Words)shifted << 23));
}

inline float total(Floats values) {
#if defined __AVX512F__
    return _mm512_reduce_add_ps((__m512)values);
#else
    const __m256 eight = (__m256)values;
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#endif
}

// Exchanges the elements at which bit STEP of the place is set with those of another register at which it is not.
template <int STEP>
inline void exchange(Floats& upper, Floats& lower) {
    Ints above, below;
    for (int32_t i = 0; i < LANES; ++i) {
        above[i] = i & STEP ? LANES + i - STEP : i;
        below[i] = i & STEP ? LANES + i : i + STEP;
    }
    const Floats kept = upper;
    upper = __builtin_shuffle(kept, lower, above);
    lower = __builtin_shuffle(kept, lower, below);
}

template <int STEP>
inline void exchange_all(Floats* rows) {
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i)
        if (!(i & STEP)) exchange<STEP>(rows[i], rows[i + STEP]);
}

// Writes a square block of LANES rows as columns.
inline void turn(const float* from, int64_t from_step, float* to, int64_t to_step) {
    Floats rows[LANES];
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i) rows[i] = load(from + i * from_step);
    exchange_all<1>(rows), exchange_all<2>(rows), exchange_all<4>(rows);
    if (LANES == 16) exchange_all<LANES / 2>(rows);
#pragma GCC unroll 16
    for (int64_t i = 0; i < LANES; ++i) store(to + i * to_step, rows[i]);
}
