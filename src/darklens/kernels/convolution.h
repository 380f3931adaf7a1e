// Convolutions of few pixels by the matrix unit.
//
// The rows of a tile are the same pixel of up to 16 images. So what a tap of the convolution sees is a tile of the next
// pixel, there is none where it sees only padding, and no pixel is made in vain, however small the images are.
#pragma once

#include <algorithm>

#include "tiles.h"
#include "unfold.h"

#ifdef TILES

constexpr int64_t BLOCK = 2 * TILE;  // channels that are made together
constexpr int64_t CACHED = 1 << 18;  // values of bfloat16 in a quarter of a core's second cache

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

// What one output row or column is made of along its axis: places in the input, and which of the kernel's weights.
template <int KERNEL>
struct Taps {
    void add(int64_t place, int64_t weight) { places[number] = place, weights[number++] = weight; }

    int64_t number = 0, places[KERNEL], weights[KERNEL];
};

// A convolution: weights (outputs, kernel, kernel, inputs), as tiles of a block of outputs.
template <int KERNEL>
struct Forward {
    // 16 pairs of inputs by 16 outputs, twice; of 16 channels more than 32 the other half is left out.
    void pack(int64_t block, int64_t weight, int64_t depth, BFloat16* to) const {
        const int64_t step = KERNEL * KERNEL * inputs;
        const float* from = weights + block * BLOCK * step + weight * inputs + depth;
        for (int64_t o = block * BLOCK; o < std::min((block + 1) * BLOCK, outputs); o += TILE, to += OPERAND) {
            __m512i rows[TILE];
#pragma GCC unroll 16
            for (int64_t i = 0; i < TILE; ++i, from += step) rows[i] = rounded(from, inputs - depth);
            transpose(rows);
#pragma GCC unroll 16
            for (int64_t k = 0; k < TILE; ++k) _mm512_store_si512(to + k * DEPTH, rows[k]);
        }
    }

    Taps<KERNEL> taps(int64_t at) const {
        Taps<KERNEL> taps;
        for (int64_t k = 0; k < KERNEL; ++k) taps.add(at * stride - padding + k, k);
        return taps;
    }

    int64_t steps() const { return 1; }          // between outputs made of the same weights
    int64_t in_steps() const { return stride; }  // and between their inputs

    const float* weights;
    const int64_t inputs, outputs, stride, padding;
};

// The gradient of its inputs, from that of its outputs.
template <int KERNEL>
struct Backwards {
    void pack(int64_t block, int64_t weight, int64_t depth, BFloat16* to) const {
        const int64_t step = KERNEL * KERNEL * inputs;
        const float* from = weights + depth * step + weight * inputs + block * BLOCK;
#pragma GCC unroll 4
        for (int64_t k = 0; k < TILE; ++k, from += 2 * step) {
            const int64_t left = k < (outputs - depth) / 2 ? inputs - block * BLOCK : 0;
            const Pairs pairs(rounded(from, left), rounded(from + step, left));
            _mm512_store_si512(to + k * DEPTH, pairs.first);
            _mm512_store_si512(to + OPERAND + k * DEPTH, pairs.last);
        }
    }

    Taps<KERNEL> taps(int64_t at) const {
        Taps<KERNEL> taps;
        for (int64_t k = (at + padding) % stride; k < KERNEL; k += stride)
            // May be negative, where a division would round to 0.
            taps.add((at + padding - k + KERNEL * stride) / stride - KERNEL, k);
        return taps;
    }

    int64_t steps() const { return stride; }
    int64_t in_steps() const { return 1; }

    const float* weights;
    const int64_t inputs, outputs, stride, padding;
};

// Makes maps of `outputs` channels. Each thread copies what it needs into its own cache, in the order of tiles.
template <int KERNEL, typename Rule>
class Convolved {
public:
    // The shape is that of what is read; of each axis only every so many pixels, beginning with the first.
    Convolved(
        const Shape& shape, int64_t every, int64_t height, int64_t width, int64_t outputs, const Rule& rule
    )
        : shape(shape),
          every(every),
          in_height((shape.height - 1) / every + 1),
          in_width((shape.width - 1) / every + 1),
          height(height),
          width(width),
          outputs(outputs),
          rule(rule),
          groups(shape.images),
          depths((shape.channels + DEPTH - 1) / DEPTH),
          blocks((outputs + BLOCK - 1) / BLOCK),
          pixel(groups.size * depths * DEPTH),
          row_size((in_width + 2 * MARGIN) * pixel),
          block_size(KERNEL * KERNEL * depths * DEPTH * BLOCK),
          rows_at_once(std::clamp<int64_t>((2 * CACHED / row_size - MARGIN) * rule.steps() / rule.in_steps(), 1,
                                           height)),
          rows_seen((rows_at_once - 1) * rule.in_steps() / rule.steps() + KERNEL + 1) {}

