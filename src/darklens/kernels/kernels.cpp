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
    const Function* function, const Detector* detector, int64_t images, int64_t n_out, int64_t threads,
    const int64_t* position, float* out
) {
    observe_function(*function, *detector, images, n_out, threads, position, out);
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
        return PhotonPixels{Counts(*photons, image), images + image * pixels, model + image * pixels};
    });
}

extern "C" void fit_linearise_function(
    const Function* function, const Detector* detector, int64_t scale, const int64_t* position, const Photons* photons,
    const float* images, const int64_t* rows, float* model, float* slopes, double* curvature, double* rhs
) {
    linearise_function(*function, *detector, scale, position, *photons, images, rows, model, slopes, curvature, rhs);
}

extern "C" void fit_deviance(const Photons* photons, const float* images, const float* model, float* out) {
    deviance(*photons, images, model, out);
}

extern "C" void fit_weight(const Photons* photons, const float* model, float* out) { weight(*photons, model, out); }

extern "C" int64_t lanes() { return LANES; }
