// The operations of a fit step on images, each in one pass over memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

// A banded matrix: the nonzero run of each row as (rows, taps), and the column at which it starts.
struct Band {
    const float* values;
    const int64_t* first;
    int64_t rows, columns, taps;
};

// band * plane * band^T of square planes: the PSF and the pixel integration, applied to surface brightness.
// The band has at least LANES rows and columns.
class DetectorResponse {
public:
    explicit DetectorResponse(const Band& band)
        : band(band), row_sums(band.rows * band.columns), transposed(band.columns * LANES) {}

    void operator()(const float* plane, float* out) { (*this)(plane, band.values, band.values, out); }

    // along_y * plane * along_x^T, for the values of two bands of the same shape.
    void operator()(const float* plane, const float* along_y, const float* along_x, float* out) {
        for (int64_t row = 0; row < band.rows; ++row) {
            const float* values = along_y + row * band.taps;
            const float* from = plane + band.first[row] * band.columns;
            float* to = &row_sums[row * band.columns];
            int64_t x = 0;
            for (; x + UNROLLED * LANES <= band.columns; x += UNROLLED * LANES)
                sum_rows<UNROLLED>(values, from + x, to + x);
            for (; x < band.columns; x += LANES) {
                const int64_t at = std::min(x, band.columns - LANES);
                sum_rows<1>(values, from + at, to + at);
            }
        }
        for (int64_t row = 0; row < band.rows; row += LANES)
            sum_columns(std::min(row, band.rows - LANES), along_x, out);
    }

private:
    static constexpr int64_t UNROLLED = 4;

    template <int VECTORS>
    void sum_rows(const float* values, const float* from, float* to) const {
        Floats sums[VECTORS] = {};
        for (int64_t tap = 0; tap < band.taps; ++tap)
            for (int64_t i = 0; i < VECTORS; ++i)
                sums[i] += load(from + tap * band.columns + i * LANES) * values[tap];
        for (int64_t i = 0; i < VECTORS; ++i) store(to + i * LANES, sums[i]);
    }

    // LANES rows at once, transposed, so that the values to be summed are in different registers.
    void sum_columns(int64_t row, const float* along_x, float* out) {
        for (int64_t x = 0; x < band.columns; x += LANES) {
            const int64_t at = std::min(x, band.columns - LANES);
            transpose(&row_sums[row * band.columns + at], band.columns, &transposed[at * LANES], LANES);
        }
        float block[LANES * LANES];
        for (int64_t x = 0; x < band.rows; x += LANES) {
            const int64_t at = std::min(x, band.rows - LANES);
            for (int64_t i = 0; i < LANES; ++i) {
                const float* values = along_x + (at + i) * band.taps;
                const float* from = &transposed[band.first[at + i] * LANES];
                Floats even = {}, odd = {};
                int64_t tap = 0;
                for (; tap + 1 < band.taps; tap += 2) {
                    even += load(from + tap * LANES) * values[tap];
                    odd += load(from + (tap + 1) * LANES) * values[tap + 1];
                }
                if (tap < band.taps) even += load(from + tap * LANES) * values[tap];
                store(block + i * LANES, even + odd);
            }
            transpose(block, LANES, out + row * band.rows + at, band.rows);
        }
    }

    const Band& band;
    std::vector<float> row_sums, transposed;
};

// Applies the detector response to the planes of each image. Plane k of an image becomes plane position[k] of the n_out
// planes of its result.
inline void observe(
    const Band& band, int64_t images, int64_t planes, int64_t n_out, int64_t threads, const int64_t* position,
    const float* brightness, float* out
) {
#pragma omp parallel num_threads(threads)
    {
        DetectorResponse respond(band);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images * planes; ++i)
            respond(brightness + i * band.columns * band.columns,
                    out + (i / planes * n_out + position[i % planes]) * band.rows * band.rows);
    }
}

// A detector whose PSF may have a free width; the values of its band are then expanded to second order.
struct Detector {
    Band band;
    const float *first, *second;  // derivatives of the values by ln width, or null
    int64_t width;                // the index of ln width among the unknowns
};

