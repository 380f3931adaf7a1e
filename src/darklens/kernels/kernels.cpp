// The functions that Python calls. Arrays are contiguous and of float32, but where a type says otherwise.

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
    const Band* band, int64_t images, int64_t planes, int64_t places, int64_t threads, const int64_t* place,
    const float* brightness, float* out
) {
    observe(*band, images, planes, places, threads, place, brightness, out);
}

extern "C" void fit_lensed(
    const Band* band, int64_t images, int64_t places, int64_t threads, const int64_t* place, const float* x,
    const float* y, const float* spheres, float* out
) {
    lensed(*band, images, places, threads, place, x, y, reinterpret_cast<const Sphere*>(spheres), out);
}

extern "C" void fit_normal_equations(
    int64_t images, int64_t unknowns, int64_t pixels, int64_t threads, const float* slopes, const float* weight,
    const float* difference, double* curvature, double* pull
) {
    normal_equations(images, unknowns, pixels, threads, slopes, curvature, pull, [=](int64_t image) {
        return [=](int64_t at, int64_t n, float* its_weight, float* its_difference) {
            store(its_weight, load_some(weight + image * pixels + at, n));
            store(its_difference, load_some(difference + image * pixels + at, n));
        };
    });
}

extern "C" void fit_normal_equations_of_photons(
    const Photons* photons, int64_t unknowns, const float* slopes, const float* images, const float* model,
    double* curvature, double* pull
) {
    const int64_t pixels = photons->pixels;
    normal_equations(photons->images, unknowns, pixels, photons->threads, slopes, curvature, pull, [=](int64_t image) {
        const Counts counts(*photons, image);
        return [=](int64_t at, int64_t n, float* its_weight, float* its_difference) {
            const Floats its = load_some(model + image * pixels + at, n);
            store(its_weight, first(counts.weight(counts.rate(its, at, n), at, n), n));
            store(its_difference, load_some(images + image * pixels + at, n) - its);
        };
    });
}

extern "C" void fit_deviance(const Photons* photons, const float* images, const float* model, float* out) {
    deviance(*photons, images, model, out);
}

extern "C" void fit_weight(const Photons* photons, const float* model, float* out) { weight(*photons, model, out); }

extern "C" int64_t lanes() { return LANES; }
