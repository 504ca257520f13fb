/* Products of some rows with the weights of a layer, in float32 or with factors in bfloat16.
 *
 * With `rounding`, where ROUNDS is 1, factors are in bfloat16. Two neighbours, the even one first, then lie in the 32
 * bits of one float: a `unit`. Without it a unit is a number. H, the hidden units, is a multiple of WIDTH.
 */
#ifndef POPGRAFT_PRODUCTS_H
#define POPGRAFT_PRODUCTS_H

#include <stdlib.h>
#include <string.h>

#include "vector.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#if defined(__AVX2__) && !defined(__AVX512F__)
#define ROWS 2 /* rows of a product that are kept in registers, times four vectors */
#else
#define ROWS 4
#endif

typedef float unit __attribute__((may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_indices __attribute__((vector_size(16)));

#if defined(__AVX512BF16__)
#define ROUNDS 1

/* n numbers in bfloat16, and a zero behind them where n is odd. */
INLINE void round_to(const float *x, int64_t n, void *out) {
    uint16_t *to = out;
    for (; n >= WIDTH; n -= WIDTH, x += WIDTH, to += WIDTH)
        _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
    if (!n) return;
    __m512 rest = _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), x);
    __m512i wide = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(rest));
    _mm512_mask_cvtepi32_storeu_epi16(to, (__mmask16)((1u << (n + n % 2)) - 1), wide);
}

/* acc + s0 w0 + s1 w1, with two numbers in every unit. */
INLINE vec add_both(vec acc, float s, vec w) {
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_ps(s), (__m512bh)w);
}
#else
#define ROUNDS 0
INLINE void round_to(const float *x, int64_t n, void *out) { (void)x, (void)n, (void)out; }
INLINE vec add_both(vec acc, float s, vec w) { return acc + s * w; }
#endif

/* Units of n numbers. */
INLINE int64_t units(int rounding, int64_t n) { return rounding ? (n + 1) / 2 : n; }

/* n numbers as units. */
INLINE void place(int rounding, const float *x, int64_t n, unit *out) {
    if (rounding) round_to(x, n, out);
    else memcpy(out, x, (size_t)n * sizeof *x);
}

/* acc[r][v] += sum over k of a[r][k] * panel[k][v], for some rows r, `apart` units, and some vectors v. */
INLINE void multiply(int rounding, int rows, int vectors, const unit *a, int64_t apart, const unit *panel,
        int64_t depth, vec acc[ROWS][4]) {
    for (int64_t k = 0; k < depth; k++, panel += vectors * WIDTH)
        for (int r = 0; r < rows; r++) {
            float s = a[r * apart + k];
            for (int v = 0; v < vectors; v++) {
                vec w = LOAD(panel + v * WIDTH);
                acc[r][v] = rounding ? add_both(acc[r][v], s, w) : acc[r][v] + s * w;
            }
        }
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_indices){__VA_ARGS__})
#endif

/* Four units of every row, four rows apart by `stride`, become four columns that are `apart`. */
INLINE void transpose(const unit *from, int64_t stride, unit *to, int64_t apart) {
    four a = *(const four *)from, b = *(const four *)(from + stride);
    four c = *(const four *)(from + 2 * stride), d = *(const four *)(from + 3 * stride);
    four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    *(four *)to = SHUFFLE(ab, cd, 0, 1, 4, 5), *(four *)(to + apart) = SHUFFLE(ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE(a, b, 2, 6, 3, 7), cd = SHUFFLE(c, d, 2, 6, 3, 7);
    *(four *)(to + 2 * apart) = SHUFFLE(ab, cd, 0, 1, 4, 5), *(four *)(to + 3 * apart) = SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* Panels of the gates' weights [gates * H, n]: for every WIDTH hidden units, [n in units][gates][WIDTH]. `rows` is room
 * for WIDTH rows of units. */
INLINE void panel(int rounding, int64_t gates, const float *weight, int64_t n, unit *panels, unit *rows,
        int64_t hidden) {
    int64_t depth = units(rounding, n), apart = gates * WIDTH;
    for (int64_t u = 0; u < hidden; u += WIDTH)
        for (int64_t g = 0; g < gates; g++) {
            const unit *from = weight + (g * hidden + u) * n;
            if (rounding) {
                for (int64_t v = 0; v < WIDTH; v++) round_to(weight + (g * hidden + u + v) * n, n, rows + v * depth);
                from = rows;
            }
            unit *to = panels + u * gates * depth + g * WIDTH;
            for (int64_t v = 0; v < WIDTH; v += 4) {
                int64_t k = 0;
                for (; k + 4 <= depth; k += 4) transpose(from + v * depth + k, depth, to + k * apart + v, apart);
                for (; k < depth; k++)
                    for (int64_t w = v; w < v + 4; w++) to[k * apart + w] = from[w * depth + k];
            }
        }
}

/* Whole tiles of rows, and the rows that are left one by one. */
#define TILES(b, count, tile)                                                                             \
    for (int64_t b = 0; b < (count);) {                                                                   \
        if ((count) - b >= ROWS) { tile(ROWS); b += ROWS; }                                               \
        else { tile(1); b++; }                                                                            \
    }

/* Columns of the recurrent weights [n, H] that are multiplied together: four vectors where there are, or one. */
INLINE int64_t together(int64_t u, int64_t hidden) { return hidden - u >= 4 * WIDTH ? 4 : 1; }

/* Blocks of these columns, one behind the other: [n in units][columns]. */
INLINE void block(int rounding, const float *weight, int64_t n, unit *blocks, int64_t hidden) {
    int64_t depth = units(rounding, n);
    for (int64_t u = 0, vectors; u < hidden; u += vectors * WIDTH) {
        vectors = together(u, hidden);
        for (int64_t k = 0; k < depth; k++)
            for (int64_t v = 0; v < vectors * WIDTH; v += WIDTH) {
                unit *to = blocks + u * depth + k * vectors * WIDTH + v;
                if (!rounding) {
                    STORE(to, LOAD(weight + k * hidden + u + v));
                    continue;
                }
                const float *even = weight + 2 * k * hidden + u + v;
                uint16_t pairs[2][WIDTH];
                round_to(even, WIDTH, pairs[0]), round_to(even + hidden, WIDTH, pairs[1]);
                for (int w = 0; w < WIDTH; w++)
                    memcpy((uint16_t *)(to + w), &pairs[0][w], 2), memcpy((uint16_t *)(to + w) + 1, &pairs[1][w], 2);
            }
    }
}

#endif