    void operator()(const BFloat16* x, BFloat16* y) const {
        const int64_t rows = groups.number * height;
        // Of weights and images, each thread reads its own part of what is more, and all of the other.
        const bool by_block =
            KERNEL * KERNEL * outputs > shape.images * in_height * in_width && blocks >= shape.threads;
        const int64_t seen_size = rows_seen * row_size;
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
            clear_margins(seen);
            int64_t copied = -1;  // the first of the rows whose inputs are there
            for (int64_t block = its_blocks.first, next_block; block < its_blocks.last; block = next_block) {
                next_block = std::min(block + blocks_at_once, its_blocks.last);
                for (int64_t i = block; i < next_block; ++i) pack(i, packed + (i - block) * block_size);
                for (int64_t row = its_rows.first, next; row < its_rows.last; row = next) {
                    const int64_t group = row / height, first = row % height;
                    next = std::min({row + rows_at_once, (group + 1) * height, its_rows.last});
                    const Range seen_rows = sees(first, first + next - row);
                    if (copied != row) copy(x, group, seen_rows, seen);
                    copied = row;
                    written(memory.get());
                    for (int64_t i = first; i < first + next - row; ++i)
                        make_row(group, i, seen, seen_rows, {block, next_block}, packed, y);
                }
            }
        }
    }

