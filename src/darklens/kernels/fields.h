// The operations of generated code (fields.py), on one number and on a register. Comparisons return 1 or 0.
#pragma once

#include "arithmetic.h"

namespace op {

inline float sqrt(float a) { return std::sqrt(a); }
inline float exp(float a) { return std::exp(a); }
inline float log(float a) { return std::log(a); }
inline float pow(float a, float b) { return std::pow(a, b); }
inline float maximum(float a, float b) { return a < b ? b : a; }
inline float greater(float a, float b) { return a > b ? 1.0f : 0.0f; }
inline float not_less(float a, float b) { return a >= b ? 1.0f : 0.0f; }
inline float where(float condition, float a, float b) { return condition != 0 ? a : b; }
inline float abs(float a) { return std::fabs(a); }
inline float sign(float a) { return (a > 0) - (a < 0); }

inline Floats sqrt(Floats a) { return root(a); }
inline Floats exp(Floats a) { return ::exp(a); }
inline Floats log(Floats a) { return ln(a); }
inline Floats pow(Floats a, Floats b) { return ::exp(b * ln(a)); }
inline Floats maximum(Floats a, Floats b) { return a < b ? b : a; }
inline Floats greater(Floats a, Floats b) { return a > b ? broadcast(1) : Floats{}; }
inline Floats not_less(Floats a, Floats b) { return a >= b ? broadcast(1) : Floats{}; }
inline Floats where(Floats condition, Floats a, Floats b) { return condition != 0 ? a : b; }
inline Floats abs(Floats a) { return a < 0 ? -a : a; }
inline Floats sign(Floats a) { return greater(a, Floats{}) - greater(Floats{}, a); }

inline float log1p(float a) { return std::log1p(a); }
inline float atan(float a) { return std::atan(a); }
inline float atan2(float a, float b) { return std::atan2(a, b); }
inline float atanh(float a) { return std::atanh(a); }
inline float hypot(float a, float b) { return std::hypot(a, b); }
inline float sin(float a) { return std::sin(a); }
inline float cos(float a) { return std::cos(a); }

inline Floats log1p(Floats a) { return ln_one_plus(a); }
inline Floats atan2(Floats a, Floats b) {
    const Floats up = abs(a), along = abs(b), larger = maximum(up, along);
    const Floats acute = arctangent((up < along ? up : along) / (larger > 0 ? larger : broadcast(1)));
    const Floats upper = up > along ? 1.57079633f - acute : acute;
    const Floats angle = b < 0 ? 3.14159265f - upper : upper;
    return a < 0 ? -angle : angle;
}
inline Floats atan(Floats a) { return atan2(a, broadcast(1)); }
inline Floats atanh(Floats a) {
    const Floats size = abs(a);
    return 0.5f * sign(a) * ln_one_plus(2 * size / (1 - size));
}
inline Floats hypot(Floats a, Floats b) { return root(a * a + b * b); }
inline Floats sin(Floats a) {
    for (int64_t i = 0; i < LANES; ++i) a[i] = std::sin(a[i]);
    return a;
}
inline Floats cos(Floats a) {
    for (int64_t i = 0; i < LANES; ++i) a[i] = std::cos(a[i]);
    return a;
}

}  // namespace op
