// Tiles of the processor's matrix unit (AMX): 16 x 32 and 32 x 16 values of bfloat16 make 16 x 16 sums of float32.
#pragma once

#include "vectors.h"

#if defined __AMX_TILE__ && defined __AMX_BF16__ && defined __AVX512BW__ && defined __AVX512BF16__
#define TILES

#include <sys/syscall.h>
#include <unistd.h>

#include <new>

constexpr int64_t TILE = 16;         // a tile's rows, and the sums in one of them
constexpr int64_t DEPTH = 2 * TILE;  // the products of a sum
constexpr int64_t OPERAND = TILE * DEPTH;
constexpr int64_t ROW_BYTES = 64;

// Linux lets a process use tiles once it has asked.
inline bool tiles_allowed() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return allowed;
}

// What tiles are loaded from must be in memory: the compiler does not see that they read it.
inline void written(const void* from) { asm volatile("" ::"r"(from) : "memory"); }

// A thread's tiles, as long as it lives. PyTorch keeps the shapes it has set in the same threads, and gets them back.
class Tiles {
public:
    // All but the last have `rows`, that has all; all are as wide as can be.
    explicit Tiles(int64_t rows = TILE) {
        Shapes own = {};
        own.palette = 1;
        for (int i = 0; i < 8; ++i) {
            own.bytes[i] = ROW_BYTES;
            own.rows[i] = uint8_t(i < 7 ? rows : TILE);
        }
        written(&before);
        _tile_storeconfig(&before);
        written(&own);
        _tile_loadconfig(&own);
    }

    ~Tiles() {
        written(&before);
        _tile_loadconfig(&before);
    }

    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;

private:
    struct alignas(64) Shapes {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    };

    Shapes before;
};

// Memory on borders of cache lines, not initialised.
template <typename T>
class Aligned {
public:
    explicit Aligned(int64_t size) : values(static_cast<T*>(operator new(size * sizeof(T), ALIGNMENT))) {}
    ~Aligned() { operator delete(values, ALIGNMENT); }
    Aligned(const Aligned&) = delete;
    Aligned& operator=(const Aligned&) = delete;
    T* get() const { return values; }

private:
    static constexpr std::align_val_t ALIGNMENT{64};
    T* const values;
};

// Rounds twice 16 floats to bfloat16.
inline __m512i rounded(const float* low, const float* high) {
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(high), _mm512_load_ps(low));
}

// The first values of 32.
inline __mmask32 first_of(int64_t number) { return number < DEPTH ? (1u << number) - 1 : ~0u; }

// The next 32 values; zeros for those that are not there.
inline __m512i values(const BFloat16* from, __mmask32 there) { return _mm512_maskz_loadu_epi16(there, from); }

inline __m512i rounded(const float* from, int64_t number) {
    const __mmask32 there = first_of(number);
    const __m512 low = _mm512_maskz_loadu_ps(__mmask16(there), from);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(__mmask16(there >> TILE), from + TILE), low);
}

// Turns 16 x 16 pairs of bfloat16 about.
inline void transpose(__m512i (&rows)[TILE]) {
    __m512i other[TILE];
#pragma GCC unroll 8
    for (int i = 0; i < TILE; i += 2) {
        other[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        other[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < TILE; i += 4) {
        rows[i] = _mm512_unpacklo_epi64(other[i], other[i + 2]);
        rows[i + 1] = _mm512_unpackhi_epi64(other[i], other[i + 2]);
        rows[i + 2] = _mm512_unpacklo_epi64(other[i + 1], other[i + 3]);
        rows[i + 3] = _mm512_unpackhi_epi64(other[i + 1], other[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        other[i] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0x88);
        other[i + 4] = _mm512_shuffle_i32x4(rows[i], rows[i + 4], 0xdd);
        other[i + 8] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0x88);
        other[i + 12] = _mm512_shuffle_i32x4(rows[i + 8], rows[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        rows[i] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0x88);
        rows[i + 8] = _mm512_shuffle_i32x4(other[i], other[i + 8], 0xdd);
    }
}

// The values of two rows in turn: the first 16 columns, and the last.
struct Pairs {
    Pairs(__m512i even, __m512i odd) {
        __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37,
                                         5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
        first = _mm512_permutex2var_epi16(even, order, odd);
        last = _mm512_permutex2var_epi16(even, _mm512_add_epi16(order, _mm512_set1_epi16(TILE)), odd);
    }

    __m512i first, last;
};

#else

inline bool tiles_allowed() { return false; }

#endif
