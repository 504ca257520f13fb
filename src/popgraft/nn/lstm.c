/* The unroll of an LSTM layer over time and its gradient, on one core, in contiguous float32.
 *
 * Members are independent: each is unrolled by itself, with its weights in the cache and its gates in registers. The
 * equations are those of lstm.py. H, the hidden units, must be a multiple of width().
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDTH 16 /* floats of a vector register */
#define ROWS 4   /* rows of a product that are kept in registers, times four vectors */
#elif defined(__AVX2__)
#define WIDTH 8
#define ROWS 2
#else
#define WIDTH 4
#define ROWS 4
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));
typedef float row __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias)); /* anywhere in memory */

#define INLINE static inline __attribute__((always_inline))
#define LOAD(p) (*(const row *)(p))
#define STORE(p, x) (*(row *)(p) = (x))

int64_t width(void) { return WIDTH; }

INLINE vec pick(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

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

INLINE vec vsigmoid(vec x) { return 1.0f / (1.0f + vexp(-x)); }
INLINE vec vtanh(vec x) { return 2.0f / (1.0f + vexp(-2.0f * x)) - 1.0f; }

/* acc[r][g] += sum over k of a[r][k] * panel[k][g], for some rows r and four vectors g. */
#define PRODUCT(rows, acc, a, lda, panel, ldp, depth)                                                     \
    for (int64_t k = 0; k < (depth); k++) {                                                               \
        const float *p = (panel) + k * (ldp);                                                             \
        vec w0 = LOAD(p), w1 = LOAD(p + WIDTH), w2 = LOAD(p + 2 * WIDTH), w3 = LOAD(p + 3 * WIDTH);       \
        for (int r = 0; r < (rows); r++) {                                                                \
            float s = (a)[r * (lda) + k];                                                                 \
            acc[r][0] += s * w0, acc[r][1] += s * w1, acc[r][2] += s * w2, acc[r][3] += s * w3;           \
        }                                                                                                 \
    }

/* Panels of the gates' weights [4H, H]: for every WIDTH units, [H][4 gates][WIDTH]. */
static void pack(const float *weight, float *panels, int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH)
        for (int64_t g = 0; g < 4; g++)
            for (int64_t v = 0; v < WIDTH; v++) {
                const float *from = weight + (g * hidden + u + v) * hidden;
                float *to = panels + u * 4 * hidden + g * WIDTH + v;
                for (int64_t k = 0; k < hidden; k++) to[k * 4 * WIDTH] = from[k];
            }
}

/* One step of some environments; `gates` holds the share of the input before, and the gates after it. */
INLINE void step(int rows, const float *panels, const float *h, float *gates,
        const float *c_before, const float *keep, float *c, float *y, int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH) {
        vec acc[ROWS][4];
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) acc[r][g] = LOAD(gates + (r * 4 + g) * hidden + u);
        PRODUCT(rows, acc, h, hidden, panels + u * 4 * hidden, 4 * WIDTH, hidden)
        for (int r = 0; r < rows; r++) {
            vec i = vsigmoid(acc[r][0]), f = vsigmoid(acc[r][1]), g = vtanh(acc[r][2]), o = vsigmoid(acc[r][3]);
            vec cell = f * (LOAD(c_before + r * hidden + u) * keep[r]) + i * g;
            float *out = gates + r * 4 * hidden + u;
            STORE(out, i); STORE(out + hidden, f); STORE(out + 2 * hidden, g); STORE(out + 3 * hidden, o);
            STORE(c + r * hidden + u, cell);
            STORE(y + r * hidden + u, o * vtanh(cell));
        }
    }
}

/* gates: the input's share [pop, time, batch, 4H], which is overwritten with the gates. weight [pop, 4H, H], h0 and c0
 * [pop, batch, H], keep [pop, time, batch]. Out: h_in (h before every step), cell and y, [pop, time, batch, H]. */