// A function of position (fields.py): its values at n positions for one image. The unknowns of the images are its first
// argument.
struct Function {
    void (*values)(int64_t image, int64_t n, const float* const* arguments, float* values);
    const float* const* arguments;
    int64_t unknowns, planes;
};

// Observes the values of a function at a square of positions.
class FunctionResponse {
public:
    FunctionResponse(const Function& function, const Detector& detector)
        : function(function), detector(detector), band(detector.band), respond(band),
          brightness(function.planes * band.columns * band.columns) {
        if (!detector.first) return;
        wider.resize(band.rows * band.taps);
        change.resize(band.rows * band.taps);
        part.resize(band.rows * band.rows);
    }

    // Value k becomes plane position[k] of `out`. If there is more than one, the derivative of the first value by ln
    // width becomes plane `width`.
    void operator()(int64_t image, const int64_t* position, float* out) {
        const int64_t n = band.columns * band.columns, pixels = band.rows * band.rows;
        function.values(image, n, function.arguments, brightness.data());
        const float* values = detector.first ? widen(function.arguments[0][image * function.unknowns + detector.width])
                                             : band.values;
        for (int64_t k = 0; k < function.planes; ++k)
            respond(&brightness[k * n], values, values, out + position[k] * pixels);
        if (!detector.first || function.planes == 1) return;
        float* by_width = out + detector.width * pixels;
        respond(brightness.data(), values, change.data(), by_width);
        respond(brightness.data(), change.data(), values, part.data());
        for (int64_t i = 0; i < pixels; ++i) by_width[i] += part[i];
    }

private:
    const float* widen(float ln_width) {
        for (size_t i = 0; i < wider.size(); ++i) {
            const float first = detector.first[i], second = detector.second[i];
            wider[i] = band.values[i] + ln_width * (first + ln_width / 2 * second);
            change[i] = first + ln_width * second;
        }
        return wider.data();
    }

    const Function& function;
    const Detector& detector;
    const Band& band;
    DetectorResponse respond;
    std::vector<float> brightness, wider, change, part;
};

// As `observe`, of a function.
inline void observe_function(
    const Function& function, const Detector& detector, int64_t images, int64_t n_out, int64_t threads,
    const int64_t* position, float* out
) {
#pragma omp parallel num_threads(threads)
    {
        FunctionResponse respond(function, detector);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; ++image)
            respond(image, position, out + image * n_out * detector.band.rows * detector.band.rows);
    }
}

// The conversion between image units and photon counts, see darklens.fit.noise.Noise.
struct Photons {
    const float *gain, *exposure, *extra;  // (images, 2), (images, pixels) or (images, 1), (images)
    int64_t images, pixels, exposures;     // values of exposure per image: as many as pixels, or 1
    int64_t threads;
    double sky, area, smallest_rate;
};

class Counts {
public:
    Counts(const Photons& photons, int64_t image)
        : photons(photons),
          per_count(std::exp(photons.gain[2 * image])),
          exposure(photons.exposure + image * photons.exposures),
          offset(broadcast(photons.gain[2 * image + 1])),
          extra(broadcast(photons.extra[image])) {}

    Floats operator()(Floats value, int64_t pixel, int64_t n) const {
        const Floats bright = (value - offset) / per_count + float(photons.sky);
        return (bright * exposed(pixel, n) + extra) * float(photons.area);
    }

    Floats rate(Floats value, int64_t pixel, int64_t n) const {
        return clamp_min((*this)(value, pixel, n), float(photons.smallest_rate));
    }

    // The inverse variance in image units, for an expected number of photons.
    Floats weight(Floats rate, int64_t pixel, int64_t n) const {
        const Floats counts = exposed(pixel, n) * float(photons.area) / per_count;
        return counts * counts / rate;
    }

private:
    Floats exposed(int64_t pixel, int64_t n) const {
        return photons.exposures == 1 ? broadcast(exposure[0]) : load_partial(exposure + pixel, n);
    }