private:
    static constexpr int64_t MARGIN = KERNEL - 1;

    // The columns of zeros on both sides.
    void clear_margins(BFloat16* seen) const {
        for (int64_t row = 0; row < rows_seen; ++row) {
            std::fill(seen + row * row_size, seen + row * row_size + MARGIN * pixel, BFloat16{});
            std::fill(seen + (row + 1) * row_size - MARGIN * pixel, seen + (row + 1) * row_size, BFloat16{});
        }
    }

    // The tiles of a block's weights, [row of the kernel][depth][column].
    void pack(int64_t block, BFloat16* to) const {
        for (int64_t k = 0; k < KERNEL; ++k)
            for (int64_t depth = 0; depth < shape.channels; depth += DEPTH)
                for (int64_t weight = k * KERNEL; weight < (k + 1) * KERNEL; ++weight, to += 2 * OPERAND)
                    rule.pack(block, weight, depth, to);
    }

    // The rows of the input that some rows of the output are made of.
    Range sees(int64_t first, int64_t last) const {
        int64_t top = in_height, bottom = 0;
        for (int64_t row = first; row < last; ++row) {
            const auto taps = rule.taps(row);
            for (int64_t i = 0; i < taps.number; ++i) {
                top = std::min(top, taps.places[i]);
                bottom = std::max(bottom, taps.places[i] + 1);
            }
        }
        return {std::max<int64_t>(top, 0), std::min(bottom, in_height)};
    }

    // [row][column][depth][image][32 channels]
    void copy(const BFloat16* x, int64_t group, const Range& rows, BFloat16* seen) const {
        const int64_t tile = groups.size * DEPTH;
        const int64_t step = shape.height * shape.width * shape.channels;
        const __mmask32 last = first_of(shape.channels - (depths - 1) * DEPTH);
        for (int64_t row = rows.first; row < rows.last; ++row)
            for (int64_t column = 0; column < in_width; ++column) {
                const int64_t at = (groups.first(group) * shape.height + row * every) * shape.width + column * every;
                BFloat16* to = seen + (row - rows.first) * row_size + (MARGIN + column) * pixel;
                for (int64_t image = 0; image < groups.in(group); ++image) {
                    const BFloat16* from = x + at * shape.channels + image * step;
                    for (int64_t i = 0; i < depths; ++i)
                        _mm512_store_si512(to + i * tile + image * DEPTH,
                                           values(from + i * DEPTH, i < depths - 1 ? ~0u : last));
                }
            }
    }

    void make_row(
        int64_t group, int64_t row, const BFloat16* seen, const Range& seen_rows, const Range& blocks,
        const BFloat16* packed, BFloat16* y
    ) const {
        const int64_t at = (groups.first(group) * height + row) * width, images = groups.in(group);
        const auto all_rows = rule.taps(row);
        Taps<KERNEL> rows;  // those with values
        for (int64_t i = 0; i < all_rows.number; ++i)
            if (all_rows.places[i] >= 0 && all_rows.places[i] < in_height)
                rows.add(all_rows.places[i] - seen_rows.first, all_rows.weights[i]);
        for (int64_t start = 0; start < std::min(rule.steps(), width); ++start)
            for (int64_t column = start, next; column < width; column = next) {
                const int64_t left = (width - column - 1) / rule.steps() + 1;
                const int64_t pixels = left == 3 || left > 4 ? 3 : std::min<int64_t>(left, 2);
                next = column + pixels * rule.steps();
                const auto columns = rule.taps(column);
                for (int64_t block = blocks.first; block < blocks.last; ++block) {
                    const BFloat16* by = packed + (block - blocks.first) * block_size;
                    BFloat16* to = y + (at + column) * outputs + block * BLOCK;
                    const int64_t made = outputs - block * BLOCK;
                    if (pixels == 3) make<3>(seen, rows, columns, by, images, made, to);
                    if (pixels == 2) make<2>(seen, rows, columns, by, images, made, to);
                    if (pixels == 1) make<1>(seen, rows, columns, by, images, made, to);
                }
            }
    }

    // Makes 32 channels of some pixels of a row.
    template <int PIXELS>
    void make(
        const BFloat16* seen, const Taps<KERNEL>& rows, const Taps<KERNEL>& columns, const BFloat16* by,
        int64_t images, int64_t made, BFloat16* to
    ) const {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
        const int64_t tile = groups.size * DEPTH, aside = rule.in_steps() * pixel;
        const int64_t step = height * width * outputs, next_pixel = rule.steps() * outputs;
        int64_t fetched = 0;  // images whose lines come into the cache meanwhile
        for (int64_t row = 0; row < rows.number; ++row) {
            const BFloat16* weights = by + rows.weights[row] * KERNEL * depths * DEPTH * BLOCK;
            const BFloat16* first = seen + rows.places[row] * row_size + MARGIN * pixel;
            for (const BFloat16* end = first + pixel; first < end; first += tile, weights += KERNEL * 2 * OPERAND)
                for (int64_t column = 0; column < columns.number; ++column) {
                    const BFloat16* here = first + columns.places[column] * pixel;
                    const BFloat16* its = weights + columns.weights[column] * 2 * OPERAND;
                    if (fetched < images) {
#pragma GCC unroll 3
                        for (int64_t p = 0; p < PIXELS; ++p)
                            __builtin_prefetch(to + fetched * step + p * next_pixel, 1);
                        ++fetched;
                    }
                    _tile_loadd(7, its, ROW_BYTES);
                    _tile_loadd(6, here, ROW_BYTES);
                    _tile_dpbf16ps(0, 6, 7);
                    if (PIXELS > 1) {
                        _tile_loadd(6, here + aside, ROW_BYTES);
                        _tile_dpbf16ps(1, 6, 7);
                    }
                    if (PIXELS > 2) {
                        _tile_loadd(6, here + 2 * aside, ROW_BYTES);
                        _tile_dpbf16ps(2, 6, 7);
                    }
                    if (made <= TILE) continue;
                    _tile_loadd(7, its + OPERAND, ROW_BYTES);
                    if (PIXELS > 2) {
                        _tile_dpbf16ps(5, 6, 7);
                        _tile_loadd(6, here + aside, ROW_BYTES);
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
        for (int64_t i = 0; i < images; ++i, to += step)
#pragma GCC unroll 3
            for (int64_t p = 0; p < PIXELS; ++p)
                _mm512_mask_storeu_epi16(to + p * next_pixel, first_of(made),
                                         rounded(sums[0][p][i], sums[1][p][i]));
    }

    const Shape& shape;
    const int64_t every, in_height, in_width, height, width, outputs;
    const Rule& rule;
    const Groups groups;
    const int64_t depths, blocks, pixel, row_size, block_size, rows_at_once, rows_seen;
};

template <int KERNEL>
void convolve(
    const Shape& shape, const Side& side, int64_t outputs, const BFloat16* x, const float* weights, BFloat16* y
) {
    // A kernel of one pixel sees only every so many.
    const int64_t every = KERNEL == 1 ? side.stride : 1;
    const Forward<KERNEL> rule{weights, shape.channels, outputs, side.stride / every, side.padding};
    Convolved<KERNEL, Forward<KERNEL>> convolved(shape, every, side.height, side.width, outputs, rule);
    convolved(x, y);
}

template <int KERNEL>
void convolve_back(
    const Shape& shape, const Side& side, int64_t outputs, const BFloat16* gradient, const float* weights,
    BFloat16* d_x
) {
    const Shape of_gradient{shape.images, side.height, side.width, outputs, shape.threads};
    const Backwards<KERNEL> rule{weights, shape.channels, outputs, side.stride, side.padding};
    Convolved<KERNEL, Backwards<KERNEL>> convolved(of_gradient, 1, shape.height, shape.width, shape.channels, rule);
    convolved(gradient, d_x);
}

// The gradient of the weights, (outputs, kernel, kernel, inputs): the sum over pixels of the gradient times what a
// weight sees. A product's depth is two columns of 16 images.
template <int KERNEL>
class WeightGradient {
public:
    WeightGradient(const Shape& shape, const Side& side, int64_t outputs)
        : shape(shape),
          stride(side.stride),
          padding(side.padding),
          inputs(shape.channels),
          outputs(outputs),
          groups(shape.images),
          height(side.height),
          width(side.width),
          steps((width + 1) / 2),
          seen_width(2 * steps + (KERNEL - 1) / stride) {}

    void operator()(const BFloat16* x, const BFloat16* gradient, float* d_weights) const {
        const int64_t size = outputs * WEIGHTS * inputs, rows = groups.number * height;
        // Threads share out blocks of outputs, and read all of x. Where x is much more than the weights, they share out
        // rows, whose sums are added at the end; in how many parts does not depend on how many threads there are.
        const int64_t values = shape.images * (shape.height * shape.width * inputs + height * width * outputs);
        const int64_t parts = std::min(rows, std::clamp<int64_t>(values / (8 * size), 1, 4));
        const int64_t blocks = (outputs + BLOCK - 1) / BLOCK;
        const int64_t shares = std::min(blocks, (shape.threads + parts - 1) / parts);
        const int64_t row_size = steps * DEPTH * BLOCK, seen_row = phases() * seen_width * TILE * inputs;
        const int64_t fitting = (3 * CACHED - (KERNEL - 1) * seen_row) / (row_size + phases() * seen_row);
        const int64_t rows_at_once = std::clamp<int64_t>(fitting, 1, height);
        const int64_t seen_size = ((rows_at_once - 1) * phases() + KERNEL) * seen_row;
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
            const bool once = parts == 1 && rows <= rows_at_once;
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
                                add(turned, seen + c * seen_size / inputs, first, last, k, row != its_rows.first, once,
                                    std::min(BLOCK, outputs - block * BLOCK),
                                    to + (block * BLOCK * WEIGHTS + k * KERNEL) * inputs + c);
                    }
                }
            }
            _mm_sfence();
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
    static constexpr int64_t WEIGHTS = KERNEL * KERNEL;

    // Columns that are a stride apart lie next to each other; a kernel of one pixel sees no others.
    int64_t phases() const { return KERNEL == 1 ? 1 : stride; }
    int64_t every() const { return stride / phases(); }
    int64_t place(int64_t column) const { return column % phases() * seen_width + column / phases(); }

    // An image's next 32 channels.
    static __m512i line(const BFloat16* from, int64_t image, int64_t images, int64_t step, __mmask32 channels) {
        return image < images ? values(from + image * step, channels) : _mm512_setzero_si512();
    }

    // Rows of x, [16 channels][row][column][pairs of images][channel]. Columns of the padding are 0 already.
    void copy(
        const BFloat16* x, int64_t group, int64_t first, int64_t last, BFloat16* seen, int64_t seen_size
    ) const {
        const int64_t start = first * phases() - padding;
        const int64_t top = std::max<int64_t>(start, 0);
        const int64_t bottom = std::min((last - 1) * phases() - padding + KERNEL, (shape.height - 1) / every() + 1);
        const int64_t right = std::min((shape.width - 1) / every() + 1, phases() * seen_width - padding);
        const int64_t images = groups.in(group), step = shape.height * shape.width * inputs;
        const int64_t by_channels = seen_size / (inputs / TILE), row_length = phases() * seen_width;
        for (int64_t row = top; row < bottom; ++row)
            for (int64_t column = 0; column < right; ++column) {
                const int64_t at_row = groups.first(group) * shape.height + row * every();
                const int64_t at = at_row * shape.width + column * every();
                BFloat16* to = seen + ((row - start) * row_length + place(padding + column)) * TILE * TILE;
                for (int64_t c = 0; c < inputs; c += DEPTH, to += 2 * by_channels) {
                    const __mmask32 there = first_of(inputs - c);
#pragma GCC unroll 8
                    for (int64_t i = 0; i < TILE; i += 2) {
                        const BFloat16* from = x + at * inputs + c;
                        const Pairs pairs(line(from, i, images, step, there), line(from, i + 1, images, step, there));
                        _mm512_store_si512(to + i * TILE, pairs.first);
                        if (inputs - c > TILE) _mm512_store_si512(to + by_channels + i * TILE, pairs.last);
                    }
                }
            }
    }

    // Rows of a block of the gradient, [row][two columns][half of the block][channel][column, image].
    void turn(
        const BFloat16* gradient, int64_t group, int64_t first, int64_t last, int64_t block, BFloat16* turned
    ) const {
        const int64_t images = groups.in(group), step = height * width * outputs;
        const __mmask32 made = first_of(outputs - block * BLOCK);
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
                    const Pairs pairs(line(its, image, there, step, made), line(its, image + 1, there, step, made));
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

    // Adds the rows' share of 32 x 16 weights at the columns of row k of the kernel. Sums that are made at once are not
    // kept in the cache, which weights fill.
    void add(
        const BFloat16* turned, const BFloat16* seen, int64_t first, int64_t last, int64_t k, bool more, bool once,
        int64_t made, float* to
    ) const {
        const int64_t stride_bytes = WEIGHTS * inputs * sizeof(float), lower = TILE * WEIGHTS * inputs;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        _tile_zero(4);
        _tile_zero(5);
        if (more) {
            _tile_loadd(0, to, stride_bytes);
            if (KERNEL == 3) {
                _tile_loadd(1, to + inputs, stride_bytes);
                _tile_loadd(2, to + 2 * inputs, stride_bytes);
            }
            if (made > TILE) _tile_loadd(3, to + lower, stride_bytes);
            if (made > TILE && KERNEL == 3) {
                _tile_loadd(4, to + lower + inputs, stride_bytes);
                _tile_loadd(5, to + lower + 2 * inputs, stride_bytes);
            }
        }
        const int64_t in_height = (shape.height - 1) / every() + 1, row_length = phases() * seen_width;
        const int64_t second = place(1) * TILE * TILE, third = place(2) * TILE * TILE;
        for (int64_t row = first; row < last; ++row) {
            const int64_t its = row * phases() - padding + k;
            if (its < 0 || its >= in_height) continue;
            const BFloat16* by = turned + (row - first) * steps * 2 * OPERAND;
            const BFloat16* here = seen + ((row - first) * phases() + k) * row_length * TILE * TILE;
            for (int64_t i = 0; i < steps; ++i, by += 2 * OPERAND, here += OPERAND) {
                _tile_loadd(6, by, ROW_BYTES);
                _tile_loadd(7, here, ROW_BYTES);
                _tile_dpbf16ps(0, 6, 7);
                if (KERNEL == 3) {
                    _tile_loadd(7, here + second, ROW_BYTES);
                    _tile_dpbf16ps(1, 6, 7);
                    _tile_loadd(7, here + third, ROW_BYTES);
                    _tile_dpbf16ps(2, 6, 7);
                }
                _tile_loadd(6, by + OPERAND, ROW_BYTES);
                if (KERNEL == 3) {
                    _tile_dpbf16ps(5, 6, 7);
                    _tile_loadd(7, here + second, ROW_BYTES);
                    _tile_dpbf16ps(4, 6, 7);
                    _tile_loadd(7, here, ROW_BYTES);
                }
                _tile_dpbf16ps(3, 6, 7);
            }
        }
        alignas(64) float sums[2][3][TILE][TILE];
        float* at = once ? sums[0][0][0] : to;
        const int64_t row_bytes = once ? ROW_BYTES : stride_bytes;
        const int64_t column = once ? TILE * TILE : inputs, half = once ? 3 * TILE * TILE : lower;
        _tile_stored(0, at, row_bytes);
        if (KERNEL == 3) {
            _tile_stored(1, at + column, row_bytes);
            _tile_stored(2, at + 2 * column, row_bytes);
        }
        if (made > TILE) _tile_stored(3, at + half, row_bytes);
        if (made > TILE && KERNEL == 3) {
            _tile_stored(4, at + half + column, row_bytes);
            _tile_stored(5, at + half + 2 * column, row_bytes);
        }
        if (!once) return;
        for (int64_t o = 0; o < made; ++o, to += WEIGHTS * inputs)
#pragma GCC unroll 3
            for (int64_t i = 0; i < KERNEL; ++i)
                _mm512_stream_ps(to + i * inputs, _mm512_load_ps(sums[o / TILE][i][o % TILE]));
    }

    static_assert(KERNEL == 1 || KERNEL == 3);

    const Shape& shape;
    const int64_t stride, padding, inputs, outputs;
    const Groups groups;
    const int64_t height, width, steps, seen_width;
};

#endif
