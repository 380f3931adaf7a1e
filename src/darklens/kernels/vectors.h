// As many floats at a time as a register holds: 16 with AVX-512, 8 with AVX2.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

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
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

struct BFloat16 { uint16_t bits; };

// Whole numbers to wider and narrower ones: what g++ makes of __builtin_convertvector goes element by element.
#if defined __AVX512F__
inline Words widen(Halves values) { return (Words)_mm512_cvtepu16_epi32((__m256i)values); }
inline Words widen(Bytes values) { return (Words)_mm512_cvtepu8_epi32((__m128i)values); }
inline Halves halves(Words values) { return (Halves)_mm512_cvtepi32_epi16((__m512i)values); }
inline Bytes bytes(Words values) { return (Bytes)_mm512_cvtepi32_epi8((__m512i)values); }
#else
inline Words widen(Halves values) { return (Words)_mm256_cvtepu16_epi32((__m128i)values); }
inline Words widen(Bytes values) { return (Words)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)values)); }
inline Halves halves(Words values) {
    const __m256i of_both_halves = _mm256_packus_epi32((__m256i)values, (__m256i)values);
    return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(of_both_halves, 0x08));
}
inline Bytes bytes(Words values) {
    const __m128i narrow = (__m128i)halves(values);
    return (Bytes)_mm_cvtsi128_si64(_mm_packus_epi16(narrow, narrow));
}
#endif

inline Floats load(const float* from) {
    Floats values;
    std::memcpy(&values, from, sizeof values);
    return values;
}

inline void store(float* to, Floats values) { std::memcpy(to, &values, sizeof values); }

// bfloat16 is the upper half of a float.
inline Floats load(const BFloat16* from) {
    Halves values;
    std::memcpy(&values, from, sizeof values);
    return (Floats)(widen(values) << 16);
}

// To the nearest, ties to even, as torch rounds; what is no number must not be rounded to one.
inline void store(BFloat16* to, Floats values) {
    const Words bits = (Words)values;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Halves upper = halves(values == values ? rounded : Words{} + 0x7fc0);
    std::memcpy(to, &upper, sizeof upper);
}

inline Ints load(const uint8_t* from) {
    Bytes values;
    std::memcpy(&values, from, sizeof values);
    return (Ints)widen(values);
}

inline void store(uint8_t* to, Ints values) {
    const Bytes narrow = bytes((Words)values);
    std::memcpy(to, &narrow, sizeof narrow);
}

inline Floats all(float value) { return Floats{} + value; }
inline Ints all(int32_t value) { return Ints{} + value; }

// What is no number stays so, as in torch.
inline Floats relu(Floats value) { return value < 0 ? Floats{} : value; }

inline void add(double* to, Floats values) {
    for (int64_t i = 0; i < LANES; ++i) to[i] += double(values[i]);
}
