/* A layer of an LSTM over time, and its gradient, on one core, in contiguous float32.
 *
 * Members are independent: each is unrolled by itself, with its weights in the cache and its gates in registers. The
 * equations are those of lstm.py. H, the hidden units, must be a multiple of width().
 *
 * With `rounding`, where rounds() allows it, the factors of all products are in bfloat16. Two neighbours, the even one
 * first, then lie in the 32 bits of one float: a `unit`. Without it a unit is a number.
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

typedef float unit __attribute__((may_alias));
typedef float four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t four_indices __attribute__((vector_size(16)));

int64_t width(void) { return WIDTH; }

/* A state, or its gradient; zero where an episode starts, whatever x is: a product with zero would keep NaN. */
INLINE vec kept(vec x, uint8_t start) { return (vec)((ivec)x & (start ? 0 : -1)); }

#if defined(__AVX512BF16__)
int64_t rounds(void) { return 1; }

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
int64_t rounds(void) { return 0; }
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

/* Panels of the gates' weights [4H, n]: for every WIDTH hidden units, [n in units][4 gates][WIDTH]. `rows` is room for
 * WIDTH rows of units. */
INLINE void panel(int rounding, const float *weight, int64_t n, unit *panels, unit *rows, int64_t hidden) {
    int64_t depth = units(rounding, n);
    for (int64_t u = 0; u < hidden; u += WIDTH)
        for (int64_t g = 0; g < 4; g++) {
            const unit *from = weight + (g * hidden + u) * n;
            if (rounding) {
                for (int64_t v = 0; v < WIDTH; v++) round_to(weight + (g * hidden + u + v) * n, n, rows + v * depth);
                from = rows;
            }
            unit *to = panels + u * 4 * depth + g * WIDTH;
            for (int64_t v = 0; v < WIDTH; v += 4) {
                int64_t k = 0;
                for (; k + 4 <= depth; k += 4)
                    transpose(from + v * depth + k, depth, to + k * 4 * WIDTH + v, 4 * WIDTH);
                for (; k < depth; k++)
                    for (int64_t w = v; w < v + 4; w++) to[k * 4 * WIDTH + w] = from[w * depth + k];
            }
        }
}

/* What inputs add to the gates of WIDTH hidden units, and their bias, for some environments and steps. */
INLINE void share(int rounding, int rows, const unit *panel, const float *bias, const unit *in, int64_t apart,
        int64_t depth, float *gates, int64_t hidden) {
    vec acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) acc[r][g] = LOAD(bias + g * hidden);
    multiply(rounding, rows, 4, in, apart, panel, depth, acc);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) STORE(gates + (r * 4 + g) * hidden, acc[r][g]);
}

/* One step of WIDTH hidden units in some environments; `gates` holds the share of the input before, and the gates after
 * it. `h` is apart as `share` has it. */
INLINE void step(int rounding, int rows, const unit *panel, const unit *h, int64_t apart, float *gates,
        const float *c_before, int64_t stride, const uint8_t *start, float *c, float *y, int64_t hidden) {
    vec acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 4; g++) acc[r][g] = LOAD(gates + (r * 4 + g) * hidden);
    multiply(rounding, rows, 4, h, apart, panel, units(rounding, hidden), acc);
    for (int r = 0; r < rows; r++) {
        vec i = vsigmoid(acc[r][0]), f = vsigmoid(acc[r][1]), g = vtanh(acc[r][2]), o = vsigmoid(acc[r][3]);
        vec cell = f * kept(LOAD(c_before + r * stride), start[r]) + i * g;
        float *out = gates + r * 4 * hidden;
        STORE(out, i); STORE(out + hidden, f); STORE(out + 2 * hidden, g); STORE(out + 3 * hidden, o);
        STORE(c + r * hidden, cell);
        STORE(y + r * hidden, o * vtanh(cell));
    }
}

/* Whole tiles of rows, and the rows that are left one by one. */
#define TILES(b, count, tile)                                                                             \
    for (int64_t b = 0; b < (count);) {                                                                   \
        if ((count) - b >= ROWS) { tile(ROWS); b += ROWS; }                                               \
        else { tile(1); b++; }                                                                            \
    }

