// Convolutions of 3 x 3 pixels with stride 1 by the matrix unit.
//
// The rows of a tile are the same pixel of up to 16 images. So what a tap of the convolution sees is a tile of the next
// pixel, there is none where it sees only padding, and no pixel is made in vain, however small the images are.
#pragma once

#include <algorithm>

#include "tiles.h"
#include "unfold.h"

#ifdef TILES

constexpr int64_t KERNEL = 3, TAPS = KERNEL * KERNEL;
constexpr int64_t BLOCK = 2 * TILE;        // channels that are made together
constexpr int64_t CACHED = 1 << 19;        // values of bfloat16 that half of a core's second cache takes

// Images that share tiles.
class Groups {
public:
    explicit Groups(int64_t images)
        : images(images), number((images + TILE - 1) / TILE), size((images + number - 1) / number) {}

    int64_t first(int64_t group) const { return group * size; }
    int64_t in(int64_t group) const { return std::min(size, images - first(group)); }

    const int64_t images, number, size;
};

// Part i of n of so many things.
struct Range {
    Range(int64_t things, int64_t i, int64_t n) : first(things * i / n), last(things * (i + 1) / n) {}
    int64_t first, last;
};

// Weights (outputs, 3, 3, inputs), as the tiles of a block of outputs: [tap][depth][2][pairs of inputs][16 outputs].
struct Forward {
    void operator()(int64_t block, BFloat16* to) const {
        for (int64_t tap = 0; tap < TAPS; ++tap)
            for (int64_t c = 0; c < inputs; c += DEPTH)
                for (int64_t half = 0; half < 2; ++half, to += OPERAND) {
                    const float* from = weights + ((block * BLOCK + half * TILE) * TAPS + tap) * inputs + c;
                    __m512i rows[TILE];
#pragma GCC unroll 16
                    for (int64_t o = 0; o < TILE; ++o, from += TAPS * inputs) rows[o] = rounded(from, from + TILE);
                    transpose(rows);
#pragma GCC unroll 16
                    for (int64_t k = 0; k < TILE; ++k) _mm512_store_si512(to + k * DEPTH, rows[k]);
                }
    }

    const float* weights;
    const int64_t inputs;
};

// The same of the convolution that makes the gradient of the inputs from that of the outputs.
struct Backwards {
    void operator()(int64_t block, BFloat16* to) const {
        for (int64_t tap = TAPS - 1; tap >= 0; --tap)
            for (int64_t o = 0; o < outputs; o += DEPTH, to += 2 * OPERAND) {
                const float* from = weights + (o * TAPS + tap) * inputs + block * BLOCK;
#pragma GCC unroll 4
                for (int64_t k = 0; k < TILE; ++k, from += 2 * TAPS * inputs) {
                    const float* next = from + TAPS * inputs;
                    const Pairs pairs(rounded(from, from + TILE), rounded(next, next + TILE));
                    _mm512_store_si512(to + k * DEPTH, pairs.first);
                    _mm512_store_si512(to + OPERAND + k * DEPTH, pairs.last);
                }
            }
    }

    const float* weights;
    const int64_t inputs, outputs;
};

// Makes maps of `outputs` channels from x. Each thread reads what it needs into its own cache, in the order of tiles.
template <typename Weights>
class Convolved {
public:
    Convolved(const Shape& shape, int64_t padding, int64_t outputs, const Weights& weights)
        : shape(shape),
          padding(padding),
          outputs(outputs),
          weights(weights),
          groups(shape.images),
          height(shape.height + 2 * padding - KERNEL + 1),
          width(shape.width + 2 * padding - KERNEL + 1),
          seen_width(shape.width + 2 * padding),
          pixel(groups.size * shape.channels),
          rows_at_once(std::min(height, std::max<int64_t>(CACHED / (seen_width * pixel) - KERNEL + 1, 1))) {}

