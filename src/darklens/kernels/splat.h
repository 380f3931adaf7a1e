// The splat: light at positions between pixels, shared among the four nearest pixels.
//
// The order of the sums is that of physics/splat.py, and products are rounded before they are added: the results have
// the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

struct Shape {
    int64_t images, channels, pixels, threads;  // pixels along a side
};

class Splat {
public:
    Splat(const Shape& shape, const float* column, const float* row)
        : images(shape.images), channels(shape.channels), n(shape.pixels), threads(shape.threads), column(column),
          row(row) {}

    // light is (images, channels, n, n); the positions are (images, n, n) in pixels.
    void forward(const float* light, float* total) const {
#pragma omp parallel num_threads(threads)
        {
            std::vector<int32_t> at(n);
            std::vector<float> share(n), shared(n);
#pragma omp for schedule(static)
            for (int64_t image = 0; image < images; ++image) {
                std::fill(total + image * channels * n * n, total + (image + 1) * channels * n * n, 0.0f);
                for (int corner = 0; corner < 4; ++corner)
                    for (int64_t y = 0; y < n; ++y) {
                        aim(image * n * n + y * n, corner, at.data(), share.data());
                        for (int64_t channel = 0; channel < channels; ++channel) {
                            const int64_t plane = (image * channels + channel) * n * n;
                            for (int64_t x = 0; x < n; ++x) shared[x] = light[plane + y * n + x] * share[x];
                            for (int64_t x = 0; x < n; ++x)
                                if (at[x] >= 0) total[plane + at[x]] += shared[x];
                        }
                    }
            }
        }
    }

    // `d_light` may be null.
    void backward(const float* light, const float* d_total, float* d_light, float* d_column, float* d_row) const {
#pragma omp parallel num_threads(threads)
        {
            std::vector<int32_t> at(4 * n);
            std::vector<float> share(4 * n);
#pragma omp for schedule(static)
            for (int64_t image = 0; image < images; ++image)
                for (int64_t y = 0; y < n; ++y) {
                    const int64_t start = image * n * n + y * n;
                    for (int corner = 0; corner < 4; ++corner)
                        aim(start, corner, &at[corner * n], &share[corner * n]);
                    std::fill(d_column + start, d_column + start + n, 0.0f);
                    std::fill(d_row + start, d_row + start + n, 0.0f);
                    for (int64_t channel = 0; channel < channels; ++channel) {
                        const int64_t plane = (image * channels + channel) * n * n;
                        for (int64_t x = 0; x < n; ++x) {
                            const float right = column[start + x] - std::floor(column[start + x]);
                            const float high = row[start + x] - std::floor(row[start + x]);
                            float d[4], sum = 0;
                            for (int corner = 0; corner < 4; ++corner) {
                                const int32_t target = at[corner * n + x];
                                d[corner] = target < 0 ? 0 : d_total[plane + target];
                                sum += share[corner * n + x] * d[corner];
                            }
                            const float value = light[plane + y * n + x];
                            if (d_light) d_light[plane + y * n + x] = sum;
                            d_column[start + x] +=
                                value * ((1 - high) * (d[1] - d[0]) + high * (d[3] - d[2]));
                            d_row[start + x] +=
                                value * ((1 - right) * (d[2] - d[0]) + right * (d[3] - d[1]));
                        }
                    }
                }
        }
    }

private:
    // The pixel to which each pixel of a row sends light (-1: outside the grid), and the share that it sends.
    // Corners are lower left, lower right, upper left, upper right.
    void aim(int64_t start, int corner, int32_t* __restrict at, float* __restrict share) const {
        const float *across = column + start, *up = row + start;
        const float end = float(n), step_right = float(corner & 1), step_up = float(corner >> 1);
        const int32_t length = int32_t(n);
        for (int32_t x = 0; x < length; ++x) {
            const float left = std::floor(across[x]), low = std::floor(up[x]);
            const float right_share = across[x] - left, high_share = up[x] - low;
            const float at_column = left + step_right, at_row = low + step_up;
            const float column_share = step_right > 0 ? right_share : 1 - right_share;
            const float row_share = step_up > 0 ? high_share : 1 - high_share;
            // False for NaN as well.
            const bool inside = (at_row >= 0) & (at_row < end) & (at_column >= 0) & (at_column < end);
            at[x] = inside ? int32_t(at_row) * length + int32_t(at_column) : -1;
            share[x] = inside ? row_share * column_share : 0;
        }
    }

    const int64_t images, channels, n, threads;
    const float *column, *row;
};