INLINE int pack(int rounding, const float *weight_ih, const float *weight_hh, unit *panels, int64_t pop, int64_t hidden,
        int64_t n_in, int64_t apart_ih, int64_t apart_hh) {
    int64_t of_x = 4 * hidden * units(rounding, n_in), of_h = 4 * hidden * units(rounding, hidden);
    unit *rows = malloc((size_t)(WIDTH * (n_in + hidden)) * sizeof(unit));
    for (int64_t m = 0; m < pop && rows; m++, panels += of_x + of_h) {
        panel(rounding, weight_ih + m * apart_ih, n_in, panels, rows, hidden);
        panel(rounding, weight_hh + m * apart_hh, hidden, panels + of_x, rows, hidden);
    }
    free(rows);
    return !rows;
}

/* weight_ih [pop, 4H, n_in] and weight_hh [pop, 4H, H], whose members lie `apart` numbers. Out: panels [pop, 4H, units
 * of n_in and of H], as lstm_forward reads both. */
int lstm_pack(const float *weight_ih, const float *weight_hh, void *panels, int64_t pop, int64_t hidden, int64_t n_in,
        int64_t apart_ih, int64_t apart_hh, int64_t rounding) {
    return rounding ? pack(1, weight_ih, weight_hh, panels, pop, hidden, n_in, apart_ih, apart_hh)
                    : pack(0, weight_ih, weight_hh, panels, pop, hidden, n_in, apart_ih, apart_hh);
}

INLINE void forward(int rounding, const float *x, const unit *panels, const float *bias, const float *state,
        const uint8_t *start, unit *inputs, float *gates, float *cell, float *y, float *last, int64_t pop, int64_t time,
        int64_t batch, int64_t hidden, int64_t n_in) {
    int64_t seen = units(rounding, n_in), depth = seen + units(rounding, hidden);
    int64_t layer = batch * hidden, count = time * batch;
    for (int64_t m = 0; m < pop; m++, panels += 4 * hidden * depth) {
        const unit *panels_h = panels + 4 * hidden * seen;
        unit *in = inputs + m * count * depth;
        float *g = gates + 4 * m * time * layer;
        for (int64_t b = 0; b < count; b++) place(rounding, x + (m * count + b) * n_in, n_in, in + b * depth);
        for (int64_t u = 0; u < hidden; u += WIDTH) {
#define SHARE(rows)                                                                                       \
    share(rounding, rows, panels + u * 4 * seen, bias + m * 4 * hidden + u, in + b * depth, depth, seen, \
          g + 4 * b * hidden + u, hidden)
            TILES(b, count, SHARE)
        }
        const float *h_before = state + 2 * m * layer, *c_before = h_before + hidden;
        int64_t stride = 2 * hidden; /* from one environment's state before a step to the next one's */
        for (int64_t t = 0; t < time; t++, in += batch * depth, g += 4 * layer) {
            float *c = cell + (m * time + t) * layer, *out = y + (m * time + t) * layer;
            const uint8_t *s = start + (m * time + t) * batch;
            for (int64_t b = 0; b < batch; b++) {
                unit *h = in + b * depth + seen;
                if (s[b]) memset(h, 0, (size_t)(depth - seen) * sizeof *h);
                else place(rounding, h_before + b * stride, hidden, h);
            }
            for (int64_t u = 0; u < hidden; u += WIDTH) {
#define STEP(rows)                                                                                        \
    step(rounding, rows, panels_h + u * 4 * (depth - seen), in + b * depth + seen, depth, g + 4 * b * hidden + u, \
         c_before + b * stride + u, stride, s + b, c + b * hidden + u, out + b * hidden + u, hidden)
                TILES(b, batch, STEP)
            }
            h_before = out, c_before = c, stride = hidden;
        }
        for (int64_t b = 0; b < batch; b++) {
            float *own = last + 2 * (m * layer + b * hidden);
            memcpy(own, h_before + b * stride, (size_t)hidden * sizeof(float));
            memcpy(own + hidden, c_before + b * stride, (size_t)hidden * sizeof(float));
        }
    }
}

/* x [pop, time, batch, n_in]; panels as lstm_pack left them; bias [pop, 4H]. start [pop, time, batch]. state
 * [pop, batch, 2H]: h and then c before the first step. Out: inputs [pop, time, batch, units of x and then of h before
 * the step], gates [pop, time, batch, 4H], cell and y [pop, time, batch, H], and last [pop, batch, 2H]: the state after
 * the last step. */
int lstm_forward(const float *x, const void *panels, const float *bias, const float *state, const uint8_t *start,
        void *inputs, float *gates, float *cell, float *y, float *last, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden, int64_t n_in, int64_t rounding) {
#define FORWARD(rounding)                                                                                 \
    forward(rounding, x, panels, bias, state, start, inputs, gates, cell, y, last, pop, time, batch, hidden, n_in)
    if (rounding) FORWARD(1);
    else FORWARD(0);
    return 0;
}

