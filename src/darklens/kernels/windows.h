// Windows of a maximum, and which rows of the images they are counted with.
#pragma once

#include <algorithm>

#include "vectors.h"

constexpr int64_t ROWS = 16;     // of the output, in a block
constexpr int32_t CLOSED = 255;  // the place of a window whose ReLU gives 0

// Images, in channels-last order.
struct Shape {
    int64_t images, height, width, channels;
    int64_t threads;
};

template <int KERNEL, int STRIDE, int PADDING>
struct Windows {
    explicit Windows(const Shape& shape)
        : shape(shape),
          height((shape.height + 2 * PADDING - KERNEL) / STRIDE + 1),
          width((shape.width + 2 * PADDING - KERNEL) / STRIDE + 1),
          blocks_an_image((height + ROWS - 1) / ROWS),
          blocks(shape.images * blocks_an_image) {}

    // Some rows of windows of one image; the image's rows are shared out among them.
    struct Block {
        int64_t image, first, last;
    };

    Block block(int64_t i) const {
        const int64_t first = i % blocks_an_image * ROWS;
        return {i / blocks_an_image, first, std::min(first + ROWS, height)};
    }

    // The image's first row that belongs to a row of windows; the last takes those that are in no window, too.
    int64_t top(int64_t row) const { return row == height ? shape.height : row * STRIDE; }

    const Shape& shape;
    const int64_t height, width, blocks_an_image, blocks;
};

// The largest of values times a sign, the first of equals, and where it was.
class Extremum {
public:
    Extremum(Floats sign, Floats value, int32_t place)
        : sign(sign), value(value), signed_value(value * sign), place(all(place)) {}

    void see(Floats other, int32_t its_place) {
        const Floats signed_other = other * sign;
        const Ints better = signed_other > signed_value;
        value = better ? other : value;
        signed_value = better ? signed_other : signed_value;
        place = better ? all(its_place) : place;
    }

    template <typename T>
    void write(T* to_value, uint8_t* to_place) const {
        store(to_value, value);
        store(to_place, place);
    }

private:
    const Floats sign;
    Floats value, signed_value;
    Ints place;
};

// 1, -1 or 0: where the scale is 0 all values of a window are normalised to the same, and torch takes the first.
inline Floats sign_of(Floats scale) { return scale > 0 ? all(1.0f) : (scale < 0 ? all(-1.0f) : Floats{}); }
