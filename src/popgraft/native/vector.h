/* Vectors of float32 as wide as this processor's registers, and what memories and activations make of them. */
#ifndef POPGRAFT_VECTOR_H
#define POPGRAFT_VECTOR_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16 /* floats of a vector register */
#elif defined(__AVX2__)
#define WIDTH 8
#else
#define WIDTH 4
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef float row __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias)); /* anywhere in memory */

#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const row *)(p))
#define STORE(p, x) (*(row *)(p) = (x))

/* a + w (b - a), from the nearer of both: what is added must not be far larger than the result. */
#define MIX(a, b, w) ((w) < 0.5f ? (a) + (w) * ((b) - (a)) : (b) - (1.0f - (w)) * ((b) - (a)))

/* WIDTH numbers, or those that are left and the last of them again. */
INLINE vec take(const float *p, int64_t left) {
    if (left >= WIDTH) return LOAD(p);
    float rest[WIDTH];
    for (int64_t i = 0; i < WIDTH; i++) rest[i] = p[i < left ? i : left - 1];
    return LOAD(rest);
}

INLINE void give(float *p, vec x, int64_t left) {
    if (left >= WIDTH) {
        STORE(p, x);
        return;
    }
    float rest[WIDTH];
    STORE(rest, x);
    memcpy(p, rest, left * sizeof(float));
}

INLINE vec pick(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

/* A state, or its gradient; zero where an episode starts, whatever x is: a product with zero would keep NaN. */
INLINE vec kept(vec x, uint8_t start) { return (vec)((ivec)x & (start ? 0 : -1)); }

/* e^x: 2^n times a polynomial on |r| <= ln(2)/2 (Cephes). NaN stays NaN. */
INLINE vec vexp(vec x) {
    x = pick(x > 88.0f, (vec){} + 88.0f, x);
    x = pick(x < -87.0f, (vec){} - 87.0f, x);
    vec n = x * 1.44269504f + 12582912.0f; /* rounds: the fraction falls off the mantissa */
    n -= 12582912.0f;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    ivec scale = (__builtin_convertvector(n, ivec) + 127) << 23;
    return p * (vec)scale;
}

INLINE vec vsqrt(vec x) {
    for (int i = 0; i < WIDTH; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

/* Never below e^-88, where PyTorch's ends at 0: seen only beside numbers of 1e30, which no state of an LSTM reaches. */
INLINE vec vsigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }
INLINE vec vtanh(vec x) { return 2.0f / (1.0f + vexp(-2.0f * x)) - 1.0f; }

#endif
