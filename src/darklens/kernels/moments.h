// The sums over pixels that a batch normalisation is made of.
//
// Sums are in float32 over a row of pixels and in double beyond; each block of rows has its own, which are added in
// the order of the blocks. So a result does not depend on the number of threads.
#pragma once

#include <cmath>
#include <vector>

#include "vectors.h"

// Two sums for each channel and block.
class Sums {
public:
    Sums(int64_t blocks, int64_t channels) : blocks(blocks), channels(channels), values(2 * blocks * channels, 0.0) {}

    double* first(int64_t block) { return values.data() + 2 * block * channels; }
    double* second(int64_t block) { return first(block) + channels; }

    // Adds all blocks to the first one.
    void total() {
        for (int64_t i = 1; i < blocks; ++i)
            for (int64_t c = 0; c < 2 * channels; ++c) values[c] += values[2 * i * channels + c];
    }

private:
    const int64_t blocks, channels;
    std::vector<double> values;
};

// Sum and sum of squares of a row's pixels, about one of them: squares of what is far from 0 would cancel.
class Moments {
public:
    explicit Moments(Floats about) : about(about) {}

    void add(Floats value) {
        const Floats away = value - about;
        sum += away;
        squares += away * away;
    }

    void finish(int64_t pixels, double* to_sum, double* to_squares) const {
        for (int64_t i = 0; i < LANES; ++i) {
            const double from = about[i], s = sum[i], n = double(pixels);
            to_sum[i] += s + n * from;
            to_squares[i] += double(squares[i]) + from * (2 * s + n * from);
        }
    }

    void take(const Moments& other) { sum += other.sum, squares += other.squares; }  // about the same value

private:
    const Floats about;
    Floats sum = {}, squares = {};
};

struct Layer {
    const float *scale, *shift;               // gamma and beta
    float *mean, *inverse;                    // of the batch: mean, 1 / standard deviation
    float *running_mean, *running_variance;   // null if none are kept
    double eps, momentum;
};

// Turns sums of values and of their squares over n pixels into the layer's statistics.
inline void settle(Sums& sums, int64_t channels, double n, const Layer& layer) {
    sums.total();
    for (int64_t c = 0; c < channels; ++c) {
        const double mean = sums.first(0)[c] / n;
        double variance = sums.second(0)[c] / n - mean * mean;
        if (variance < 0) variance = 0;  // not std::max: what is no number must stay so
        layer.mean[c] = float(mean);
        layer.inverse[c] = float(1 / std::sqrt(variance + layer.eps));
        if (layer.running_mean == nullptr) continue;
        const double kept = 1 - layer.momentum;
        layer.running_mean[c] = float(layer.momentum * mean + kept * layer.running_mean[c]);
        layer.running_variance[c] =
            float(layer.momentum * variance * n / (n - 1) + kept * layer.running_variance[c]);
    }
}

// The normalisation of some channels.
struct Normalise {
    Normalise(const Layer& layer, int64_t channel)
        : mean(load(layer.mean + channel)),
          scale(load(layer.scale + channel) * load(layer.inverse + channel)),
          shift(load(layer.shift + channel)) {}

    Floats operator()(Floats value) const { return (value - mean) * scale + shift; }

    const Floats mean, scale, shift;
};

// Its gradient: scale * gradient + slope * (value - mean) + offset.
class Backward {
public:
    // From the sums of the gradients and of gradient * (value - mean) over n pixels. Writes the weights' gradients.
    Backward(Sums& sums, int64_t channels, double n, const Layer& layer, float* d_scale, float* d_shift)
        : mean(layer.mean), scale(channels), slope(channels), offset(channels) {
        sums.total();
        for (int64_t c = 0; c < channels; ++c) {
            const double a = double(layer.scale[c]) * layer.inverse[c];
            const double d = sums.second(0)[c] * layer.inverse[c];
            d_scale[c] = float(d);
            d_shift[c] = float(sums.first(0)[c]);
            scale[c] = float(a);
            slope[c] = float(-a * layer.inverse[c] * d / n);
            offset[c] = float(-a * sums.first(0)[c] / n);
        }
    }

    struct Channels {
        Floats operator()(Floats gradient, Floats value) const {
            return gradient * scale + ((value - mean) * slope + offset);
        }

        const Floats mean, scale, slope, offset;
    };

    Channels of(int64_t channel) const {
        return {load(mean + channel), load(&scale[channel]), load(&slope[channel]), load(&offset[channel])};
    }

private:
    const float* mean;
    std::vector<float> scale, slope, offset;
};
