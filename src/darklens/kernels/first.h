// A network's first layer: convolution of few channels, normalisation, maximum over 2 x 2 pixels, ReLU.
//
// The convolution's values, which are the largest array of a network, are never written to memory: those of a window
// are made in registers, counted, and only their extremum is kept. The backward pass makes them anew, which takes less
// time than reading them would. All is calculated in float32.
#pragma once

#include "pool.h"

struct Convolution {
    const float* images;  // values of float32
    int64_t by_image, by_channel, by_row, by_column;  // steps in memory
    int64_t inputs;
    const float* weights;  // (inputs, kernel, kernel, channels)
};

// Stride 1, and padding that keeps the size. A row of windows is 2 rows of pixels; the last may be cut to 1.
template <typename T, int KERNEL>
class First {
public:
    First(const Shape& shape, const Convolution& convolution)
        : shape(shape),
          convolution(convolution),
          out_height(shape.height / 2),
          out_width(shape.width / 2),
          rows((shape.height + 1) / 2),
          blocks_an_image((rows + ROWS - 1) / ROWS),
          blocks(shape.images * blocks_an_image) {}

    void forward(const Layer& layer, T* extrema, uint8_t* places, T* out) const {
        const int64_t channels = shape.channels;
        Sums sums(blocks, channels);
#pragma omp parallel num_threads(shape.threads)
        {
            std::vector<float> seen(padded_size());
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < blocks; ++i) {
                copy_padded(i, seen.data());
                for (int64_t row = first_row(i); row < last_row(i); ++row)
                    for (int64_t c = 0; c < channels; c += LANES)
                        forward_row(i, row, c, seen.data(), layer, sums, extrema, places);
            }
        }
        settle(sums, channels, pixels(), layer);
        normalise_extrema(shape.images * out_height, out_width, channels, shape.threads, layer, extrema, places, out);
    }

    void backward(
        const Layer& layer, const T* extrema, const uint8_t* places, const T* gradient, float* d_weights,
        float* d_scale, float* d_shift
    ) const {
        const int64_t channels = shape.channels, taps = convolution.inputs * KERNEL * KERNEL;
        Sums sums(blocks, channels);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t row = first_row(i); row < std::min(last_row(i), out_height); ++row)
                for (int64_t c = 0; c < channels; c += LANES) {
                    const int64_t at = out_at(i, row) + c;
                    add_gradients(extrema + at, places + at, gradient + at, out_width, channels,
                                  load(layer.mean + c), sums.first(i) + c, sums.second(i) + c);
                }
        const Backward by(sums, channels, pixels(), layer, d_scale, d_shift);
        std::vector<double> parts(blocks * taps * channels, 0.0);
#pragma omp parallel num_threads(shape.threads)
        {
            std::vector<float> seen(padded_size()), values(2 * 2 * (out_width + 1) * LANES);
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < blocks; ++i) {
                copy_padded(i, seen.data());
                for (int64_t row = first_row(i); row < last_row(i); ++row)
                    for (int64_t c = 0; c < channels; c += LANES) {
                        const int64_t at = out_at(i, row) + c;
                        backward_row(row - first_row(i), c, seen.data(), by.of(c), row < out_height,
                                     places + at, gradient + at, values.data());
                        add_weights(i, row, seen.data(), values.data(), &parts[i * taps * channels + c]);
                    }
            }
        }
        for (int64_t j = 0; j < taps * channels; ++j) {
            double sum = 0;
            for (int64_t i = 0; i < blocks; ++i) sum += parts[i * taps * channels + j];
            d_weights[j] = float(sum);
        }
    }

