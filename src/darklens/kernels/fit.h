// What each step of a fit does with images, each in one pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "vectors.h"

// A matrix whose rows are runs of values among zeros: (rows, taps), and the column at which each run starts.
struct Band {
    const float* values;
    const int64_t* first;
    int64_t rows, columns, taps;
};

// band * plane * band^T of square planes: what pixels see of brightness. Rows and columns are at least LANES.
class Seen {
public:
    explicit Seen(const Band& band) : band(band), across(band.rows * band.columns), turned(band.columns * LANES) {}

    void operator()(const float* plane, float* out) {
        for (int64_t row = 0; row < band.rows; ++row) {
            const float* from = plane + band.first[row] * band.columns;
            float* to = &across[row * band.columns];
            int64_t x = 0;
            for (; x + MANY * LANES <= band.columns; x += MANY * LANES) sum_rows<MANY>(row, from + x, to + x);
            for (; x < band.columns; x += LANES) {
                const int64_t at = std::min(x, band.columns - LANES);
                sum_rows<1>(row, from + at, to + at);
            }
        }
        for (int64_t row = 0; row < band.rows; row += LANES) sum_columns(std::min(row, band.rows - LANES), out);
    }

private:
    static constexpr int64_t MANY = 4;

    template <int VECTORS>
    void sum_rows(int64_t row, const float* from, float* to) const {
        Floats sums[VECTORS] = {};
        for (int64_t tap = 0; tap < band.taps; ++tap)
            for (int64_t i = 0; i < VECTORS; ++i)
                sums[i] += load(from + tap * band.columns + i * LANES) * band.values[row * band.taps + tap];
        for (int64_t i = 0; i < VECTORS; ++i) store(to + i * LANES, sums[i]);
    }

    // Some rows at once: turned, so that what is summed lies in different registers.
    void sum_columns(int64_t row, float* out) {
        for (int64_t x = 0; x < band.columns; x += LANES) {
            const int64_t at = std::min(x, band.columns - LANES);
            turn(&across[row * band.columns + at], band.columns, &turned[at * LANES], LANES);
        }
        float block[LANES * LANES];
        for (int64_t x = 0; x < band.rows; x += LANES) {
            const int64_t at = std::min(x, band.rows - LANES);
            for (int64_t i = 0; i < LANES; ++i) {
                const float *values = band.values + (at + i) * band.taps, *from = &turned[band.first[at + i] * LANES];
                Floats even = {}, odd = {};
                int64_t tap = 0;
                for (; tap + 1 < band.taps; tap += 2) {
                    even += load(from + tap * LANES) * values[tap];
                    odd += load(from + (tap + 1) * LANES) * values[tap + 1];
                }
                if (tap < band.taps) even += load(from + tap * LANES) * values[tap];
                store(block + i * LANES, even + odd);
            }
            turn(block, LANES, out + row * band.rows + at, band.rows);
        }
    }

    const Band& band;
    std::vector<float> across, turned;
};

// Planes of each image go to places of their own among those of the result.
inline void observe(
    const Band& band, int64_t images, int64_t planes, int64_t places, int64_t threads, const int64_t* place,
    const float* brightness, float* out
) {
#pragma omp parallel num_threads(threads)
    {
        Seen seen(band);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images * planes; ++i)
            seen(brightness + i * band.columns * band.columns,
                 out + (i / planes * places + place[i % planes]) * band.rows * band.rows);
    }
}

// A singular isothermal sphere with shear before Sersic light: darklens.fit.smooth.SmoothLens.scene, which see for the
// laws, of one image. Its numbers are in the order of darklens.kernels.fits.SPHERE.
struct Sphere {
    float theta_E, gamma1, gamma2, centre_x, centre_y, source_x, source_y, e1, e2;
    float per_n, power_offset, peak;     // 1/n, ln b - ln(R_e)/n, ln amplitude + b
    float ln_b, b_by_ln_n, ln_b_by_ln_n;
    float scale;

    static constexpr int64_t SLOPES = 11;

    // Which derivatives are asked for.
    struct Wanted {
        explicit Wanted(const int64_t* place)
            : any(some(place, 1, SLOPES)), profile(some(place, 8, 9)), lens_place(some(place, 10, 11)) {}

        static bool some(const int64_t* place, int64_t first, int64_t last) {
            return std::any_of(place + first, place + last + 1, [](int64_t its) { return its >= 0; });
        }

        const bool any, profile, lens_place;
    };

