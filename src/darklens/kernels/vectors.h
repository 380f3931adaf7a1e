// Arithmetic on a register of float32: 16 lanes with AVX-512, 8 with AVX2.
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
#error "AVX2 and FMA are required"
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

inline Floats broadcast(float value) { return Floats{} + value; }

// NaN stays NaN, as in torch.
inline Floats clamp_min(Floats value, float minimum) { return value < minimum ? broadcast(minimum) : value; }

// The keep_first n lanes from memory; the other lanes are 0.
inline Floats load_partial(const float* from, int64_t n) {
    Floats values = {};
    if (n == LANES) return load(from);
    std::memcpy(&values, from, n * sizeof(float));
    return values;
}

inline void store_partial(float* to, Floats values, int64_t n) {
    if (n == LANES) return store(to, values);
    std::memcpy(to, &values, n * sizeof(float));
}

// Sets broadcast lanes but the keep_first n to 0.
inline Floats keep_first(Floats values, int64_t n) {
    for (int64_t i = n; i < LANES; ++i) values[i] = 0;
    return values;
}

// 1 / sqrt(value) of positive numbers: the processor's estimate, refined by Newton steps to float32 precision.
inline Floats inverse_root(Floats value) {
#if defined __AVX512F__
    Floats guess = (Floats)_mm512_rsqrt14_ps((__m512)value);
#else
    Floats guess = (Floats)_mm256_rsqrt_ps((__m256)value);
    guess = guess * (1.5f - 0.5f * value * guess * guess);
#endif
    return guess * (1.5f - 0.5f * value * guess * guess);
}

// The natural logarithm of positive numbers: 2 artanh((m - 1) / (m + 1)) of the mantissa m between sqrt(1/2) and
// sqrt(2).
inline Floats ln(Floats value) {
    const Words bits = (Words)value, lowest = Words{} + 0x3f3504f3;  // sqrt(1/2)
    const Ints exponent = (Ints)(bits - lowest) >> 23;
    const Floats m = (Floats)(bits - ((Words)exponent << 23));
    const Floats t = (m - 1) / (m + 1), squared = t * t;
    const Floats series = 1 + squared * (1 / 3.0f + squared * (1 / 5.0f + squared * (1 / 7.0f + squared * (1 / 9.0f))));
    return 2 * t * series + __builtin_convertvector(exponent, Floats) * 0.69314718f;
}

// e^value = 2^whole e^rest with |rest| <= ln(2) / 2, and a power series for e^rest.
inline Floats exp(Floats value) {
    const Floats bounded = value < -87.0f ? broadcast(-87.0f) : (value > 88.0f ? broadcast(88.0f) : value);
    const Floats shifted = bounded * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
    const Floats whole = shifted - 12582912.0f, rest = bounded - whole * 0.693145752f - whole * 1.42860677e-6f;
    Floats series = broadcast(1 / 5040.0f);
    for (const float factor : {1 / 720.0f, 1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f})
        series = series * rest + factor;
    return (Floats)((Words)series + ((Words)shifted << 23));
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