/* Columns of the recurrent weights [4H, H] that are multiplied together: four vectors where there are, or one. */
INLINE int64_t together(int64_t u, int64_t hidden) { return hidden - u >= 4 * WIDTH ? 4 : 1; }

/* Blocks of these columns, one behind the other: [4H in units][columns]. */
INLINE void block(int rounding, const float *weight, unit *blocks, int64_t hidden) {
    int64_t depth = units(rounding, 4 * hidden);
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

/* Some columns of dh = dgates weight, for some environments; rows of dh, the first half of a state's, are 2H apart. */
INLINE void product(int rounding, int rows, int vectors, const unit *dgates, const unit *blocks, const uint8_t *start,
        float *dh, int64_t hidden) {
    int64_t depth = units(rounding, 4 * hidden);
    vec acc[ROWS][4] = {};
    multiply(rounding, rows, vectors, dgates, depth, blocks, depth, acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) STORE(dh + 2 * r * hidden + v * WIDTH, kept(acc[r][v], start[r]));
}

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
            vec c_tm1 = kept(LOAD(c_before + b * stride + u), start[b]);
            vec out[4] = {dc_t * g * i * (1.0f - i), dc_t * c_tm1 * f * (1.0f - f), dc_t * i * (1.0f - g * g),
                          dh_t * tanh_c * o * (1.0f - o)};
            for (int g4 = 0; g4 < 4; g4++) {
                STORE(dgates + (4 * b + g4) * hidden + u, out[g4]);
                sum[g4] += out[g4];
            }
            STORE(dc, kept(dc_t * f, start[b]));
        }
        for (int g = 0; g < 4; g++) STORE(dbias + g * hidden + u, sum[g]);
    }
}

INLINE int backward(int rounding, const float *gates, const float *weight, const float *state, const uint8_t *start,
        const float *cell, const float *dy, unit *dgates, float *dstate, float *dbias, int64_t pop, int64_t time,
        int64_t batch, int64_t hidden, int64_t apart) {
    int64_t layer = batch * hidden, depth = units(rounding, 4 * hidden);
    unit *blocks = aligned_alloc(64, (size_t)(depth * hidden) * sizeof(unit));
    float *exact = malloc((size_t)(4 * layer) * sizeof(float));
    int failed = !blocks || !exact;
    for (int64_t m = 0; m < pop && !failed; m++) {
        float *own = dstate + 2 * m * layer;
        block(rounding, weight + m * apart, blocks, hidden);
        for (int64_t t = (m + 1) * time - 1; t >= m * time; t--) {
            int64_t now = t * layer, stride = t == m * time ? 2 * hidden : hidden;
            const float *c_before = t == m * time ? state + 2 * m * layer + hidden : cell + now - layer;
            const uint8_t *s = start + t * batch;
            unit *d = dgates + t * batch * depth;
            step_back(gates + 4 * now, cell + now, c_before, stride, s, dy + now, own, rounding ? exact : d,
                      dbias + 4 * m * hidden, batch, hidden);
            if (rounding) round_to(exact, 4 * layer, d);
            for (int64_t u = 0, vectors; u < hidden; u += vectors * WIDTH) {
                vectors = together(u, hidden);
                const unit *own_block = blocks + u * depth;
                float *dh = own + u;
#define WIDE(rows) product(rounding, rows, 4, d + b * depth, own_block, s + b, dh + 2 * b * hidden, hidden)
#define NARROW(rows) product(rounding, rows, 1, d + b * depth, own_block, s + b, dh + 2 * b * hidden, hidden)
                if (vectors == 4) TILES(b, batch, WIDE)
                else TILES(b, batch, NARROW)
            }
        }
    }
    free(blocks), free(exact);
    return failed;
}

/* gates and cell as lstm_forward left them, with the weight and state it was given; dy [pop, time, batch, H]. dstate
 * [pop, batch, 2H]: gradient of the last state, which becomes that of the first. dbias [pop, 4H]: zeros. Out: dgates
 * [pop, time, batch, 4H in units], and dbias. */
int lstm_backward(const float *gates, const float *weight, const float *state, const uint8_t *start, const float *cell,
        const float *dy, void *dgates, float *dstate, float *dbias, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden, int64_t apart, int64_t rounding) {
#define BACKWARD(rounding)                                                                                \
    backward(rounding, gates, weight, state, start, cell, dy, dgates, dstate, dbias, pop, time, batch, hidden, apart)
    return rounding ? BACKWARD(1) : BACKWARD(0);
}