    // Brightness, then its derivatives by theta_E, gamma1, gamma2, the source's x, y, e1, e2, ln R_e, ln n, the
    // lens' x and y.
    void operator()(Floats x, Floats y, Floats* out, const Wanted& wanted) const {
        x -= centre_x, y -= centre_y;
        const Floats squared_radius = x * x + y * y;
        const Floats inverse_radius = squared_radius > 0 ? inverse_root(squared_radius) : Floats{};
        const Floats along_x = x * inverse_radius, along_y = y * inverse_radius;
        const Floats u = x - (gamma1 * x + gamma2 * y) - theta_E * along_x - source_x;
        const Floats v = y - (gamma2 * x - gamma1 * y) - theta_E * along_y - source_y;
        const float inverse = 1 / (1 - e1 * e1 - e2 * e2), round = 2 - 1 / inverse;
        const Floats difference = u * u - v * v, product = 2 * u * v, circular = u * u + v * v;
        const Floats squared = at_least((round * circular - 2 * (e1 * difference + e2 * product)) * inverse, SMALLEST);
        const Floats ln_power = ln(squared) * (per_n / 2) + power_offset, power = exp(ln_power);
        const Floats brightness = exp(peak - power) * scale;
        out[0] = brightness;
        if (!wanted.any) return;
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
        if (wanted.profile) {
            out[8] = rate * per_n;
            out[9] = b_by_ln_n * brightness - rate * (ln_b_by_ln_n - (ln_power - ln_b));
        }
        if (wanted.lens_place) {
            const Floats across = theta_E * inverse_radius, xy = gamma2 - across * along_x * along_y;
            out[10] = by_u * (across * along_y * along_y + gamma1 - 1) + by_v * xy;
            out[11] = by_u * xy + by_v * (across * along_x * along_x - gamma1 - 1);
        }
    }

private:
    static constexpr float SMALLEST = 1e-12f;  // arcsec^2
};

// What pixels see of such lenses, and its derivatives; `place` is that of each plane of Sphere among those of the
// result, negative: none. x and y are those of the band's columns.
inline void lensed(
    const Band& band, int64_t images, int64_t places, int64_t threads, const int64_t* place, const float* x,
    const float* y, const Sphere* spheres, float* out
) {
    const int64_t samples = band.columns * band.columns;
    const Sphere::Wanted wanted(place);
#pragma omp parallel num_threads(threads)
    {
        Seen seen(band);
        std::vector<float> planes((Sphere::SLOPES + 1) * samples);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; ++image) {
            for (int64_t row = 0; row < band.columns; ++row)
                for (int64_t i = 0; i < band.columns; i += LANES) {
                    const int64_t column = std::min(i, band.columns - LANES);
                    Floats values[Sphere::SLOPES + 1];
                    spheres[image](load(x + column), all(y[row]), values, wanted);
                    for (int64_t k = 0; k <= Sphere::SLOPES; ++k)
                        if (place[k] >= 0) store(&planes[k * samples + row * band.columns + column], values[k]);
                }
            for (int64_t k = 0; k <= Sphere::SLOPES; ++k)
                if (place[k] >= 0)
                    seen(&planes[k * samples], out + (image * places + place[k]) * band.rows * band.rows);
        }
    }
}

// Photon counts of images on a detector, see darklens.fit.noise.Noise.
struct Photons {
    const float *gain, *exposure, *extra;  // (images, 2), (images, pixels) or (images, 1), (images)
    int64_t images, pixels, exposures;     // exposures of an image: as many as pixels, or 1
    int64_t threads;
    double sky, area, smallest_rate;
};

class Counts {
public:
    Counts(const Photons& photons, int64_t image)
        : photons(photons),
          per_count(std::exp(photons.gain[2 * image])),
          exposure(photons.exposure + image * photons.exposures),
          offset(all(photons.gain[2 * image + 1])),
          extra(all(photons.extra[image])) {}

    Floats operator()(Floats value, int64_t pixel, int64_t n) const {
        const Floats bright = (value - offset) / per_count + float(photons.sky);
        return (bright * exposed(pixel, n) + extra) * float(photons.area);
    }

    Floats rate(Floats value, int64_t pixel, int64_t n) const {
        return at_least((*this)(value, pixel, n), float(photons.smallest_rate));
    }

    // One over the variance where the rate is so high, in image units.
    Floats weight(Floats rate, int64_t pixel, int64_t n) const {
        const Floats counts = exposed(pixel, n) * float(photons.area) / per_count;
        return counts * counts / rate;
    }

private:
    Floats exposed(int64_t pixel, int64_t n) const {
        return photons.exposures == 1 ? all(exposure[0]) : load_some(exposure + pixel, n);
    }

