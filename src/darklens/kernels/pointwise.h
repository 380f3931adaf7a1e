// Normalisation, the sum with other values, ReLU: each value by itself once the statistics are known.
#pragma once

#include <algorithm>

#include "moments.h"
#include "windows.h"

template <typename T>
class Pointwise {
public:
    explicit Pointwise(const Shape& shape)
        : shape(shape),
          channels(shape.channels),
          pixels(shape.images * shape.height * shape.width),
          blocks((pixels + PIXELS - 1) / PIXELS) {}

    // `other` may be null.
    void forward(const Layer& layer, const T* x, const T* other, bool activate, T* out) const {
        Sums sums(blocks, channels);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t c = 0; c < channels; c += LANES) {
                Moments moments(load(x + first(i) + c));
                for (int64_t at = first(i) + c; at < first(i + 1); at += channels) moments.add(load(x + at));
                moments.finish((first(i + 1) - first(i)) / channels, sums.first(i) + c, sums.second(i) + c);
            }
        settle(sums, channels, double(pixels), layer);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t c = 0; c < channels; c += LANES) {
                const Normalise normalise(layer, c);
                for (int64_t at = first(i) + c; at < first(i + 1); at += channels) {
                    Floats value = normalise(load(x + at));
                    if (other) value += load(other + at);
                    store(out + at, activate ? relu(value) : value);
                }
            }
    }

    // `out` is null if there is no ReLU, `d_other` if nobody wants it.
    void backward(
        const Layer& layer, const T* x, const T* out, const T* gradient, T* d_x, T* d_other, float* d_scale,
        float* d_shift
    ) const {
        Sums sums(blocks, channels);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t c = 0; c < channels; c += LANES) {
                const Floats mean = load(layer.mean + c);
                Floats sum = {}, products = {};
                for (int64_t at = first(i) + c; at < first(i + 1); at += channels) {
                    const Floats open = passed(out, gradient, at);
                    sum += open;
                    products += open * (load(x + at) - mean);
                }
                add(sums.first(i) + c, sum);
                add(sums.second(i) + c, products);
            }
        const Backward by(sums, channels, double(pixels), layer, d_scale, d_shift);
#pragma omp parallel for num_threads(shape.threads) schedule(dynamic)
        for (int64_t i = 0; i < blocks; ++i)
            for (int64_t c = 0; c < channels; c += LANES) {
                const auto of = by.of(c);
                for (int64_t at = first(i) + c; at < first(i + 1); at += channels) {
                    const Floats open = passed(out, gradient, at);
                    if (d_other) store(d_other + at, open);
                    store(d_x + at, of(open, load(x + at)));
                }
            }
    }

private:
    static constexpr int64_t PIXELS = 128;  // in a block

    int64_t first(int64_t block) const { return std::min(block * PIXELS, pixels) * channels; }

    // What ReLU lets through of the gradient.
    static Floats passed(const T* out, const T* gradient, int64_t at) {
        const Floats whole = load(gradient + at);
        if (out == nullptr) return whole;
        return load(out + at) <= 0 ? Floats{} : whole;
    }

    const Shape& shape;
    const int64_t channels, pixels, blocks;
};
