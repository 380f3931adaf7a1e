// Convolutions as products of matrices: what each output pixel sees, in a row of (kernel, kernel, channels) values.
#pragma once

#include <algorithm>

#include "windows.h"

struct Side {
    int64_t kernel, stride, padding;
    int64_t height, width;  // of the output
};

template <typename T>
void unfold(const Shape& shape, const Side& side, const T* x, T* columns) {
    const int64_t channels = shape.channels, length = side.kernel * channels;
#pragma omp parallel for num_threads(shape.threads) schedule(static)
    for (int64_t row = 0; row < shape.images * side.height; ++row) {
        const T* image = x + row / side.height * shape.height * shape.width * channels;
        T* to = columns + row * side.width * side.kernel * length;
        for (int64_t column = 0; column < side.width; ++column) {
            const int64_t x0 = column * side.stride - side.padding;
            const int64_t left = std::max<int64_t>(x0, 0), right = std::min(x0 + side.kernel, shape.width);
            for (int64_t k = 0; k < side.kernel; ++k, to += length) {
                const int64_t y = row % side.height * side.stride - side.padding + k;
                if (y < 0 || y >= shape.height || left >= right) {
                    std::fill(to, to + length, T{});
                    continue;
                }
                std::fill(to, to + (left - x0) * channels, T{});
                std::copy(image + (y * shape.width + left) * channels, image + (y * shape.width + right) * channels,
                          to + (left - x0) * channels);
                std::fill(to + (right - x0) * channels, to + length, T{});
            }
        }
    }
}

// The gradient of `unfold`: each pixel's values in all rows that see it, summed in float32.
template <typename T>
void fold(const Shape& shape, const Side& side, const T* columns, T* x) {
    const int64_t channels = shape.channels, seen = side.kernel * side.kernel * channels;
#pragma omp parallel for num_threads(shape.threads) schedule(static)
    for (int64_t row = 0; row < shape.images * shape.height; ++row) {
        const T* image = columns + row / shape.height * side.height * side.width * seen;
        const int64_t padded_y = row % shape.height + side.padding;
        const int64_t up = padded_y < side.kernel ? 0 : (padded_y - side.kernel) / side.stride + 1;
        const int64_t down = std::min(padded_y / side.stride + 1, side.height);
        for (int64_t column = 0; column < shape.width; ++column) {
            const int64_t padded_x = column + side.padding;
            const int64_t left = padded_x < side.kernel ? 0 : (padded_x - side.kernel) / side.stride + 1;
            const int64_t right = std::min(padded_x / side.stride + 1, side.width);
            T* to = x + (row * shape.width + column) * channels;
            for (int64_t c = 0; c < channels; c += LANES) {
                Floats sum = {};
                for (int64_t v = up; v < down; ++v)
                    for (int64_t u = left; u < right; ++u) {
                        const int64_t tap = (padded_y - v * side.stride) * side.kernel + padded_x - u * side.stride;
                        sum += load(image + (v * side.width + u) * seen + tap * channels + c);
                    }
                store(to + c, sum);
            }
        }
    }
}
