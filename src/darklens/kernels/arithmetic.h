// Arithmetic on a register of float32, for any processor: 16 lanes with AVX-512, else 8.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
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

inline Floats root(Floats value) {
    for (int64_t i = 0; i < LANES; ++i) value[i] = std::sqrt(value[i]);
    return value;
}

// ln(1 + value), with the rounding of the sum restored.
inline Floats ln_one_plus(Floats value) {
    const Floats sum = 1 + value;
    return ln(sum) + (value - (sum - 1)) / sum;
}

// The arctangent of numbers from 0 to 1: the angle is halved twice, then a power series.
inline Floats arctangent(Floats value) {
    value /= 1 + root(1 + value * value);
    value /= 1 + root(1 + value * value);
    const Floats squared = value * value;
    return 4 * value * (1 - squared * (1 / 3.0f - squared * (1 / 5.0f - squared * (1 / 7.0f - squared * (1 / 9.0f)))));
}