private:
    static constexpr int64_t MARGIN = KERNEL / 2;
    static constexpr int64_t SEEN_ROWS = 2 * ROWS + KERNEL - 1;

    double pixels() const { return double(shape.images * shape.height * shape.width); }
    int64_t first_row(int64_t block) const { return block % blocks_an_image * ROWS; }
    int64_t last_row(int64_t block) const { return std::min(first_row(block) + ROWS, rows); }
    int64_t padded_width() const { return 2 * ((shape.width + 1) / 2) + KERNEL - 1; }
    int64_t padded_size() const { return convolution.inputs * SEEN_ROWS * padded_width(); }
    int64_t out_at(int64_t block, int64_t row) const {
        return (block / blocks_an_image * out_height + row) * out_width * shape.channels;
    }

    // Copies what a block's windows see, (inputs, SEEN_ROWS, padded_width), with zeros beyond the image.
    void copy_padded(int64_t block, float* seen) const {
        const Convolution& from = convolution;
        const float* image = from.images + block / blocks_an_image * from.by_image;
        const int64_t width = padded_width(), top = 2 * first_row(block) - MARGIN;
        for (int64_t input = 0; input < from.inputs; ++input)
            for (int64_t y = 0; y < SEEN_ROWS; ++y) {
                float* to = seen + (input * SEEN_ROWS + y) * width;
                std::fill(to, to + width, 0.0f);
                if (top + y < 0 || top + y >= shape.height) continue;
                const float* row = image + input * from.by_channel + (top + y) * from.by_row;
                for (int64_t x = 0; x < shape.width; ++x) to[MARGIN + x] = row[x * from.by_column];
            }
    }

    // The convolution's values at 2 rows and 2 * WINDOWS columns, in some channels.
    template <int WINDOWS>
    struct Patch {
        Floats values[2][2 * WINDOWS];
    };

    template <int WINDOWS>
    Patch<WINDOWS> convolved(const float* seen, int64_t row, int64_t window, int64_t channel) const {
        Patch<WINDOWS> patch = {};
        const int64_t width = padded_width();
        const float* weights = convolution.weights + channel;
        for (int64_t input = 0; input < convolution.inputs; ++input)
            for (int64_t dy = 0; dy < KERNEL; ++dy) {
                const float* upper = seen + (input * SEEN_ROWS + 2 * row + dy) * width + 2 * window;
                const float* lower = upper + width;
#pragma GCC unroll 8
                for (int64_t dx = 0; dx < KERNEL; ++dx, weights += shape.channels) {
                    const Floats weight = load(weights);
#pragma GCC unroll 8
                    for (int64_t x = 0; x < 2 * WINDOWS; ++x) {
                        patch.values[0][x] += weight * upper[x + dx];
                        patch.values[1][x] += weight * lower[x + dx];
                    }
                }
            }
        return patch;
    }

    void forward_row(
        int64_t block, int64_t row, int64_t c, const float* seen, const Layer& layer, Sums& sums, T* extrema,
        uint8_t* places
    ) const {
        const int64_t at = out_at(block, row) + c, here = row - first_row(block);
        const int64_t high = std::min<int64_t>(2, shape.height - 2 * row), windows = (shape.width + 1) / 2;
        const Floats sign = sign_of(load(layer.scale + c));
        Moments moments(convolved<1>(seen, here, 0, c).values[0][0]);
        int64_t window = 0;
        if (high == 2)
            for (; window + 1 < out_width; window += 2) {
                const auto patch = convolved<2>(seen, here, window, c);
#pragma GCC unroll 2
                for (int64_t w = 0; w < 2; ++w) {
                    Extremum found(sign, patch.values[0][2 * w], 0);
                    found.see(patch.values[0][2 * w + 1], 1);
                    found.see(patch.values[1][2 * w], 2);
                    found.see(patch.values[1][2 * w + 1], 3);
                    const int64_t to = at + (window + w) * shape.channels;
                    found.write(extrema + to, places + to);
#pragma GCC unroll 4
                    for (int64_t i = 0; i < 4; ++i) moments.add(patch.values[i / 2][2 * w + i % 2]);
                }
            }
        for (; window < windows; ++window) {  // the rest, and what the image's border cuts
            const auto patch = convolved<1>(seen, here, window, c);
            const int64_t wide = std::min<int64_t>(2, shape.width - 2 * window);
            for (int64_t y = 0; y < high; ++y)
                for (int64_t x = 0; x < wide; ++x) moments.add(patch.values[y][x]);
            if (high < 2 || wide < 2) continue;
            Extremum found(sign, patch.values[0][0], 0);
            for (int32_t i = 1; i < 4; ++i) found.see(patch.values[i / 2][i % 2], i);
            found.write(extrema + at + window * shape.channels, places + at + window * shape.channels);
        }
        moments.finish(high * shape.width, sums.first(block) + c, sums.second(block) + c);
    }

    // Writes the gradient of the convolution's values, (2, row_length, LANES).
    void backward_row(
        int64_t here, int64_t c, const float* seen, const Backward::Channels& by, bool whole, const uint8_t* places,
        const T* gradient, float* values
    ) const {
        const int64_t length = 2 * (out_width + 1) * LANES;
        int64_t window = 0;
        for (; window + 1 < out_width; window += 2)
            route(convolved<2>(seen, here, window, c), window, by, whole, places, gradient, values, length);
        for (; window < (shape.width + 1) / 2; ++window)
            route(convolved<1>(seen, here, window, c), window, by, whole, places, gradient, values, length);
    }

    template <int WINDOWS>
    void route(
        const Patch<WINDOWS>& patch, int64_t window, const Backward::Channels& by, bool whole,
        const uint8_t* places, const T* gradient, float* values, int64_t length
    ) const {
#pragma GCC unroll 2
        for (int64_t w = 0; w < WINDOWS; ++w) {
            const int64_t from = (window + w) * shape.channels;
            const bool open = whole && window + w < out_width;
            const Ints place = open ? load(places + from) : all(CLOSED);
            const Floats its = open ? load(gradient + from) : Floats{};
#pragma GCC unroll 4
            for (int32_t i = 0; i < 4; ++i) {
                const Floats routed = place == i ? its : Floats{};
                store(values + i / 2 * length + (2 * (window + w) + i % 2) * LANES,
                      by(routed, patch.values[i / 2][2 * w + i % 2]));
            }
        }
    }

    // Adds a row's share of the weights' gradient.
    void add_weights(int64_t block, int64_t row, const float* seen, const float* values, double* parts) const {
        const int64_t width = padded_width(), length = 2 * (out_width + 1) * LANES;
        const int64_t high = std::min<int64_t>(2, shape.height - 2 * row);
        for (int64_t input = 0; input < convolution.inputs; ++input) {
            Floats sums[KERNEL * KERNEL] = {};
            for (int64_t y = 0; y < high; ++y) {
                const float* from = seen + (input * SEEN_ROWS + 2 * (row - first_row(block)) + y) * width;
                for (int64_t x = 0; x < shape.width; ++x) {
                    const Floats value = load(values + y * length + x * LANES);
#pragma GCC unroll 49
                    for (int64_t tap = 0; tap < KERNEL * KERNEL; ++tap)
                        sums[tap] += value * from[tap / KERNEL * width + x + tap % KERNEL];
                }
            }
            for (int64_t tap = 0; tap < KERNEL * KERNEL; ++tap)
                add(parts + (input * KERNEL * KERNEL + tap) * shape.channels, sums[tap]);
        }
    }

    const Shape& shape;
    const Convolution& convolution;
    const int64_t out_height, out_width, rows, blocks_an_image, blocks;
};