    void operator()(const BFloat16* x, BFloat16* y) const {
        const int64_t blocks = outputs / BLOCK, rows = groups.number * height;
        // Of the weights and the images, the larger are read by one thread alone.
        const bool by_block = TAPS * outputs > shape.images * shape.height * shape.width && blocks >= shape.threads;
        const bool keeps = !by_block || rows > rows_at_once;  // a block's weights for other rows
        const int64_t seen_size = (rows_at_once + KERNEL - 1) * seen_width * pixel;
        const int64_t block_size = TAPS * shape.channels * BLOCK;
        const int64_t weights_size = keeps ? block_size * blocks : block_size;
        Aligned<BFloat16> memory(shape.threads * (seen_size + weights_size));
#pragma omp parallel for num_threads(shape.threads) schedule(static)
        for (int64_t thread = 0; thread < shape.threads; ++thread) {
            const Tiles tiles(groups.size);
            BFloat16* seen = memory.get() + thread * (seen_size + weights_size);
            BFloat16* packed = seen + seen_size;
            const Range its_blocks(blocks, by_block ? thread : 0, by_block ? shape.threads : 1);
            const Range its_rows(rows, by_block ? 0 : thread, by_block ? 1 : shape.threads);
            clear_margins(seen);
            for (int64_t row = its_rows.first, next; row < its_rows.last; row = next) {
                const int64_t group = row / height, first = row % height;
                next = std::min({row + rows_at_once, (group + 1) * height, its_rows.last});
                copy(x, group, first, first + next - row, seen);
                for (int64_t block = its_blocks.first; block < its_blocks.last; ++block) {
                    BFloat16* own = keeps ? packed + block * block_size : packed;
                    if (row == its_rows.first) weights(block, own);
                    written();
                    for (int64_t i = first; i < first + next - row; ++i)
                        make_row(group, i, seen + (i - first) * seen_width * pixel, own, block,  y);
                }
            }
        }
    }

private:
    // The columns of zeros on both sides.
    void clear_margins(BFloat16* seen) const {
        for (int64_t row = 0; row < rows_at_once + KERNEL - 1; ++row) {
            BFloat16* left = seen + row * seen_width * pixel;
            BFloat16* right = left + seen_width * pixel;
            std::fill(left, left + padding * pixel, BFloat16{});
            std::fill(right - padding * pixel, right, BFloat16{});
        }
    }

    // The rows that a tap sees, [row][column][depth][image][32 channels]; the padding above and below is left out.
    void copy(const BFloat16* x, int64_t group, int64_t first, int64_t last, BFloat16* seen) const {
        const int64_t top = std::max<int64_t>(first - padding, 0);
        const int64_t bottom = std::min(last - padding + KERNEL - 1, shape.height);
        for (int64_t row = top; row < bottom; ++row)
            for (int64_t image = 0; image < groups.in(group); ++image) {
                const int64_t at = ((groups.first(group) + image) * shape.height + row) * shape.width;
                const BFloat16* from = x + at * shape.channels;
                BFloat16* to = seen + ((row + padding - first) * seen_width + padding) * pixel + image * DEPTH;
                for (int64_t i = 0; i < shape.width * shape.channels / DEPTH; ++i)
                    _mm512_store_si512(to + i * groups.size * DEPTH, _mm512_loadu_si512(from + i * DEPTH));
            }
    }

    void make_row(
        int64_t group, int64_t row, const BFloat16* seen, const BFloat16* packed, int64_t block, BFloat16* y
    ) const {
        const int64_t at = (groups.first(group) * height + row) * width;
        BFloat16* to = y + at * outputs + block * BLOCK;
        const int64_t top = std::max<int64_t>(padding - row, 0);
        const int64_t bottom = std::min<int64_t>(shape.height + padding - row, KERNEL);
        int64_t column = 0;
        for (; column + 1 < width; column += 2)
            make<2>(seen + column * pixel, packed, top, bottom, groups.in(group), to + column * outputs);
        if (column < width)
            make<1>(seen + column * pixel, packed, top, bottom, groups.in(group), to + column * outputs);
    }

