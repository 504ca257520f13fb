/* The unroll of an LSTM layer over time and its gradient, on one core, in contiguous float32.
 *
 * Members are independent: each is unrolled by itself, with its weights in the cache and its gates in registers. The
 * equations are those of lstm.py. H, the hidden units, must be a multiple of width().
 */
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

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_indices __attribute__((vector_size(16)));

int64_t width(void) { return WIDTH; }

/* What is left of the state where an episode starts, and where it goes on. */
INLINE float kept(uint8_t start) { return start ? 0.0f : 1.0f; }

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

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (four_indices){__VA_ARGS__})
#endif

/* Four numbers of every row, four rows apart by `stride`, become four columns that are `apart`. */
INLINE void transpose(const float *from, int64_t stride, float *to, int64_t apart) {
    four a = *(const four *)from, b = *(const four *)(from + stride);
    four c = *(const four *)(from + 2 * stride), d = *(const four *)(from + 3 * stride);
    four ab = SHUFFLE(a, b, 0, 4, 1, 5), cd = SHUFFLE(c, d, 0, 4, 1, 5);
    *(four *)to = SHUFFLE(ab, cd, 0, 1, 4, 5), *(four *)(to + apart) = SHUFFLE(ab, cd, 2, 3, 6, 7);
    ab = SHUFFLE(a, b, 2, 6, 3, 7), cd = SHUFFLE(c, d, 2, 6, 3, 7);
    *(four *)(to + 2 * apart) = SHUFFLE(ab, cd, 0, 1, 4, 5), *(four *)(to + 3 * apart) = SHUFFLE(ab, cd, 2, 3, 6, 7);
}

/* Panels of the gates' weights [4H, H]: for every WIDTH units, [H][4 gates][WIDTH]. */
static void pack(const float *weight, float *panels, int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH)
        for (int64_t g = 0; g < 4; g++)
            for (int64_t v = 0; v < WIDTH; v += 4)
                for (int64_t k = 0; k < hidden; k += 4)
                    transpose(weight + (g * hidden + u + v) * hidden + k, hidden,
                              panels + (u * hidden + k * WIDTH) * 4 + g * WIDTH + v, 4 * WIDTH);
}

/* One step of some environments; `gates` holds the share of the input before, and the gates after it. */
INLINE void step(int rows, const float *panels, const float *h, float *gates,
        const float *c_before, int64_t stride, const uint8_t *start, float *c, float *y, int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH) {
        vec acc[ROWS][4];
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) acc[r][g] = LOAD(gates + (r * 4 + g) * hidden + u);
        PRODUCT(rows, acc, h, hidden, panels + u * 4 * hidden, 4 * WIDTH, hidden)
        for (int r = 0; r < rows; r++) {
            vec i = vsigmoid(acc[r][0]), f = vsigmoid(acc[r][1]), g = vtanh(acc[r][2]), o = vsigmoid(acc[r][3]);
            vec cell = f * (LOAD(c_before + r * stride + u) * kept(start[r])) + i * g;
            float *out = gates + r * 4 * hidden + u;
            STORE(out, i); STORE(out + hidden, f); STORE(out + 2 * hidden, g); STORE(out + 3 * hidden, o);
            STORE(c + r * hidden + u, cell);
            STORE(y + r * hidden + u, o * vtanh(cell));
        }
    }
}

/* gates: the input's share [pop, time, batch, 4H], which is overwritten with the gates. weight [pop, 4H, H], whose
 * members lie `apart` numbers. start [pop, time, batch]. state [pop, batch, 2H]: h and then c before the first step. Out: h_in (h before every step), cell
 * and y [pop, time, batch, H], and last [pop, batch, 2H]: the state after the last step. */
int lstm_forward(float *gates, const float *weight, const float *state, const uint8_t *start, float *h_in, float *cell,
        float *y, float *last, int64_t pop, int64_t time, int64_t batch, int64_t hidden, int64_t apart) {
    float *panels = aligned_alloc(64, 4 * hidden * hidden * sizeof(float));
    if (!panels) return 1;
    int64_t layer = batch * hidden;
    for (int64_t m = 0; m < pop; m++) {
        pack(weight + m * apart, panels, hidden);
        const float *h_before = state + 2 * m * layer, *c_before = h_before + hidden;
        int64_t stride = 2 * hidden; /* from one environment's state before a step to the next one's */
        for (int64_t t = m * time; t < (m + 1) * time; t++) {
            float *h = h_in + t * layer, *g = gates + 4 * t * layer, *c = cell + t * layer, *out = y + t * layer;
            const uint8_t *s = start + t * batch;
            for (int64_t b = 0; b < batch; b++)
                for (int64_t u = 0; u < hidden; u++) h[b * hidden + u] = h_before[b * stride + u] * kept(s[b]);
            int64_t b = 0, at = 0;
            for (; b + ROWS <= batch; b += ROWS, at += ROWS * hidden)
                step(ROWS, panels, h + at, g + 4 * at, c_before + b * stride, stride, s + b, c + at, out + at, hidden);
            for (; b < batch; b++, at += hidden)
                step(1, panels, h + at, g + 4 * at, c_before + b * stride, stride, s + b, c + at, out + at, hidden);
            h_before = out, c_before = c, stride = hidden;
        }
        for (int64_t b = 0; b < batch; b++) {
            float *own = last + 2 * (m * layer + b * hidden);
            memcpy(own, h_before + b * stride, hidden * sizeof(float));
            memcpy(own + hidden, c_before + b * stride, hidden * sizeof(float));
        }
    }
    free(panels);
    return 0;
}

