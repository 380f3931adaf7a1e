// What Python calls. Arrays are in channels-last order, of float32 or bfloat16; channels a multiple of LANES.

#include "convolution.h"
#include "first.h"
#include "fit.h"
#include "linear.h"
#include "pointwise.h"
#include "splat.h"
#include "unfold.h"

#define POOL(T, NAME, KERNEL, STRIDE, PADDING)                                                                        \
    extern "C" void NAME##_forward(                                                                                   \
        const Shape* shape, const Layer* layer, const T* x, T* extrema, uint8_t* places, T* out                       \
    ) {                                                                                                               \
        Pool<T, KERNEL, STRIDE, PADDING>::forward(*shape, *layer, x, extrema, places, out);                           \
    }                                                                                                                 \
    extern "C" void NAME##_backward(                                                                                  \
        const Shape* shape, const Layer* layer, const T* x, const T* extrema, const uint8_t* places,                  \
        const T* gradient, T* d_x, float* d_scale, float* d_shift                                                     \
    ) {                                                                                                               \
        Pool<T, KERNEL, STRIDE, PADDING>::backward(*shape, *layer, x, extrema, places, gradient, d_x, d_scale,        \
                                                   d_shift);                                                          \
    }

POOL(float, pool_2_2_0_float32, 2, 2, 0)
POOL(BFloat16, pool_2_2_0_bfloat16, 2, 2, 0)
POOL(float, pool_3_2_1_float32, 3, 2, 1)
POOL(BFloat16, pool_3_2_1_bfloat16, 3, 2, 1)

#define FIRST(T, NAME, KERNEL)                                                                                        \
    extern "C" void NAME##_forward(                                                                                   \
        const Shape* shape, const Convolution* convolution, const Layer* layer, T* extrema, uint8_t* places, T* out   \
    ) {                                                                                                               \
        First<T, KERNEL>(*shape, *convolution).forward(*layer, extrema, places, out);                                 \
    }                                                                                                                 \
    extern "C" void NAME##_backward(                                                                                  \
        const Shape* shape, const Convolution* convolution, const Layer* layer, const T* extrema,                     \
        const uint8_t* places, const T* gradient, float* d_weights, float* d_scale, float* d_shift                    \
    ) {                                                                                                               \
        First<T, KERNEL>(*shape, *convolution)                                                                        \
            .backward(*layer, extrema, places, gradient, d_weights, d_scale, d_shift);                                \
    }

FIRST(float, first_5_float32, 5)
FIRST(BFloat16, first_5_bfloat16, 5)

#define POINTWISE(T, NAME)                                                                                            \
    extern "C" void NAME##_forward(                                                                                   \
        const Shape* shape, const Layer* layer, const T* x, const T* other, int64_t activate, T* out                  \
    ) {                                                                                                               \
        Pointwise<T>(*shape).forward(*layer, x, other, activate != 0, out);                                           \
    }                                                                                                                 \
    extern "C" void NAME##_backward(                                                                                  \
        const Shape* shape, const Layer* layer, const T* x, const T* out, const T* gradient, T* d_x, T* d_other,      \
        float* d_scale, float* d_shift                                                                                \
    ) {                                                                                                               \
        Pointwise<T>(*shape).backward(*layer, x, out, gradient, d_x, d_other, d_scale, d_shift);                      \
    }

POINTWISE(float, pointwise_float32)
POINTWISE(BFloat16, pointwise_bfloat16)

extern "C" void unfold_bfloat16(const Shape* shape, const Side* side, const BFloat16* x, BFloat16* columns) {
    unfold(*shape, *side, x, columns);
}

extern "C" void fold_bfloat16(const Shape* shape, const Side* side, const BFloat16* columns, BFloat16* x) {
    fold(*shape, *side, columns, x);
}

#ifdef TILES
#define CONVOLUTION(NAME, KERNEL)                                                                                     \
    extern "C" void NAME##_forward(                                                                                   \
        const Shape* shape, const Side* side, int64_t outputs, const BFloat16* x, const float* weights, BFloat16* y   \
    ) {                                                                                                               \
        convolve<KERNEL>(*shape, *side, outputs, x, weights, y);                                                      \
    }                                                                                                                 \
    extern "C" void NAME##_backward(                                                                                  \
        const Shape* shape, const Side* side, int64_t outputs, const BFloat16* gradient, const float* weights,        \
        BFloat16* d_x                                                                                                 \
    ) {                                                                                                               \
        convolve_back<KERNEL>(*shape, *side, outputs, gradient, weights, d_x);                                        \
    }                                                                                                                 \
    extern "C" void NAME##_weights(                                                                                   \
        const Shape* shape, const Side* side, int64_t outputs, const BFloat16* x, const BFloat16* gradient,           \
        float* d_weights                                                                                              \
    ) {                                                                                                               \
        WeightGradient<KERNEL>(*shape, *side, outputs)(x, gradient, d_weights);                                       \
    }

CONVOLUTION(convolution_1, 1)
CONVOLUTION(convolution_3, 3)

extern "C" void linear_forward(
    int64_t images, int64_t inputs, int64_t outputs, int64_t threads, const BFloat16* x, const float* weight, float* y
) {
    Linear(images, inputs, outputs, threads).forward(x, weight, y);
}

extern "C" void linear_backward(
    int64_t images, int64_t inputs, int64_t outputs, int64_t threads, const BFloat16* gradient, const float* weight,
    float* d_x
) {
    Linear(images, inputs, outputs, threads).backward_images(gradient, weight, d_x);
}

extern "C" void linear_weights(
    int64_t images, int64_t inputs, int64_t outputs, int64_t threads, const BFloat16* gradient, const BFloat16* x,
    float* d_weight
) {
    Linear(images, inputs, outputs, threads).backward_weight(gradient, x, d_weight);
}
#endif

extern "C" int64_t tiles() { return tiles_allowed(); }

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
