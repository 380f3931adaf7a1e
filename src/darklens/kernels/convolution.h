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
constexpr int64_t CACHED = 1 << 18;        // values of bfloat16 in a quarter of a core's second cache

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
    Range(int64_t first, int64_t last) : first(first), last(last) {}
    Range(int64_t things, int64_t i, int64_t n) : first(things * i / n), last(things * (i + 1) / n) {}
    int64_t first, last;
};

// Weights (outputs, 3, 3, inputs), as tiles of a block of outputs: 16 pairs of inputs by 16 outputs, twice for a tap.
struct Forward {
    void operator()(int64_t block, int64_t tap, int64_t depth, BFloat16* to) const {
        const float* from = weights + (block * BLOCK * TAPS + tap) * inputs + depth;
        for (int64_t half = 0; half < 2; ++half, to += OPERAND) {
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
    void operator()(int64_t block, int64_t tap, int64_t depth, BFloat16* to) const {
        const float* from = weights + (depth * TAPS + TAPS - 1 - tap) * inputs + block * BLOCK;
#pragma GCC unroll 4
        for (int64_t k = 0; k < TILE; ++k, from += 2 * TAPS * inputs) {
            const float* next = from + TAPS * inputs;
            const Pairs pairs(rounded(from, from + TILE), rounded(next, next + TILE));
            _mm512_store_si512(to + k * DEPTH, pairs.first);
            _mm512_store_si512(to + OPERAND + k * DEPTH, pairs.last);
        }
    }

    const float* weights;
    const int64_t inputs;
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
          block_size(TAPS * shape.channels * BLOCK),
          rows_at_once(std::min(height, std::max<int64_t>(2 * CACHED / (seen_width * pixel) - KERNEL + 1, 1))) {}

    void operator()(const BFloat16* x, BFloat16* y) const {
        const int64_t blocks = outputs / BLOCK, rows = groups.number * height;
        // Of the weights and the images, the larger are read by one thread alone.
        const bool by_block = TAPS * outputs > shape.images * shape.height * shape.width && blocks >= shape.threads;
        const int64_t seen_size = (rows_at_once + KERNEL - 1) * seen_width * pixel;
        const int64_t blocks_at_once = std::clamp<int64_t>(CACHED / block_size, 1, blocks);
        const int64_t memory_size = seen_size + blocks_at_once * block_size;
        Aligned<BFloat16> memory(shape.threads * memory_size);
#pragma omp parallel for num_threads(shape.threads) schedule(static)
        for (int64_t thread = 0; thread < shape.threads; ++thread) {
            const Tiles tiles(groups.size);
            BFloat16* seen = memory.get() + thread * memory_size;
            BFloat16* packed = seen + seen_size;
            const Range its_blocks(blocks, by_block ? thread : 0, by_block ? shape.threads : 1);
            const Range its_rows(rows, by_block ? 0 : thread, by_block ? 1 : shape.threads);
            const bool once = its_rows.last - its_rows.first <= rows_at_once && groups.number == 1;
            clear_margins(seen);
            for (int64_t block = its_blocks.first, next_block; block < its_blocks.last; block = next_block) {
                next_block = std::min(block + blocks_at_once, its_blocks.last);
                for (int64_t i = block; i < next_block; ++i) pack(i, packed + (i - block) * block_size);
                for (int64_t row = its_rows.first, next; row < its_rows.last; row = next) {
                    const int64_t group = row / height, first = row % height;
                    next = std::min({row + rows_at_once, (group + 1) * height, its_rows.last});
                    if (!once || block == its_blocks.first) copy(x, group, first, first + next - row, seen);
                    written(memory.get());
                    for (int64_t i = first; i < first + next - row; ++i)
                        make_row(group, i, seen + (i - first) * seen_width * pixel, {block, next_block}, packed, y);
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
        const int64_t depths = shape.channels / DEPTH, tile = groups.size * DEPTH;
        const int64_t step = shape.height * shape.width * shape.channels;
        for (int64_t row = top; row < bottom; ++row)
            for (int64_t column = 0; column < shape.width; ++column) {
                const int64_t at = (groups.first(group) * shape.height + row) * shape.width + column;
                BFloat16* to = seen + ((row + padding - first) * seen_width + padding + column) * pixel;
                for (int64_t image = 0; image < groups.in(group); ++image) {
                    const BFloat16* from = x + at * shape.channels + image * step;
                    for (int64_t i = 0; i < depths; ++i)
                        _mm512_store_si512(to + i * tile + image * DEPTH, _mm512_loadu_si512(from + i * DEPTH));
                }
            }
    }

    // The tiles of a block, [row of taps][depth][tap].
    void pack(int64_t block, BFloat16* to) const {
        for (int64_t k = 0; k < KERNEL; ++k)
            for (int64_t depth = 0; depth < shape.channels; depth += DEPTH)
                for (int64_t tap = k * KERNEL; tap < (k + 1) * KERNEL; ++tap, to += 2 * OPERAND)
                    weights(block, tap, depth, to);
    }

    void make_row(
        int64_t group, int64_t row, const BFloat16* seen, const Range& blocks, const BFloat16* packed, BFloat16* y
    ) const {
        const int64_t at = (groups.first(group) * height + row) * width, images = groups.in(group);
        const int64_t top = std::max<int64_t>(padding - row, 0);
        const int64_t bottom = std::min<int64_t>(shape.height + padding - row, KERNEL);
        for (int64_t column = 0, next; column < width; column = next) {
            const int64_t left = width - column;
            next = column + (left == 3 || left > 4 ? 3 : std::min<int64_t>(left, 2));
            for (int64_t block = blocks.first; block < blocks.last; ++block) {
                const BFloat16* by = packed + (block - blocks.first) * block_size;
                BFloat16* to = y + (at + column) * outputs + block * BLOCK;
                if (next == column + 3) make<3>(seen + column * pixel, by, top, bottom, images, to);
                if (next == column + 2) make<2>(seen + column * pixel, by, top, bottom, images, to);
                if (next == column + 1) make<1>(seen + column * pixel, by, top, bottom, images, to);
            }
        }
    }

    // Makes 32 channels of some pixels next to each other.
    template <int PIXELS>
    void make(
        const BFloat16* seen, const BFloat16* by, int64_t top, int64_t bottom, int64_t images, BFloat16* to
    ) const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
        by += top * KERNEL * shape.channels * BLOCK;
        for (int64_t k = top; k < bottom; ++k)
            for (int64_t depth = 0; depth < pixel; depth += groups.size * DEPTH) {
                const BFloat16* here = seen + k * seen_width * pixel + depth;
#pragma GCC unroll 3
                for (int64_t tap = 0; tap < KERNEL; ++tap, here += pixel, by += 2 * OPERAND) {
                    _tile_loadd(7, by, ROW_BYTES);
                    _tile_loadd(6, here, ROW_BYTES);
                    _tile_dpbf16ps(0, 6, 7);
                    if (PIXELS > 1) {
                        _tile_loadd(6, here + pixel, ROW_BYTES);
                        _tile_dpbf16ps(1, 6, 7);
                    }
                    if (PIXELS > 2) {
                        _tile_loadd(6, here + 2 * pixel, ROW_BYTES);
                        _tile_dpbf16ps(2, 6, 7);
                    }
                    _tile_loadd(7, by + OPERAND, ROW_BYTES);
                    if (PIXELS > 2) {
                        _tile_dpbf16ps(5, 6, 7);
                        _tile_loadd(6, here + pixel, ROW_BYTES);
                    }
                    if (PIXELS > 1) {
                        _tile_dpbf16ps(4, 6, 7);
                        _tile_loadd(6, here, ROW_BYTES);
                    }
                    _tile_dpbf16ps(3, 6, 7);
                }
            }
        alignas(64) float sums[2][3][TILE][TILE];
        _tile_stored(0, sums[0][0], ROW_BYTES);
        _tile_stored(3, sums[1][0], ROW_BYTES);
        if (PIXELS > 1) {
            _tile_stored(1, sums[0][1], ROW_BYTES);
            _tile_stored(4, sums[1][1], ROW_BYTES);
        }
        if (PIXELS > 2) {
            _tile_stored(2, sums[0][2], ROW_BYTES);
            _tile_stored(5, sums[1][2], ROW_BYTES);
        }
        for (int64_t i = 0; i < images; ++i, to += height * width * outputs)
#pragma GCC unroll 3
            for (int64_t p = 0; p < PIXELS; ++p)
                _mm512_storeu_si512(to + p * outputs, rounded(sums[0][p][i], sums[1][p][i]));
    }

    const Shape& shape;
    const int64_t padding, outputs;
    const Weights& weights;
    const Groups groups;
    const int64_t height, width, seen_width, pixel, block_size, rows_at_once;
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
        const int64_t row_size = steps * DEPTH * BLOCK, seen_row = seen_width * TILE * inputs;
        const int64_t fitting = (3 * CACHED - (KERNEL - 1) * seen_row) / (row_size + seen_row);
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
                    for (int64_t block = its_blocks.first; block < its_blocks.last; ++block) {
                        turn(gradient, group, first, last, block, turned);
                        written(memory.get());
                        for (int64_t k = 0; k < KERNEL; ++k)
                            for (int64_t c = 0; c < inputs; c += TILE)
                                add(turned, seen + c * seen_size / inputs, first, last, k, row != its_rows.first,
                                    to + (block * BLOCK * TAPS + k * KERNEL) * inputs + c);
                    }
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

    // Rows of a block of the gradient, [row][two columns][half of the block][channel][column, image].
    void turn(
        const BFloat16* gradient, int64_t group, int64_t first, int64_t last, int64_t block, BFloat16* turned
    ) const {
        const int64_t images = groups.in(group), step = height * width * outputs;
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