/* Columns of the recurrent weights [4H, H] that are multiplied together: four vectors where there are, or one. */
INLINE int64_t together(int64_t u, int64_t hidden) { return hidden - u >= 4 * WIDTH ? 4 * WIDTH : WIDTH; }

/* Blocks of these columns, one behind the other: [4H][columns]. */
static void block(const float *weight, float *blocks, int64_t hidden) {
    for (int64_t u = 0, n; u < hidden; u += n) {
        n = together(u, hidden);
        for (int64_t k = 0; k < 4 * hidden; k++)
            memcpy(blocks + 4 * u * hidden + k * n, weight + k * hidden + u, n * sizeof(float));
    }
}

/* dh = dgates weight, for some environments of a step; rows of dh, the first half of a state's, are 2H apart. */
INLINE void product(int rows, const float *dgates, const float *blocks, const uint8_t *start, float *dh,
        int64_t hidden) {
    int64_t u = 0;
    for (; u + 4 * WIDTH <= hidden; u += 4 * WIDTH) {
        vec acc[ROWS][4] = {};
        PRODUCT(rows, acc, dgates, 4 * hidden, blocks + 4 * u * hidden, 4 * WIDTH, 4 * hidden)
        for (int r = 0; r < rows; r++)
            for (int g = 0; g < 4; g++) STORE(dh + 2 * r * hidden + u + g * WIDTH, acc[r][g] * kept(start[r]));
    }
    for (; u < hidden; u += WIDTH) {
        vec acc[ROWS] = {};
        const float *own = blocks + 4 * u * hidden;
        for (int64_t k = 0; k < 4 * hidden; k++)
            for (int r = 0; r < rows; r++) acc[r] += dgates[r * 4 * hidden + k] * LOAD(own + k * WIDTH);
        for (int r = 0; r < rows; r++) STORE(dh + 2 * r * hidden + u, acc[r] * kept(start[r]));
    }
}

/* The same for all environments of a step. */
static void products(const float *dgates, const float *blocks, const uint8_t *start, float *dh, int64_t batch,
        int64_t hidden) {
    int64_t b = 0;
    for (; b + ROWS <= batch; b += ROWS)
        product(ROWS, dgates + 4 * b * hidden, blocks, start + b, dh + 2 * b * hidden, hidden);
    for (; b < batch; b++) product(1, dgates + 4 * b * hidden, blocks, start + b, dh + 2 * b * hidden, hidden);
}

#if defined(__AVX512BF16__)
INLINE __m512i rounded(const float *x) {
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x)));
}

/* The same blocks in bfloat16, two rows in one: [2H][columns][2]. */
static void pair(const float *weight, uint32_t *pairs, int64_t hidden) {
    for (int64_t u = 0, n; u < hidden; u += n) {
        n = together(u, hidden);
        for (int64_t k = 0; k < 2 * hidden; k++)
            for (int64_t v = 0; v < n; v += WIDTH) {
                const float *first = weight + 2 * k * hidden + u + v;
                __m512i both = _mm512_or_si512(rounded(first), _mm512_slli_epi32(rounded(first + hidden), 16));
                _mm512_storeu_si512(pairs + 2 * u * hidden + k * n + v, both);
            }
    }
}

/* `columns` vectors of dh = dgates weight, with factors in bfloat16, for some environments of a step. */
INLINE void columns_rounded(int rows, int columns, const uint16_t *dgates, const uint32_t *pairs, const uint8_t *start,
        float *dh, int64_t hidden) {
    __m512 acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < columns; g++) acc[r][g] = _mm512_setzero_ps();
    for (int64_t k = 0; k < 2 * hidden; k++)
        for (int r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, dgates + r * 4 * hidden + 2 * k, sizeof two);
            for (int g = 0; g < columns; g++)
                acc[r][g] = _mm512_dpbf16_ps(acc[r][g], (__m512bh)_mm512_set1_epi32(two),
                                             (__m512bh)_mm512_loadu_si512(pairs + (k * columns + g) * WIDTH));
        }
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < columns; g++)
            _mm512_storeu_ps(dh + 2 * r * hidden + g * WIDTH, _mm512_mul_ps(acc[r][g], _mm512_set1_ps(kept(start[r]))));
}