    template <int PIXELS>
    void make(
        const BFloat16* seen, const BFloat16* packed, int64_t top, int64_t bottom, int64_t images, BFloat16* to
    ) const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        const int64_t tile = groups.size * DEPTH;
        for (int64_t tap = top * KERNEL; tap < bottom * KERNEL; ++tap) {
            const BFloat16* here = seen + (tap / KERNEL * seen_width + tap % KERNEL) * pixel;
            const BFloat16* by = packed + tap * shape.channels * BLOCK;
            for (const BFloat16* end = here + pixel; here < end; here += tile, by += 2 * OPERAND) {
                _tile_loadd(4, here, ROW_BYTES);
                _tile_loadd(6, by, ROW_BYTES);
                _tile_loadd(7, by + OPERAND, ROW_BYTES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (PIXELS == 1) continue;
                _tile_loadd(5, here + pixel, ROW_BYTES);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
        alignas(64) float sums[4][TILE][TILE];
        _tile_stored(0, sums[0], ROW_BYTES);
        _tile_stored(1, sums[1], ROW_BYTES);
        if (PIXELS == 2) {
            _tile_stored(2, sums[2], ROW_BYTES);
            _tile_stored(3, sums[3], ROW_BYTES);
        }
        for (int64_t i = 0; i < images; ++i, to += height * width * outputs)
#pragma GCC unroll 2
            for (int64_t p = 0; p < PIXELS; ++p)
                _mm512_storeu_si512(to + p * outputs, rounded(sums[2 * p][i], sums[2 * p + 1][i]));
    }

    const Shape& shape;
    const int64_t padding, outputs;
    const Weights& weights;
    const Groups groups;
    const int64_t height, width, seen_width, pixel, rows_at_once;
};

// The gradient of the weights, (outputs, 3, 3, inputs): the sum over pixels of the gradient times what a tap sees.
class WeightGradient {
public:
    WeightGradient(const Shape& shape, int64_t padding, int64_t outputs)
        : shape(shape),
          padding(padding),
          inputs(shape.channels),
          outputs(outputs),
          groups(shape.images),
          height(shape.height + 2 * padding - KERNEL + 1),
          width(shape.width + 2 * padding - KERNEL + 1),
          steps((width + 1) / 2),
          seen_width(2 * steps + KERNEL - 1) {}

    void operator()(const BFloat16* x, const BFloat16* gradient, float* d_weights) const {
        const int64_t size = outputs * TAPS * inputs, rows = groups.number * height;
        // Sums of parts of the rows, if they are few beside the values: no thread reads all values then.
        const int64_t values = shape.images * (shape.height * shape.width * inputs + height * width * outputs);
        const int64_t parts = std::min(rows, std::clamp<int64_t>(values / (8 * size), 1, 4));
        const int64_t blocks = outputs / BLOCK;
        const int64_t shares = std::min(blocks, (shape.threads + parts - 1) / parts);
        const int64_t blocks_at_once = (blocks + shares - 1) / shares;
        const int64_t row_size = steps * DEPTH * blocks_at_once * BLOCK, seen_row = seen_width * TILE * inputs;
        const int64_t fitting = (CACHED - (KERNEL - 1) * seen_row) / (row_size + seen_row);
        const int64_t rows_at_once = std::clamp<int64_t>(fitting, 1, height);
        const int64_t seen_size = (rows_at_once + KERNEL - 1) * seen_row;
        const int64_t memory_size = rows_at_once * row_size + seen_size;
        Aligned<BFloat16> memory(shape.threads * memory_size);
        Aligned<float> sums((parts - 1) * size);
#pragma omp parallel for num_threads(shape.threads) schedule(static)
        for (int64_t thread = 0; thread < shape.threads; ++thread) {
            const Tiles tiles;
            BFloat16* turned = memory.get() + thread * memory_size;
            BFloat16* seen = turned + rows_at_once * row_size;
            std::fill(seen, seen + seen_size, BFloat16{});
            const Range tasks(parts * shares, thread, shape.threads);
            for (int64_t task = tasks.first; task < tasks.last; ++task) {
                const int64_t part = task / shares;
                const Range its_rows(rows, part, parts), its_blocks(blocks, task % shares, shares);
                float* to = part == 0 ? d_weights : sums.get() + (part - 1) * size;
                for (int64_t row = its_rows.first, next; row < its_rows.last; row = next) {
                    const int64_t group = row / height, first = row % height;
                    next = std::min({row + rows_at_once, (group + 1) * height, its_rows.last});
                    const int64_t last = first + next - row;
                    copy(x, group, first, last, seen, seen_size);
                    turn(gradient, group, first, last, its_blocks, turned);
                    written();
                    for (int64_t block = its_blocks.first; block < its_blocks.last; ++block)
                        for (int64_t c = 0; c < inputs; c += TILE)
                            for (int64_t k = 0; k < KERNEL; ++k)
                                add(turned + (block - its_blocks.first) * (last - first) * steps * DEPTH * BLOCK,
                                    seen + c * seen_size / inputs, first, last, k, row != its_rows.first,
                                    to + (block * BLOCK * TAPS + k * KERNEL) * inputs + c);
                }
            }
        }
        if (parts == 1) return;
#pragma omp parallel for num_threads(shape.threads) schedule(static)
        for (int64_t at = 0; at < size; at += TILE) {
            Floats sum = load(d_weights + at);
            for (int64_t part = 1; part < parts; ++part) sum += load(sums.get() + (part - 1) * size + at);
            store(d_weights + at, sum);
        }
    }

private:
    static __m512i line(const BFloat16* from, int64_t image, int64_t images, int64_t step) {
        return image < images ? _mm512_loadu_si512(from + image * step) : _mm512_setzero_si512();
    }

    // Rows of x, [16 channels][row][column][pairs of images][channel]. Columns of the padding are 0 already.
    void copy(
        const BFloat16* x, int64_t group, int64_t first, int64_t last, BFloat16* seen, int64_t seen_size
    ) const {
        const int64_t top = std::max<int64_t>(first - padding, 0);
        const int64_t bottom = std::min(last - padding + KERNEL - 1, shape.height);
        const int64_t images = groups.in(group), step = shape.height * shape.width * inputs;
        const int64_t by_channels = seen_size / (inputs / TILE);
        for (int64_t row = top; row < bottom; ++row)
            for (int64_t column = 0; column < shape.width; ++column) {
                const int64_t at = (groups.first(group) * shape.height + row) * shape.width + column;
                BFloat16* to = seen + ((row + padding - first) * seen_width + padding + column) * TILE * TILE;
                for (int64_t c = 0; c < inputs; c += DEPTH, to += 2 * by_channels)
#pragma GCC unroll 8
                    for (int64_t i = 0; i < TILE; i += 2) {
                        const BFloat16* from = x + at * inputs + c;
                        const Pairs pairs(line(from, i, images, step), line(from, i + 1, images, step));
                        _mm512_store_si512(to + i * TILE, pairs.first);
                        _mm512_store_si512(to + by_channels + i * TILE, pairs.last);
                    }
            }
    }

    // Rows of the gradient, [block][row][two columns][half of the block][channel][column, image].
    void turn(
        const BFloat16* gradient, int64_t group, int64_t first, int64_t last, const Range& blocks, BFloat16* turned
    ) const {
        const int64_t images = groups.in(group), step = height * width * outputs;
        for (int64_t block = blocks.first; block < blocks.last; ++block)
            for (int64_t row = first; row < last; ++row)
                for (int64_t column = 0; column < width; column += 2, turned += 2 * OPERAND) {
                    const int64_t at = (groups.first(group) * height + row) * width + column;
                    const BFloat16* from = gradient + at * outputs + block * BLOCK;
                    __m512i low[TILE], high[TILE];
#pragma GCC unroll 16
                    for (int64_t i = 0; i < TILE; ++i) {
                        const int64_t image = 2 * i % TILE, right = 2 * i / TILE;
                        const int64_t there = column + right < width ? images : 0;
                        const BFloat16* its = from + right * outputs;
                        const Pairs pairs(line(its, image, there, step), line(its, image + 1, there, step));
                        low[i] = pairs.first;
                        high[i] = pairs.last;
                    }
                    transpose(low);
                    transpose(high);
#pragma GCC unroll 16
                    for (int64_t i = 0; i < TILE; ++i) {
                        _mm512_store_si512(turned + i * DEPTH, low[i]);
                        _mm512_store_si512(turned + OPERAND + i * DEPTH, high[i]);
                    }
                }
    }

    // Adds the rows' share of 32 x 16 weights at the three taps of row k.
    void add(
        const BFloat16* turned, const BFloat16* seen, int64_t first, int64_t last, int64_t k, bool more, float* to
    ) const {
        const int64_t stride = TAPS * inputs * sizeof(float), lower = TILE * TAPS * inputs;
        if (more) {
            _tile_loadd(0, to, stride);
            _tile_loadd(1, to + inputs, stride);
            _tile_loadd(2, to + 2 * inputs, stride);
            _tile_loadd(3, to + lower, stride);
            _tile_loadd(4, to + lower + inputs, stride);
            _tile_loadd(5, to + lower + 2 * inputs, stride);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            _tile_zero(4);
            _tile_zero(5);
        }
        const int64_t top = std::max(first, padding - k), bottom = std::min(last, shape.height + padding - k);
        for (int64_t row = top; row < bottom; ++row) {
            const BFloat16* by = turned + (row - first) * steps * 2 * OPERAND;
            const BFloat16* here = seen + (row - first + k) * seen_width * TILE * TILE;
            for (int64_t i = 0; i < steps; ++i, by += 2 * OPERAND, here += OPERAND) {
                _tile_loadd(6, by, ROW_BYTES);
                _tile_loadd(7, here, ROW_BYTES);
                _tile_dpbf16ps(0, 6, 7);
                _tile_loadd(7, here + TILE * TILE, ROW_BYTES);
                _tile_dpbf16ps(1, 6, 7);
                _tile_loadd(7, here + 2 * TILE * TILE, ROW_BYTES);
                _tile_dpbf16ps(2, 6, 7);
                _tile_loadd(6, by + OPERAND, ROW_BYTES);
                _tile_dpbf16ps(5, 6, 7);
                _tile_loadd(7, here + TILE * TILE, ROW_BYTES);
                _tile_dpbf16ps(4, 6, 7);
                _tile_loadd(7, here, ROW_BYTES);
                _tile_dpbf16ps(3, 6, 7);
            }
        }
        _tile_stored(0, to, stride);
        _tile_stored(1, to + inputs, stride);
        _tile_stored(2, to + 2 * inputs, stride);
        _tile_stored(3, to + lower, stride);
        _tile_stored(4, to + lower + inputs, stride);
        _tile_stored(5, to + lower + 2 * inputs, stride);
    }

    const Shape& shape;
    const int64_t padding, inputs, outputs;
    const Groups groups;
    const int64_t height, width, steps, seen_width;
};

#endif
