// Normalisation, maximum over windows, ReLU.
//
// Normalisation is monotone, so the maximum of the normalised values is the normalised maximum (minimum where the
// scale is negative). One pass over the values finds both their statistics and their extrema, and only the extrema
// are normalised.
#pragma once

#include "moments.h"
#include "windows.h"

// Normalises extrema; a window whose ReLU gives 0 passes no gradient, and is marked.
template <typename T>
void normalise_extrema(
    int64_t rows, int64_t width, int64_t channels, int64_t threads, const Layer& layer, const T* extrema,
    uint8_t* places, T* out
) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t c = 0; c < channels; c += LANES) {
            const Normalise normalise(layer, c);
            for (int64_t x = 0; x < width; ++x) {
                const int64_t at = (row * width + x) * channels + c;
                const Floats value = normalise(load(extrema + at));
                store(out + at, relu(value));
                store(places + at, value <= 0 ? all(CLOSED) : load(places + at));
            }
        }
}

// Adds a row's sums of the gradients, and of those times (extremum - mean), in some channels.
template <typename T>
void add_gradients(
    const T* extrema, const uint8_t* places, const T* gradient, int64_t width, int64_t channels, Floats mean,
    double* to_sum, double* to_products
) {
    Floats sum = {}, products = {};
    for (int64_t x = 0; x < width; ++x) {
        const int64_t at = x * channels;
        const Floats open = load(places + at) == CLOSED ? Floats{} : load(gradient + at);
        sum += open;
        products += open * (load(extrema + at) - mean);
    }
    add(to_sum, sum);
    add(to_products, products);
}

template <typename T, int KERNEL, int STRIDE, int PADDING>
struct Pool {
    using Own = Windows<KERNEL, STRIDE, PADDING>;

    static void add_moments(const T* row, int64_t width, int64_t channels, double* sum, double* squares) {
        Moments even(load(row)), odd(load(row));
        int64_t x = 0;
        for (; x + 1 < width; x += 2) {
            even.add(load(row + x * channels));
            odd.add(load(row + (x + 1) * channels));
        }
        if (x < width) even.add(load(row + x * channels));
        even.take(odd);
        even.finish(width, sum, squares);
    }

    // A window whose padding is out of the image.
    static Extremum at_border(const Shape& shape, const T* image, int64_t y0, int64_t x0, Floats sign) {
        const int64_t top = std::max<int64_t>(y0, 0), bottom = std::min(y0 + KERNEL, shape.height);
        const int64_t left = std::max<int64_t>(x0, 0), right = std::min(x0 + KERNEL, shape.width);
        Extremum found(sign, load(image + (top * shape.width + left) * shape.channels),
                       int32_t((top - y0) * KERNEL + left - x0));
        for (int64_t y = top; y < bottom; ++y)
            for (int64_t x = left; x < right; ++x)
                found.see(load(image + (y * shape.width + x) * shape.channels),
                          int32_t((y - y0) * KERNEL + x - x0));
        return found;
    }

    static Extremum inside(const Shape& shape, const T* image, int64_t y0, int64_t x0, Floats sign) {
        const T* corner = image + (y0 * shape.width + x0) * shape.channels;
        Extremum found(sign, load(corner), 0);
#pragma GCC unroll 9
        for (int i = 1; i < KERNEL * KERNEL; ++i)
            found.see(load(corner + (i / KERNEL * shape.width + i % KERNEL) * shape.channels), i);
        return found;
    }

    static void find_extrema(
        const Own& windows, const T* image, int64_t row, Floats sign, T* extrema, uint8_t* places
    ) {
        const Shape& shape = windows.shape;
        const int64_t y0 = row * STRIDE - PADDING;
        const bool whole_rows = y0 >= 0 && y0 + KERNEL <= shape.height;
        for (int64_t column = 0; column < windows.width; ++column) {
            const int64_t x0 = column * STRIDE - PADDING, at = column * shape.channels;
            if (PADDING == 0 || (whole_rows && x0 >= 0 && x0 + KERNEL <= shape.width))
                inside(shape, image, y0, x0, sign).write(extrema + at, places + at);
            else
                at_border(shape, image, y0, x0, sign).write(extrema + at, places + at);
        }
    }