int lstm_forward(float *gates, const float *weight, const float *h0, const float *c0, const float *keep, float *h_in,
        float *cell, float *y, int64_t pop, int64_t time, int64_t batch, int64_t hidden) {
    float *panels = aligned_alloc(64, 4 * hidden * hidden * sizeof(float));
    if (!panels) return 1;
    int64_t layer = batch * hidden;
    for (int64_t m = 0; m < pop; m++) {
        pack(weight + m * 4 * hidden * hidden, panels, hidden);
        const float *h_before = h0 + m * layer, *c_before = c0 + m * layer;
        for (int64_t t = m * time; t < (m + 1) * time; t++) {
            float *h = h_in + t * layer, *g = gates + 4 * t * layer, *c = cell + t * layer, *out = y + t * layer;
            const float *k = keep + t * batch;
            for (int64_t b = 0; b < batch; b++)
                for (int64_t u = 0; u < hidden; u++) h[b * hidden + u] = h_before[b * hidden + u] * k[b];
            int64_t b = 0;
            for (; b + ROWS <= batch; b += ROWS)
                step(ROWS, panels, h + b * hidden, g + 4 * b * hidden, c_before + b * hidden, k + b, c + b * hidden,
                     out + b * hidden, hidden);
            for (; b < batch; b++)
                step(1, panels, h + b * hidden, g + 4 * b * hidden, c_before + b * hidden, k + b, c + b * hidden,
                     out + b * hidden, hidden);
            h_before = out;
            c_before = c;
        }
    }
    free(panels);
    return 0;
}

INLINE void product(int rows, const float *dgates, const float *weight,
        const float *keep, float *dh, int64_t hidden) {
    int64_t u = 0;
    for (; u + 4 * WIDTH <= hidden; u += 4 * WIDTH) {
        vec acc[ROWS][4] = {};
        PRODUCT(rows, acc, dgates, 4 * hidden, weight + u, hidden, 4 * hidden)
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) STORE(dh + r * hidden + u + g * WIDTH, acc[r][g] * keep[r]);
    }
    for (; u < hidden; u += WIDTH) {
        vec acc[ROWS] = {};
        for (int64_t k = 0; k < 4 * hidden; k++)
            for (int r = 0; r < rows; r++) acc[r] += dgates[r * 4 * hidden + k] * LOAD(weight + k * hidden + u);
        for (int r = 0; r < rows; r++) STORE(dh + r * hidden + u, acc[r] * keep[r]);
    }
}

/* gates and cell as lstm_forward left them; dy [pop, time, batch, H]. dh and dc [pop, batch, H]: gradients of the last
 * state, which become those of the first. Out: dgates [pop, time, batch, 4H]. */
int lstm_backward(const float *gates, const float *weight, const float *c0, const float *keep, const float *cell,
        const float *dy, float *dgates, float *dh, float *dc, int64_t pop, int64_t time, int64_t batch, int64_t hidden) {
    int64_t layer = batch * hidden;
    for (int64_t m = 0; m < pop; m++) {
        float *dh_m = dh + m * layer, *dc_m = dc + m * layer;
        const float *w = weight + m * 4 * hidden * hidden;
        for (int64_t t = (m + 1) * time - 1; t >= m * time; t--) {
            const float *c_before = t == m * time ? c0 + m * layer : cell + (t - 1) * layer, *k = keep + t * batch;
            for (int64_t b = 0; b < batch; b++)
                for (int64_t u = 0; u < hidden; u += WIDTH) {
                    int64_t at = b * hidden + u;
                    const float *gate = gates + 4 * (t * layer + b * hidden) + u;
                    float *out = dgates + 4 * (t * layer + b * hidden) + u;
                    vec i = LOAD(gate), f = LOAD(gate + hidden), g = LOAD(gate + 2 * hidden), o = LOAD(gate + 3 * hidden);
                    vec tanh_c = vtanh(LOAD(cell + t * layer + at));
                    vec dh_t = LOAD(dh_m + at) + LOAD(dy + t * layer + at);
                    vec dc_t = LOAD(dc_m + at) + dh_t * o * (1.0f - tanh_c * tanh_c);
                    STORE(out, dc_t * g * i * (1.0f - i));
                    STORE(out + hidden, dc_t * (LOAD(c_before + at) * k[b]) * f * (1.0f - f));
                    STORE(out + 2 * hidden, dc_t * i * (1.0f - g * g));
                    STORE(out + 3 * hidden, dh_t * tanh_c * o * (1.0f - o));
                    STORE(dc_m + at, dc_t * f * k[b]);
                }
            const float *d = dgates + 4 * t * layer;
            int64_t b = 0;
            for (; b + ROWS <= batch; b += ROWS) product(ROWS, d + 4 * b * hidden, w, k + b, dh_m + b * hidden, hidden);
            for (; b < batch; b++) product(1, d + 4 * b * hidden, w, k + b, dh_m + b * hidden, hidden);
        }
    }
    return 0;
}