    const Photons& photons;
    const float per_count, *exposure;
    const Floats offset, extra;
};

// The weights and residuals of the pixels of an image, for `NormalEquations`.
struct PhotonPixels {
    Counts counts;
    const float *values, *expected;

    void operator()(int64_t at, int64_t n, float* weights, float* residuals) const {
        const Floats model = load_partial(expected + at, n);
        store(weights, keep_first(counts.weight(counts.rate(model, at, n), at, n), n));
        store(residuals, load_partial(values + at, n) - model);
    }
};

// J^T W J and J^T W r of an image: the sums over pixels of weight * slope * slope and of weight * slope * residual.
class NormalEquations {
public:
    NormalEquations(int64_t unknowns, int64_t pixels)
        : unknowns(unknowns), pixels(pixels), rows((unknowns + TILE) / TILE * TILE),  // with the residual, rounded up
          plain(rows * CHUNK, 0.0f), weighted(rows * CHUNK, 0.0f), weights(CHUNK), sums(rows * rows * LANES),
          right(rows) {}

    // `pixel` writes the weights and residuals of up to LANES pixels.
    template <typename Pixel>
    void operator()(const float* slopes, const Pixel& pixel, double* curvature, double* rhs) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t start = 0; start < pixels; start += CHUNK) {
            const int64_t n = std::min(CHUNK, pixels - start), whole = (n + LANES - 1) / LANES * LANES;
            for (int64_t i = 0; i < n; i += LANES)
                pixel(start + i, std::min(LANES, n - i), &weights[i], &plain[unknowns * CHUNK + i]);
            for (int64_t row = 0; row < rows; ++row) {
                right[row] = &plain[row * CHUNK];
                if (row > unknowns) continue;
                const float* from = slopes + row * pixels + start;
                if (row < unknowns && n == whole) right[row] = from;
                if (row < unknowns && n < whole) {
                    std::copy(from, from + n, &plain[row * CHUNK]);
                    std::fill(&plain[row * CHUNK] + n, &plain[row * CHUNK] + whole, 0.0f);
                }
                for (int64_t i = 0; i < n; i += LANES)
                    store(&weighted[row * CHUNK + i], load(right[row] + i) * load(&weights[i]));
            }
            for (int64_t i = 0; i < rows; i += TILE)
                for (int64_t j = 0; j <= i; j += TILE) add(i, j, whole);
        }
        for (int64_t i = 0; i < unknowns; ++i) {
            rhs[i] = sum_lanes(load(&sums[(unknowns * rows + i) * LANES]));
            for (int64_t j = 0; j <= i; ++j)
                curvature[i * unknowns + j] = curvature[j * unknowns + i] =
                    sum_lanes(load(&sums[(i * rows + j) * LANES]));
        }
    }

private:
    static constexpr int64_t CHUNK = 256, TILE = 3;

    void add(int64_t i, int64_t j, int64_t n) {
        Floats tile[TILE][TILE];
        for (int64_t a = 0; a < TILE * TILE; ++a)
            tile[a / TILE][a % TILE] = load(&sums[((i + a / TILE) * rows + j + a % TILE) * LANES]);
        for (int64_t x = 0; x < n; x += LANES) {
            Floats columns[TILE];
#pragma GCC unroll 3
            for (int64_t b = 0; b < TILE; ++b) columns[b] = load(right[j + b] + x);
#pragma GCC unroll 3
            for (int64_t a = 0; a < TILE; ++a) {
                const Floats left = load(&weighted[(i + a) * CHUNK + x]);
#pragma GCC unroll 3
                for (int64_t b = 0; b < TILE; ++b) tile[a][b] += left * columns[b];
            }
        }
        for (int64_t a = 0; a < TILE * TILE; ++a)
            store(&sums[((i + a / TILE) * rows + j + a % TILE) * LANES], tile[a / TILE][a % TILE]);
    }

    const int64_t unknowns, pixels, rows;
    std::vector<float> plain, weighted, weights, sums;
    std::vector<const float*> right;
};

