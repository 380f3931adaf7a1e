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

    void operator()(const float* plane, float* out) {
        for (int64_t row = 0; row < band.rows; ++row) {
            const float* from = plane + band.first[row] * band.columns;
            float* to = &row_sums[row * band.columns];
            int64_t x = 0;
            for (; x + UNROLLED * LANES <= band.columns; x += UNROLLED * LANES)
                sum_rows<UNROLLED>(row, from + x, to + x);
            for (; x < band.columns; x += LANES) {
                const int64_t at = std::min(x, band.columns - LANES);
                sum_rows<1>(row, from + at, to + at);
            }
        }
        for (int64_t row = 0; row < band.rows; row += LANES) sum_columns(std::min(row, band.rows - LANES), out);
    }

private:
    static constexpr int64_t UNROLLED = 4;

    template <int VECTORS>
    void sum_rows(int64_t row, const float* from, float* to) const {
        Floats sums[VECTORS] = {};
        for (int64_t tap = 0; tap < band.taps; ++tap)
            for (int64_t i = 0; i < VECTORS; ++i)
                sums[i] += load(from + tap * band.columns + i * LANES) * band.values[row * band.taps + tap];
        for (int64_t i = 0; i < VECTORS; ++i) store(to + i * LANES, sums[i]);
    }

    // LANES rows at once, transposed, so that the values to be summed are in different registers.
    void sum_columns(int64_t row, float* out) {
        for (int64_t x = 0; x < band.columns; x += LANES) {
            const int64_t at = std::min(x, band.columns - LANES);
            transpose(&row_sums[row * band.columns + at], band.columns, &transposed[at * LANES], LANES);
        }
        float block[LANES * LANES];
        for (int64_t x = 0; x < band.rows; x += LANES) {
            const int64_t at = std::min(x, band.rows - LANES);
            for (int64_t i = 0; i < LANES; ++i) {
                const float* values = band.values + (at + i) * band.taps;
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

// A singular isothermal sphere with external shear and a Sersic source, for one image; the laws are in
// darklens.fit.smooth.SmoothLens.scene. Fields are in the order of darklens.kernels.smooth_fit.TERMS.
struct IsothermalLens {
    float theta_E, gamma1, gamma2, centre_x, centre_y, source_x, source_y, e1, e2;
    float per_n, power_offset, peak;     // 1/n, ln b - ln(R_e)/n, ln amplitude + b
    float ln_b, b_by_ln_n, ln_b_by_ln_n;
    float scale;

    static constexpr int64_t DERIVATIVES = 11;

    // Which derivatives are requested, by their position in the result.
    struct Requested {
        explicit Requested(const int64_t* position)
            : any(any_of(position, 1, DERIVATIVES)), profile(any_of(position, 8, 9)),
              centre(any_of(position, 10, 11)) {}

        static bool any_of(const int64_t* position, int64_t first, int64_t last) {
            return std::any_of(position + first, position + last + 1, [](int64_t index) { return index >= 0; });
        }

        const bool any, profile, centre;
    };

    // Surface brightness, then its derivatives with respect to theta_E, gamma1, gamma2, the source's x, y, e1, e2,
    // ln R_e, ln n, and the x and y of the lens centre.
    void operator()(Floats x, Floats y, Floats* out, const Requested& requested) const {
        x -= centre_x, y -= centre_y;
        const Floats squared_radius = x * x + y * y;
        const Floats inverse_radius = squared_radius > 0 ? inverse_root(squared_radius) : Floats{};
        const Floats along_x = x * inverse_radius, along_y = y * inverse_radius;
        const Floats u = x - (gamma1 * x + gamma2 * y) - theta_E * along_x - source_x;
        const Floats v = y - (gamma2 * x - gamma1 * y) - theta_E * along_y - source_y;
        const float inverse = 1 / (1 - e1 * e1 - e2 * e2), round = 2 - 1 / inverse;
        const Floats difference = u * u - v * v, product = 2 * u * v, circular = u * u + v * v;
        const Floats squared = clamp_min((round * circular - 2 * (e1 * difference + e2 * product)) * inverse, SMALLEST);
        const Floats ln_power = ln(squared) * (per_n / 2) + power_offset, power = exp(ln_power);
        const Floats brightness = exp(peak - power) * scale;
        out[0] = brightness;
        if (!requested.any) return;
        const Floats rate = brightness * power, by_half_square = rate / squared * -per_n;
        const Floats by_u = by_half_square * ((round - 2 * e1) * u - 2 * e2 * v) * inverse;
        const Floats by_v = by_half_square * ((round + 2 * e1) * v - 2 * e2 * u) * inverse;
        out[1] = -(by_u * along_x + by_v * along_y);
        out[2] = by_v * y - by_u * x;
        out[3] = -(by_u * y + by_v * x);
        out[4] = -by_u;
        out[5] = -by_v;
        out[6] = by_half_square * inverse * (e1 * (circular + squared) - difference);
        out[7] = by_half_square * inverse * (e2 * (circular + squared) - product);
        if (requested.profile) {
            out[8] = rate * per_n;
            out[9] = b_by_ln_n * brightness - rate * (ln_b_by_ln_n - (ln_power - ln_b));
        }
        if (requested.centre) {
            const Floats across = theta_E * inverse_radius, xy = gamma2 - across * along_x * along_y;
            out[10] = by_u * (across * along_y * along_y + gamma1 - 1) + by_v * xy;
            out[11] = by_u * xy + by_v * (across * along_x * along_x - gamma1 - 1);
        }
    }

private:
    static constexpr float SMALLEST = 1e-12f;  // arcsec^2
};

// Images of such lenses on the detector, and their derivatives. Plane k of IsothermalLens becomes plane position[k] of
// the n_out planes of the result; a negative position[k] leaves it out. x and y are the band's coordinates.
inline void lensed(
    const Band& band, int64_t images, int64_t n_out, int64_t threads, const int64_t* position, const float* x,
    const float* y, const IsothermalLens* lenses, float* out
) {
    const int64_t samples = band.columns * band.columns;
    const IsothermalLens::Requested requested(position);
#pragma omp parallel num_threads(threads)
    {
        DetectorResponse respond(band);
        std::vector<float> planes((IsothermalLens::DERIVATIVES + 1) * samples);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; ++image) {
            for (int64_t row = 0; row < band.columns; ++row)
                for (int64_t i = 0; i < band.columns; i += LANES) {
                    const int64_t column = std::min(i, band.columns - LANES);
                    Floats values[IsothermalLens::DERIVATIVES + 1];
                    lenses[image](load(x + column), broadcast(y[row]), values, requested);
                    for (int64_t k = 0; k <= IsothermalLens::DERIVATIVES; ++k)
                        if (position[k] >= 0) store(&planes[k * samples + row * band.columns + column], values[k]);
                }
            for (int64_t k = 0; k <= IsothermalLens::DERIVATIVES; ++k)
                if (position[k] >= 0)
                    respond(&planes[k * samples], out + (image * n_out + position[k]) * band.rows * band.rows);
        }
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

// The normal equations of each image; pixels_of(image) is the `pixel` of that image.
template <typename PixelsOf>
void normal_equations(
    int64_t images, int64_t unknowns, int64_t pixels, int64_t threads, const float* slopes, double* curvature,
    double* rhs, const PixelsOf& pixels_of
) {
#pragma omp parallel num_threads(threads)
    {
        NormalEquations sums(unknowns, pixels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; ++i)
            sums(slopes + i * unknowns * pixels, pixels_of(i), curvature + i * unknowns * unknowns,
                 rhs + i * unknowns);
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
