// The largest errors of simd.h's exponentials, in units in the last place, against the C library's of a wider type: a line
// for float, a line for double. For test_exp.py.
#include "../../csrc/cpu/simd.h"

#include <cmath>
#include <cstdio>

using namespace fastssl::FASTSSL_ISA;

// Of a value just found, beside the one that it should be.
template <class T, class Wide>
double error(T got, Wide want, int digits) {
    int exponent;
    std::frexp(want, &exponent);
    return static_cast<double>(std::fabs(static_cast<Wide>(got) - want) / std::ldexp(Wide(1), exponent - digits));
}

// Over `count` vectors of numbers evenly spread from the smallest with a result that is not 0 to the largest.
template <class T, class Wide>
double worst(long count, int digits) {
    using C = ExpConstants<T>;
    double most = 0;
    for (long i = 0; i < count; ++i) {
        T x[kWidth<T>], y[kWidth<T>];
        for (int lane = 0; lane < kWidth<T>; ++lane) {
            const double place = (static_cast<double>(i) + lane / double(kWidth<T>)) / static_cast<double>(count);
            x[lane] = static_cast<T>(C::smallest + place * (C::largest - C::smallest));
        }
        store<T>(y, exp<T>(load<T>(x)));
        for (int lane = 0; lane < kWidth<T>; ++lane) {
            const double found = error(y[lane], std::exp(static_cast<Wide>(x[lane])), digits);
            most = found <= most ? most : found;  // a NaN is kept
        }
    }
    return most;
}

int main() {
    std::printf("%.4f\n%.4f\n", worst<float, double>(4000000 / kWidth<float>, 24),
                worst<double, long double>(1000000 / kWidth<double>, 53));
}