// The normal equations of each image; pixels_of(image) is the `pixel` of that image. Its slopes are those of rows[image]
// or, without `rows`, of the image.
template <typename PixelsOf>
void normal_equations(
    int64_t images, int64_t unknowns, int64_t pixels, int64_t threads, const float* slopes, const int64_t* rows,
    double* curvature, double* rhs, const PixelsOf& pixels_of
) {
#pragma omp parallel num_threads(threads)
    {
        NormalEquations sums(unknowns, pixels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; ++i)
            sums(slopes + (rows ? rows[i] : i) * unknowns * pixels, pixels_of(i), curvature + i * unknowns * unknowns,
                 rhs + i * unknowns);
    }
}

// As `observe_function`, with the normal equations of each image while its derivatives are in the cache. The derivatives
// are those of rows[image] of `slopes`; without `slopes` they are not kept. Plane `scale` is the derivative by ln scale,
// and the next one, by the offset, is 1.
inline void linearise_function(
    const Function& function, const Detector& detector, int64_t scale, const int64_t* position, const Photons& photons,
    const float* images, const int64_t* rows, float* model, float* slopes, double* curvature, double* rhs
) {
    const int64_t unknowns = function.unknowns, pixels = photons.pixels;
#pragma omp parallel num_threads(photons.threads)
    {
        FunctionResponse respond(function, detector);
        NormalEquations sums(unknowns, pixels);
        std::vector<float> not_kept(slopes ? 0 : unknowns * pixels);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < photons.images; ++image) {
            float* derivatives = slopes ? slopes + rows[image] * unknowns * pixels : not_kept.data();
            respond(image, position, derivatives);
            std::fill_n(derivatives + (scale + 1) * pixels, pixels, 1.0f);
            const float* light = derivatives + scale * pixels;
            const float offset = function.arguments[0][image * unknowns + scale + 1];
            float* expected = model + image * pixels;
            for (int64_t i = 0; i < pixels; ++i) expected[i] = light[i] + offset;
            sums(derivatives, PhotonPixels{Counts(photons, image), images + image * pixels, expected},
                 curvature + image * unknowns * unknowns, rhs + image * unknowns);
        }
    }
}

// The Poisson deviance of each image: twice the log-likelihood ratio to a model that equals the counts.
inline void deviance(const Photons& photons, const float* images, const float* model, float* out) {
#pragma omp parallel for num_threads(photons.threads) schedule(static)
    for (int64_t image = 0; image < photons.images; ++image) {
        const Counts counts(photons, image);
        const float *values = images + image * photons.pixels, *expected = model + image * photons.pixels;
        double sum = 0;
        for (int64_t row = 0; row < photons.pixels; row += 64 * LANES) {  // float32 inside, double outside
            Floats partial = {};
            for (int64_t i = row; i < std::min(row + 64 * LANES, photons.pixels); i += LANES) {
                const int64_t n = std::min(LANES, photons.pixels - i);
                const Floats counted = clamp_min(counts(load_partial(values + i, n), i, n), 0.0f);
                const Floats rate = counts.rate(load_partial(expected + i, n), i, n);
                const Floats term = rate - counted + counted * ln(clamp_min(counted, 1e-30f) / rate);
                partial += n == LANES ? term : keep_first(term, n);
            }
            sum += sum_lanes(partial);
        }
        out[image] = float(2 * sum);
    }
}

inline void weight(const Photons& photons, const float* model, float* out) {
#pragma omp parallel for num_threads(photons.threads) schedule(static)
    for (int64_t image = 0; image < photons.images; ++image) {
        const Counts counts(photons, image);
        const float* expected = model + image * photons.pixels;
        for (int64_t i = 0; i < photons.pixels; i += LANES) {
            const int64_t n = std::min(LANES, photons.pixels - i);
            const Floats rate = counts.rate(load_partial(expected + i, n), i, n);
            store_partial(out + image * photons.pixels + i, counts.weight(rate, i, n), n);
        }
    }
}