    const Photons& photons;
    const float per_count, *exposure;
    const Floats offset, extra;
};

// Sums over the pixels of an image of weight * slope * slope, and of weight * slope * difference.
class NormalEquations {
public:
    NormalEquations(int64_t unknowns, int64_t pixels)
        : unknowns(unknowns), pixels(pixels), rows((unknowns + TILE) / TILE * TILE),  // with the difference, rounded up
          plain(rows * CHUNK, 0.0f), weighted(rows * CHUNK, 0.0f), weights(CHUNK), sums(rows * rows * LANES),
          right(rows) {}

    // `pixel` gives weight and difference of some pixels.
    template <typename Pixel>
    void operator()(const float* slopes, const Pixel& pixel, double* curvature, double* pull) {
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
            pull[i] = total(load(&sums[(unknowns * rows + i) * LANES]));
            for (int64_t j = 0; j <= i; ++j)
                curvature[i * unknowns + j] = curvature[j * unknowns + i] = total(load(&sums[(i * rows + j) * LANES]));
        }
    }

private:
    static constexpr int64_t CHUNK = 256, TILE = 3;

    void add(int64_t i, int64_t j, int64_t n) {
        Floats tile[TILE][TILE];
        for (int64_t a = 0; a < TILE * TILE; ++a)
            tile[a / TILE][a % TILE] = load(&sums[((i + a / TILE) * rows + j + a % TILE) * LANES]);
        for (int64_t x = 0; x < n; x += LANES) {
            Floats its[TILE];
#pragma GCC unroll 3
            for (int64_t b = 0; b < TILE; ++b) its[b] = load(right[j + b] + x);
#pragma GCC unroll 3
            for (int64_t a = 0; a < TILE; ++a) {
                const Floats left = load(&weighted[(i + a) * CHUNK + x]);
#pragma GCC unroll 3
                for (int64_t b = 0; b < TILE; ++b) tile[a][b] += left * its[b];
            }
        }
        for (int64_t a = 0; a < TILE * TILE; ++a)
            store(&sums[((i + a / TILE) * rows + j + a % TILE) * LANES], tile[a / TILE][a % TILE]);
    }

    const int64_t unknowns, pixels, rows;
    std::vector<float> plain, weighted, weights, sums;
    std::vector<const float*> right;
};

// Those of images; `pixels_of` gives what gives weights and differences of an image.
template <typename PixelsOf>
void normal_equations(
    int64_t images, int64_t unknowns, int64_t pixels, int64_t threads, const float* slopes, double* curvature,
    double* pull, const PixelsOf& pixels_of
) {
#pragma omp parallel num_threads(threads)
    {
        NormalEquations sums(unknowns, pixels);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < images; ++i)
            sums(slopes + i * unknowns * pixels, pixels_of(i), curvature + i * unknowns * unknowns,
                 pull + i * unknowns);
    }
}

// Twice the log-likelihood that a perfect model would gain.
inline void deviance(const Photons& photons, const float* images, const float* model, float* out) {
#pragma omp parallel for num_threads(photons.threads) schedule(static)
    for (int64_t image = 0; image < photons.images; ++image) {
        const Counts counts(photons, image);
        const float *values = images + image * photons.pixels, *its = model + image * photons.pixels;
        double sum = 0;
        for (int64_t row = 0; row < photons.pixels; row += 64 * LANES) {  // in float32 over some, in double beyond
            Floats some = {};
            for (int64_t i = row; i < std::min(row + 64 * LANES, photons.pixels); i += LANES) {
                const int64_t n = std::min(LANES, photons.pixels - i);
                const Floats seen = at_least(counts(load_some(values + i, n), i, n), 0.0f);
                const Floats rate = counts.rate(load_some(its + i, n), i, n);
                const Floats part = rate - seen + seen * ln(at_least(seen, 1e-30f) / rate);
                some += n == LANES ? part : first(part, n);
            }
            sum += total(some);
        }
        out[image] = float(2 * sum);
    }
}

inline void weight(const Photons& photons, const float* model, float* out) {
#pragma omp parallel for num_threads(photons.threads) schedule(static)
    for (int64_t image = 0; image < photons.images; ++image) {
        const Counts counts(photons, image);
        const float* its = model + image * photons.pixels;
        for (int64_t i = 0; i < photons.pixels; i += LANES) {
            const int64_t n = std::min(LANES, photons.pixels - i);
            const Floats rate = counts.rate(load_some(its + i, n), i, n);
            store_some(out + image * photons.pixels + i, counts.weight(rate, i, n), n);
        }
    }
}
