// The functions that Python calls. Arrays are contiguous, and float32 unless their type says otherwise.

#include "fit.h"
#include "splat.h"

extern "C" void splat_forward(
    const Shape* shape, const float* light, const float* column, const float* row, float* total
) {
    Splat(*shape, column, row).forward(light, total);
}

extern "C" void splat_backward(
    const Shape* shape, const float* light, const float* column, const float* row, const float* d_total,
    float* d_light, float* d_column, float* d_row
) {
    Splat(*shape, column, row).backward(light, d_total, d_light, d_column, d_row);
}

extern "C" void fit_observe(
    const Band* band, int64_t images, int64_t planes, int64_t n_out, int64_t threads, const int64_t* position,
    const float* brightness, float* out
) {
    observe(*band, images, planes, n_out, threads, position, brightness, out);
}

extern "C" void fit_observe_function(
    Function function, const float* const* arguments, const Band* band, int64_t planes, int64_t images, int64_t n_out,
    int64_t threads, const int64_t* position, float* out
) {
    observe_function(function, arguments, *band, planes, images, n_out, threads, position, out);
}

extern "C" void fit_normal_equations(
    int64_t images, int64_t unknowns, int64_t pixels, int64_t threads, const float* slopes, const float* weight,
    const float* residual, double* curvature, double* rhs
) {
    normal_equations(images, unknowns, pixels, threads, slopes, nullptr, curvature, rhs, [=](int64_t image) {
        return [=](int64_t at, int64_t n, float* weights, float* residuals) {
            store(weights, load_partial(weight + image * pixels + at, n));
            store(residuals, load_partial(residual + image * pixels + at, n));
        };
    });
}

extern "C" void fit_normal_equations_of_photons(
    const Photons* photons, int64_t unknowns, const float* slopes, const int64_t* rows, const float* images,
    const float* model, double* curvature, double* rhs
) {
    const int64_t pixels = photons->pixels, n = photons->images, threads = photons->threads;
    normal_equations(n, unknowns, pixels, threads, slopes, rows, curvature, rhs, [=](int64_t image) {
        const Counts counts(*photons, image);
        return [=](int64_t at, int64_t n, float* weights, float* residuals) {
            const Floats expected = load_partial(model + image * pixels + at, n);
            store(weights, keep_first(counts.weight(counts.rate(expected, at, n), at, n), n));
            store(residuals, load_partial(images + image * pixels + at, n) - expected);
        };
    });
}

extern "C" void fit_deviance(const Photons* photons, const float* images, const float* model, float* out) {
    deviance(*photons, images, model, out);
}

extern "C" void fit_weight(const Photons* photons, const float* model, float* out) { weight(*photons, model, out); }

extern "C" int64_t lanes() { return LANES; }
