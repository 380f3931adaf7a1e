// A linear layer of many weights for few images, by the matrix unit.
//
// Each weight meets a few dozen images only, so that a step is as fast as memory brings the weights: they are read once
// forward and once for the images' gradient, and theirs is written once, without copies in another type.
#pragma once

#include <algorithm>
#include <cstring>

#include "tiles.h"

#ifdef TILES

// Tiles have their numbers in the instructions.
#define MULTIPLY(GROUP)                                       \
    if (groups > GROUP) {                                     \
        _tile_loadd(5, its + GROUP * OPERAND, ROW_BYTES);     \
        _tile_dpbf16ps(GROUP, 4, 5);                          \
    }
#define KEEP(GROUP)                                           \
    if (groups > GROUP) {                                     \
        _tile_stored(GROUP, sums, ROW_BYTES);                 \
        written(sums);                                        \
        keep(GROUP, o, sums, y);                              \
    }

// x (images, inputs), weights (outputs, inputs). Images fill at most 4 tiles; inputs and outputs are multiples of 32.
class Linear {
public:
    Linear(int64_t images, int64_t inputs, int64_t outputs, int64_t threads)
        : images(images), inputs(inputs), outputs(outputs), threads(threads), groups((images + TILE - 1) / TILE) {}

    // y = x w^T.
    void forward(const BFloat16* x, const float* w, float* y) const {
        const Aligned<BFloat16> turned(inputs * groups * TILE);  // pairs of inputs by images
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t k = 0; k < inputs; k += DEPTH)
                for (int64_t group = 0; group < groups; ++group) {
                    __m512i rows[TILE];
                    for (int64_t i = 0; i < TILE; ++i) {
                        const int64_t image = group * TILE + i;
                        rows[i] = image < images ? _mm512_loadu_si512(x + image * inputs + k) : __m512i{};
                    }
                    transpose(rows);
                    for (int64_t i = 0; i < TILE; ++i)
                        _mm512_store_si512(turned.get() + (k * groups + group * DEPTH) * TILE + i * DEPTH, rows[i]);
                }
            const Tiles tiles;
            alignas(64) BFloat16 rounded_weights[OPERAND];
            alignas(64) float sums[TILE * TILE];
#pragma omp for schedule(static)
            for (int64_t o = 0; o < outputs; o += TILE) {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
                for (int64_t k = 0; k < inputs; k += DEPTH) {
                    for (int64_t i = 0; i < TILE; ++i) {
                        const float* from = w + (o + i) * inputs + k;
                        _mm512_store_si512(rounded_weights + i * DEPTH, rounded(from, DEPTH));
                        _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD), _MM_HINT_T0);
                        _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD + TILE), _MM_HINT_T0);
                    }
                    written(rounded_weights);
                    _tile_loadd(4, rounded_weights, ROW_BYTES);
                    const BFloat16* its = turned.get() + k * groups * TILE;
                    MULTIPLY(0)
                    MULTIPLY(1)
                    MULTIPLY(2)
                    MULTIPLY(3)
                }
                KEEP(0)
                KEEP(1)
                KEEP(2)
                KEEP(3)
            }
        }
    }

    // d_x = gradient w.
    void backward_images(const BFloat16* gradient, const float* w, float* d_x) const {
        const Aligned<BFloat16> padded(groups * TILE * outputs);
        std::memset(static_cast<void*>(padded.get()), 0, groups * TILE * outputs * sizeof(BFloat16));
        std::memcpy(static_cast<void*>(padded.get()), gradient, images * outputs * sizeof(BFloat16));
#pragma omp parallel num_threads(threads)
        {
            const Tiles tiles;
            const Aligned<float> sums(groups * TILE * CHUNK);
            alignas(64) BFloat16 pairs[OPERAND];
#pragma omp for schedule(static)
            for (int64_t start = 0; start < inputs; start += CHUNK) {
                const int64_t wide = std::min(CHUNK, inputs - start);
                std::fill(sums.get(), sums.get() + groups * TILE * CHUNK, 0.0f);
                for (int64_t o = 0; o < outputs; o += DEPTH)
                    for (int64_t k = 0; k < wide; k += TILE) {
                        for (int64_t i = 0; i < TILE; ++i) {
                            const float* from = w + (o + 2 * i) * inputs + start + k;
                            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + inputs),
                                                                              _mm512_loadu_ps(from));
                            _mm512_store_si512(pairs + i * DEPTH, _mm512_permutexvar_epi16(in_turn(), both));
                        }
                        written(pairs);
                        _tile_loadd(4, pairs, ROW_BYTES);
                        for (int64_t group = 0; group < groups; ++group) {
                            float* to = sums.get() + group * TILE * CHUNK + k;
                            _tile_loadd(0, to, CHUNK * sizeof(float));
                            _tile_loadd(5, padded.get() + group * TILE * outputs + o, outputs * sizeof(BFloat16));
                            _tile_dpbf16ps(0, 5, 4);
                            _tile_stored(0, to, CHUNK * sizeof(float));
                            written(to);
                        }
                    }
                for (int64_t image = 0; image < images; ++image)
                    std::copy_n(sums.get() + image * CHUNK, wide, d_x + image * inputs + start);
            }
        }
    }

    // d_w = gradient^T x.
    void backward_weight(const BFloat16* gradient, const BFloat16* x, float* d_w) const {
        const int64_t depths = (images + DEPTH - 1) / DEPTH;
        const Aligned<BFloat16> turned(outputs * depths * DEPTH);  // (outputs, images)
        for (int64_t o = 0; o < outputs; ++o)
            for (int64_t image = 0; image < depths * DEPTH; ++image)
                turned.get()[o * depths * DEPTH + image] =
                    image < images ? gradient[image * outputs + o] : BFloat16{0};
#pragma omp parallel num_threads(threads)
        {
            const Tiles tiles;
            const Aligned<BFloat16> pairs(2 * depths * OPERAND);
            alignas(64) float sums[2][TILE * TILE];
#pragma omp for schedule(static)
            for (int64_t k = 0; k < inputs; k += DEPTH) {
                for (int64_t i = 0; i < depths * TILE; ++i) {
                    const Pairs its(row(x, 2 * i, k), row(x, 2 * i + 1, k));
                    const int64_t at = i / TILE * 2 * OPERAND + i % TILE * DEPTH;
                    _mm512_store_si512(pairs.get() + at, its.first);
                    _mm512_store_si512(pairs.get() + at + OPERAND, its.last);
                }
                written(pairs.get());
                for (int64_t o = 0; o < outputs; o += TILE) {
                    _tile_zero(0);
                    _tile_zero(1);
                    for (int64_t depth = 0; depth < depths; ++depth) {
                        const BFloat16* its = turned.get() + (o * depths + depth) * DEPTH;
                        _tile_loadd(4, its, depths * DEPTH * sizeof(BFloat16));
                        _tile_loadd(5, pairs.get() + 2 * depth * OPERAND, ROW_BYTES);
                        _tile_loadd(6, pairs.get() + (2 * depth + 1) * OPERAND, ROW_BYTES);
                        _tile_dpbf16ps(0, 4, 5);
                        _tile_dpbf16ps(1, 4, 6);
                    }
                    _tile_stored(0, sums[0], ROW_BYTES);
                    _tile_stored(1, sums[1], ROW_BYTES);
                    written(sums);
                    for (int64_t i = 0; i < TILE; ++i) {  // past the cache: nothing reads them soon
                        float* to = d_w + (o + i) * inputs + k;
                        _mm512_stream_ps(to, _mm512_load_ps(sums[0] + i * TILE));
                        _mm512_stream_ps(to + TILE, _mm512_load_ps(sums[1] + i * TILE));
                    }
                }
            }
            _mm_sfence();
        }
    }

private:
    static constexpr int64_t AHEAD = 4 * DEPTH;  // of the weights of a row, fetched before they are used
    static constexpr int64_t CHUNK = 512;        // inputs whose sums stay in the first caches

    static __m512i in_turn() {
        const __m512i even = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        return _mm512_or_si512(even, _mm512_slli_epi32(_mm512_add_epi32(even, _mm512_set1_epi32(TILE)), 16));
    }

    __m512i row(const BFloat16* x, int64_t image, int64_t k) const {
        return image < images ? _mm512_loadu_si512(x + image * inputs + k) : __m512i{};
    }

    void keep(int64_t group, int64_t o, const float* sums, float* y) const {
        for (int64_t image = group * TILE; image < std::min((group + 1) * TILE, images); ++image)
            for (int64_t i = 0; i < TILE; ++i) y[image * outputs + o + i] = sums[i * TILE + image % TILE];
    }

    const int64_t images, inputs, outputs, threads, groups;
};

#undef MULTIPLY
#undef KEEP

#endif