INLINE void product_rounded(int rows, const uint16_t *dgates, const uint32_t *pairs, const uint8_t *start, float *dh,
        int64_t hidden) {
    int64_t u = 0;
    for (; u + 4 * WIDTH <= hidden; u += 4 * WIDTH)
        columns_rounded(rows, 4, dgates, pairs + 2 * u * hidden, start, dh + u, hidden);
    for (; u < hidden; u += WIDTH) columns_rounded(rows, 1, dgates, pairs + 2 * u * hidden, start, dh + u, hidden);
}
/* The same for all environments of a step, whose exact dgates [batch, 4H] are rounded into `dgates`. */
static void products_rounded(const float *exact, uint16_t *dgates, const uint32_t *pairs, const uint8_t *start,
        float *dh, int64_t batch, int64_t hidden) {
    for (int64_t at = 0; at < 4 * batch * hidden; at += WIDTH)
        _mm256_storeu_si256((__m256i *)(dgates + at), (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(exact + at)));
    int64_t b = 0;
    for (; b + ROWS <= batch; b += ROWS)
        product_rounded(ROWS, dgates + 4 * b * hidden, pairs, start + b, dh + 2 * b * hidden, hidden);
    for (; b < batch; b++) product_rounded(1, dgates + 4 * b * hidden, pairs, start + b, dh + 2 * b * hidden, hidden);
}

int64_t rounds(void) { return 1; }
#else
int64_t rounds(void) { return 0; }
#endif

/* One step back for all environments of a member: the gradient before its gates goes to dgates [batch, 4H], and what it
 * adds up to is added to dbias [4H]. */
static void step_back(const float *gates, const float *cell, const float *c_before, int64_t stride,
        const uint8_t *start, const float *dy, float *dstate, float *dgates, float *dbias, int64_t batch,
        int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH) {
        vec sum[4];
        for (int g = 0; g < 4; g++) sum[g] = LOAD(dbias + g * hidden + u);
        for (int64_t b = 0; b < batch; b++) {
            int64_t at = b * hidden + u;
            const float *gate = gates + 4 * b * hidden + u;
            float *dh = dstate + 2 * b * hidden + u, *dc = dh + hidden;
            vec i = LOAD(gate), f = LOAD(gate + hidden), g = LOAD(gate + 2 * hidden), o = LOAD(gate + 3 * hidden);
            vec tanh_c = vtanh(LOAD(cell + at));
            vec dh_t = LOAD(dh) + LOAD(dy + at);
            vec dc_t = LOAD(dc) + dh_t * o * (1.0f - tanh_c * tanh_c);
            vec c_tm1 = LOAD(c_before + b * stride + u) * kept(start[b]);
            vec out[4] = {dc_t * g * i * (1.0f - i), dc_t * c_tm1 * f * (1.0f - f), dc_t * i * (1.0f - g * g),
                          dh_t * tanh_c * o * (1.0f - o)};
            for (int g4 = 0; g4 < 4; g4++) {
                STORE(dgates + (4 * b + g4) * hidden + u, out[g4]);
                sum[g4] += out[g4];
            }
            STORE(dc, dc_t * f * kept(start[b]));
        }
        for (int g = 0; g < 4; g++) STORE(dbias + g * hidden + u, sum[g]);
    }
}

/* gates and cell as lstm_forward left them, with the weight and state it was given; dy [pop, time, batch, H]. dstate
 * [pop, batch, 2H]: gradient of the last state, which becomes that of the first. dbias [pop, 4H]: zeros. Out: dgates
 * [pop, time, batch, 4H], and dbias. With `rounding`, where rounds() allows it, the factors of all products are in
 * bfloat16, and dgates is too. */
int lstm_backward(const float *gates, const float *weight, const float *state, const uint8_t *start, const float *cell,
        const float *dy, void *dgates, float *dstate, float *dbias, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden, int64_t apart, int64_t rounding) {
    int64_t layer = batch * hidden;
    void *blocks = aligned_alloc(64, 4 * hidden * hidden * sizeof(float)); /* pairs take half of it */
    float *exact = rounding ? aligned_alloc(64, 4 * layer * sizeof(float)) : NULL;
    int failed = !blocks || (rounding && !exact);
    for (int64_t m = 0; m < pop && !failed; m++) {
        float *own = dstate + 2 * m * layer;
        const float *w = weight + m * apart;
#if defined(__AVX512BF16__)
        if (rounding) pair(w, blocks, hidden);
#endif
        if (!rounding) block(w, blocks, hidden);
        for (int64_t t = (m + 1) * time - 1; t >= m * time; t--) {
            int64_t now = t * layer, stride = t == m * time ? 2 * hidden : hidden;
            const float *c_before = t == m * time ? state + 2 * m * layer + hidden : cell + now - layer;
            const uint8_t *s = start + t * batch;
            float *d = rounding ? exact : (float *)dgates + 4 * now;
            step_back(gates + 4 * now, cell + now, c_before, stride, s, dy + now, own, d, dbias + 4 * m * hidden, batch,
                      hidden);
#if defined(__AVX512BF16__)
            if (rounding) products_rounded(d, (uint16_t *)dgates + 4 * now, blocks, s, own, batch, hidden);
#endif
            if (!rounding) products(d, blocks, s, own, batch, hidden);
        }
    }
    free(blocks), free(exact);
    return failed;
}