    static void forward(const Shape& shape, const Layer& layer, const T* x, T* extrema, uint8_t* places, T* out) {
        const Own windows(shape);
        const int64_t channels = shape.channels, row_size = shape.width * channels;
        Sums sums(windows.blocks, channels);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < windows.blocks; ++i) {
            const auto block = windows.block(i);
            const T* image = x + block.image * shape.height * row_size;
            for (int64_t row = block.first; row < block.last; ++row) {
                const int64_t at = (block.image * windows.height + row) * windows.width * channels;
                for (int64_t c = 0; c < channels; c += LANES) {
                    for (int64_t y = windows.top(row); y < windows.top(row + 1); ++y)
                        add_moments(image + y * row_size + c, shape.width, channels, sums.first(i) + c,
                                    sums.second(i) + c);
                    find_extrema(windows, image + c, row, sign_of(load(layer.scale + c)), extrema + at + c,
                                 places + at + c);
                }
            }
        }
        settle(sums, channels, double(shape.images * shape.height * shape.width), layer);
        normalise_extrema(shape.images * windows.height, windows.width, channels, shape.threads, layer, extrema,
                          places, out);
    }

    static void backward(
        const Shape& shape, const Layer& layer, const T* x, const T* extrema, const uint8_t* places,
        const T* gradient, T* d_x, float* d_scale, float* d_shift
    ) {
        const Own windows(shape);
        const int64_t channels = shape.channels, out_size = windows.width * channels;
        Sums sums(windows.blocks, channels);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < windows.blocks; ++i) {
            const auto block = windows.block(i);
            for (int64_t row = block.first; row < block.last; ++row)
                for (int64_t c = 0; c < channels; c += LANES) {
                    const int64_t at = (block.image * windows.height + row) * out_size + c;
                    add_gradients(extrema + at, places + at, gradient + at, windows.width, channels,
                                  load(layer.mean + c), sums.first(i) + c, sums.second(i) + c);
                }
        }
        const double pixels = double(shape.images * shape.height * shape.width);
        const Backward by(sums, channels, pixels, layer, d_scale, d_shift);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < windows.blocks; ++i) {
            const auto block = windows.block(i);
            const int64_t out_start = block.image * windows.height * out_size;
            for (int64_t y = windows.top(block.first); y < windows.top(block.last); ++y)
                for (int64_t c = 0; c < channels; c += LANES) {
                    const int64_t at = (block.image * shape.height + y) * shape.width * channels + c;
                    spread(windows, y, by.of(c), x + at, places + out_start + c, gradient + out_start + c,
                           d_x + at);
                }
        }
    }

    // Writes a row of the input's gradient: what its windows route to each pixel, and the normalisation's own share.
    static void spread(
        const Own& windows, int64_t y, const Backward::Channels& by, const T* x, const uint8_t* places,
        const T* gradient, T* d_x
    ) {
        const int64_t up = first_over(y + PADDING), rows = std::min((y + PADDING) / STRIDE + 1, windows.height) - up;
        const int64_t skipped = up * windows.width * windows.shape.channels;
        places += skipped, gradient += skipped;
        const int32_t first = int32_t((y + PADDING - up * STRIDE) * KERNEL);
        if (rows == 2) spread_rows<2>(windows, first, by, x, places, gradient, d_x);
        if (rows == 1) spread_rows<1>(windows, first, by, x, places, gradient, d_x);
        if (rows == 0) spread_rows<0>(windows, first, by, x, places, gradient, d_x);
    }

    // `first` is the row's place in the first of the rows of windows that have it.
    template <int ROWS_OF_WINDOWS>
    static void spread_rows(
        const Own& windows, int32_t first, const Backward::Channels& by, const T* x, const uint8_t* places,
        const T* gradient, T* d_x
    ) {
        static_assert(STRIDE == 2 && KERNEL <= 3 && PADDING <= 1, "a pixel has at most two windows along a row");
        const int64_t channels = windows.shape.channels, width = windows.shape.width;
        Routed here[2] = {}, next[2] = {};
        for (int row = 0; row < ROWS_OF_WINDOWS; ++row) here[row] = routed(windows, places, gradient, row, 0);
        for (int64_t u = 0; 2 * u < width; ++u) {
#pragma GCC unroll 2
            for (int row = 0; row < ROWS_OF_WINDOWS; ++row) next[row] = routed(windows, places, gradient, row, u + 1);
#pragma GCC unroll 2
            for (int32_t right = 0; right < 2; ++right) {
                if (2 * u + right >= width) break;
                Floats sum = {};
#pragma GCC unroll 2
                for (int32_t row = 0; row < ROWS_OF_WINDOWS; ++row) {
                    const int32_t start = first - row * STRIDE * KERNEL + PADDING + right;
                    if (PADDING + right < KERNEL) sum += here[row].place == start ? here[row].gradient : Floats{};
                    if (PADDING + right >= STRIDE)
                        sum += next[row].place == start - STRIDE ? next[row].gradient : Floats{};
                }
                const int64_t at = (2 * u + right) * channels;
                store(d_x + at, by(sum, load(x + at)));
            }
            for (int row = 0; row < ROWS_OF_WINDOWS; ++row) here[row] = next[row];
        }
    }

    // A window's place, and the gradient of its maximum.
    struct Routed {
        Ints place;
        Floats gradient;
    };

    static Routed routed(const Own& windows, const uint8_t* places, const T* gradient, int64_t row, int64_t u) {
        if (u >= windows.width) return {all(CLOSED), Floats{}};
        const int64_t at = (row * windows.width + u) * windows.shape.channels;
        return {load(places + at), load(gradient + at)};
    }

    // The first window over a padded position.
    static int64_t first_over(int64_t padded) { return padded < KERNEL ? 0 : (padded - KERNEL) / STRIDE + 1; }
};
