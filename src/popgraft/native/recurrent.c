/* A layer of an LSTM or of a GRU over time, and its gradient, on one core, in contiguous float32.
 *
 * Members are independent: each is unrolled by itself, with its weights in the cache and its gates in registers. The
 * equations are those of lstm.py and gru.py. H, the hidden units, must be a multiple of width(). A layer with four
 * `gates` is an LSTM, whose state is h and then c; one with three is a GRU, whose state is h: where c is spoken of, it
 * is h once more. With `rounding`, where rounds() allows it, the factors of all products are in bfloat16.
 */
#include "products.h"

#define PARTS(gates) ((gates) == 4 ? 2 : 1) /* vectors of H numbers in a state */

int64_t width(void) { return WIDTH; }
int64_t rounds(void) { return ROUNDS; }

INLINE int packed(int rounding, const float *weight, unit *panels, int64_t pop, int64_t gates, int64_t hidden,
        int64_t n, int64_t apart, int64_t panels_apart) {
    unit *rows = malloc((size_t)(WIDTH * n) * sizeof(unit) + 1);
    for (int64_t m = 0; m < pop && rows; m++)
        panel(rounding, gates, weight + m * apart, n, panels + m * panels_apart, rows, hidden);
    free(rows);
    return !rows;
}

/* weight [pop, gates * H, n], whose members lie `apart` numbers. Out: panels [pop, gates * H, n in units], whose
 * members lie `panels_apart` units. */
int pack(const float *weight, void *panels, int64_t pop, int64_t gates, int64_t hidden, int64_t n, int64_t apart,
        int64_t panels_apart, int64_t rounding) {
    return rounding ? packed(1, weight, panels, pop, gates, hidden, n, apart, panels_apart)
                    : packed(0, weight, panels, pop, gates, hidden, n, apart, panels_apart);
}

/* What inputs add to the gates of WIDTH hidden units, and their bias, for some environments and steps. */
INLINE void share(int rounding, int rows, int gates, const unit *panel, const float *bias, const unit *in,
        int64_t apart, int64_t depth, float *out, int64_t hidden) {
    vec acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < gates; g++) acc[r][g] = LOAD(bias + g * hidden);
    multiply(rounding, rows, gates, in, apart, panel, depth, acc);
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < gates; g++) STORE(out + (r * 4 + g) * hidden, acc[r][g]);
}

/* One step of WIDTH hidden units in some environments; `own` holds the share of the input before, and what step_back
 * needs after it: i, f, g and o, or r, z, n and n's share of h. `h` is apart as `share` has it. */
INLINE void step(int rounding, int rows, int gates, const unit *panel, const float *bias, const unit *h, int64_t apart,
        float *own, const float *c_before, int64_t stride, const uint8_t *start, float *c, float *y, int64_t hidden) {
    vec acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < gates; g++)
            acc[r][g] = gates == 3 && g == 2 ? LOAD(bias + 3 * hidden) : LOAD(own + (r * 4 + g) * hidden);
    multiply(rounding, rows, gates, h, apart, panel, units(rounding, hidden), acc);
    for (int r = 0; r < rows; r++) {
        float *out = own + r * 4 * hidden;
        vec before = kept(LOAD(c_before + r * stride), start[r]);
        if (gates == 4) {
            vec i = vsigmoid(acc[r][0]), f = vsigmoid(acc[r][1]), g = vtanh(acc[r][2]), o = vsigmoid(acc[r][3]);
            vec cell = f * before + i * g;
            STORE(out, i); STORE(out + hidden, f); STORE(out + 2 * hidden, g); STORE(out + 3 * hidden, o);
            STORE(c + r * hidden, cell);
            STORE(y + r * hidden, o * vtanh(cell));
        } else {
            vec reset = vsigmoid(acc[r][0]), z = vsigmoid(acc[r][1]), n_h = acc[r][2];
            vec n = vtanh(LOAD(out + 2 * hidden) + reset * n_h);
            STORE(out, reset); STORE(out + hidden, z); STORE(out + 2 * hidden, n); STORE(out + 3 * hidden, n_h);
            STORE(y + r * hidden, n + z * (before - n));
        }
    }
}

INLINE void forward(int rounding, int gates, const float *x, const unit *panels, const float *bias, const float *state,
        const uint8_t *start, unit *inputs, float *own, float *cell, float *y, float *last, int64_t pop, int64_t time,
        int64_t batch, int64_t hidden, int64_t n_in) {
    int64_t seen = units(rounding, n_in), depth = seen + units(rounding, hidden), parts = PARTS(gates);
    int64_t layer = batch * hidden, count = time * batch;
    for (int64_t m = 0; m < pop; m++, panels += gates * hidden * depth, bias += 4 * hidden) {
        const unit *panels_h = panels + gates * hidden * seen;
        unit *in = inputs + m * count * depth;
        float *g = own + 4 * m * time * layer;
        for (int64_t b = 0; b < count; b++) place(rounding, x + (m * count + b) * n_in, n_in, in + b * depth);
        for (int64_t u = 0; u < hidden; u += WIDTH) {
#define SHARE(rows)                                                                                       \
    share(rounding, rows, gates, panels + u * gates * seen, bias + u, in + b * depth, depth, seen,        \
          g + 4 * b * hidden + u, hidden)
            TILES(b, count, SHARE)
        }
        const float *h_before = state + parts * m * layer, *c_before = h_before + (parts - 1) * hidden;
        int64_t stride = parts * hidden; /* from one environment's state before a step to the next one's */
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
    step(rounding, rows, gates, panels_h + u * gates * (depth - seen), bias + u, in + b * depth + seen, depth, \
         g + 4 * b * hidden + u, c_before + b * stride + u, stride, s + b, c + b * hidden + u, out + b * hidden + u, \
         hidden)
                TILES(b, batch, STEP)
            }
            h_before = out, c_before = c, stride = hidden;
        }
        for (int64_t b = 0; b < batch; b++) {
            float *after = last + parts * (m * layer + b * hidden);
            memcpy(after, h_before + b * stride, (size_t)hidden * sizeof(float));
            if (parts == 2) memcpy(after + hidden, c_before + b * stride, (size_t)hidden * sizeof(float));
        }
    }
}

/* x [pop, time, batch, n_in]; panels [pop, gates * H, units of n_in and of H] as pack leaves those of inputs and then
 * of h; bias [pop, 4H], of a GRU r, z, n and n's share of h. start [pop, time, batch]. state [pop, batch, parts * H]
 * before the first step. Out: inputs [pop, time, batch, units of x and then of h before the step], own [pop, time,
 * batch, 4H] for the way back, cell and y [pop, time, batch, H], which are one for a GRU, and last: the state after the
 * last step. */
int recurrent_forward(const float *x, const void *panels, const float *bias, const float *state, const uint8_t *start,
        void *inputs, float *own, float *cell, float *y, float *last, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden, int64_t n_in, int64_t gates, int64_t rounding) {
#define FORWARD(rounding, gates)                                                                          \
    forward(rounding, gates, x, panels, bias, state, start, inputs, own, cell, y, last, pop, time, batch, hidden, n_in)
    if (gates == 4) {
        if (rounding) FORWARD(1, 4);
        else FORWARD(0, 4);
    } else if (rounding) FORWARD(1, 3);
    else FORWARD(0, 3);
    return 0;
}

/* One step back for all environments of a member: the gradient before its gates goes to dgates [batch, 4H] (of a GRU
 * n's, r's, z's and that of n's share of h, so that what inputs need and what h needs lie together), and what it adds
 * up to is added to dbias [4H]. What reaches the state past the product is left in dstate. */
INLINE void step_back(int gates, const float *own, const float *cell, const float *c_before, int64_t stride,
        const uint8_t *start, const float *dy, float *dstate, float *dgates, float *dbias, int64_t batch,
        int64_t hidden) {
    for (int64_t u = 0; u < hidden; u += WIDTH) {
        vec sum[4];
        for (int g = 0; g < 4; g++) sum[g] = LOAD(dbias + g * hidden + u);
        for (int64_t b = 0; b < batch; b++) {
            int64_t at = b * hidden + u;
            const float *gate = own + 4 * b * hidden + u;
            float *dh = dstate + PARTS(gates) * b * hidden + u, *dc = dh + hidden, *out = dgates + 4 * b * hidden + u;
            vec before = kept(LOAD(c_before + b * stride + u), start[b]), dh_t = LOAD(dh) + LOAD(dy + at);
            vec found[4];
            if (gates == 4) {
                vec i = LOAD(gate), f = LOAD(gate + hidden), g = LOAD(gate + 2 * hidden), o = LOAD(gate + 3 * hidden);
                vec tanh_c = vtanh(LOAD(cell + at));
                vec dc_t = LOAD(dc) + dh_t * o * (1.0f - tanh_c * tanh_c);
                found[0] = dc_t * g * i * (1.0f - i), found[1] = dc_t * before * f * (1.0f - f);
                found[2] = dc_t * i * (1.0f - g * g), found[3] = dh_t * tanh_c * o * (1.0f - o);
                STORE(dc, kept(dc_t * f, start[b]));
            } else {
                vec r = LOAD(gate), z = LOAD(gate + hidden), n = LOAD(gate + 2 * hidden), n_h = LOAD(gate + 3 * hidden);
                vec dn = dh_t * (1.0f - z) * (1.0f - n * n);
                found[0] = dn * n_h * r * (1.0f - r), found[1] = dh_t * (before - n) * z * (1.0f - z);
                found[2] = dn, found[3] = dn * r;
                STORE(dh, dh_t * z);
            }
            for (int g = 0; g < 4; g++) {
                STORE(out + (gates == 4 || g == 3 ? g : (g + 1) % 3) * hidden, found[g]);
                sum[g] += found[g];
            }
        }
        for (int g = 0; g < 4; g++) STORE(dbias + g * hidden + u, sum[g]);
    }
}

/* Some columns of dh = dgates weight, for some environments, beside what has reached a GRU's state past the product. */
INLINE void product(int rounding, int rows, int vectors, int gates, const unit *dgates, const unit *blocks,
        const uint8_t *start, float *dh, int64_t hidden) {
    int64_t apart = PARTS(gates) * hidden;
    vec acc[ROWS][4] = {};
    if (gates == 3)
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) acc[r][v] = LOAD(dh + r * apart + v * WIDTH);
    multiply(rounding, rows, vectors, dgates, units(rounding, 4 * hidden), blocks, units(rounding, gates * hidden),
             acc);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) STORE(dh + r * apart + v * WIDTH, kept(acc[r][v], start[r]));
}

INLINE int backward(int rounding, int gates, const float *own, const float *weight, const float *state,
        const uint8_t *start, const float *cell, const float *dy, unit *dgates, float *dstate, float *dbias,
        int64_t pop, int64_t time, int64_t batch, int64_t hidden, int64_t apart) {
    int64_t layer = batch * hidden, depth = units(rounding, 4 * hidden), parts = PARTS(gates);
    int64_t columns = units(rounding, gates * hidden), first = depth - columns; /* of dgates that h has a share in */
    unit *blocks = aligned_alloc(64, (size_t)(columns * hidden) * sizeof(unit));
    float *exact = malloc((size_t)(4 * layer) * sizeof(float));
    int failed = !blocks || !exact;
    for (int64_t m = 0; m < pop && !failed; m++) {
        float *carried = dstate + parts * m * layer;
        block(rounding, weight + m * apart, gates * hidden, blocks, hidden);
        for (int64_t t = (m + 1) * time - 1; t >= m * time; t--) {
            int64_t now = t * layer, stride = t == m * time ? parts * hidden : hidden;
            const float *c_before =
                t == m * time ? state + parts * m * layer + (parts - 1) * hidden : cell + now - layer;
            const uint8_t *s = start + t * batch;
            unit *d = dgates + t * batch * depth;
            step_back(gates, own + 4 * now, cell + now, c_before, stride, s, dy + now, carried, rounding ? exact : d,
                      dbias + 4 * m * hidden, batch, hidden);
            if (rounding) round_to(exact, 4 * layer, d);
            for (int64_t u = 0, vectors; u < hidden; u += vectors * WIDTH) {
                vectors = together(u, hidden);
                const unit *own_block = blocks + u * columns;
#define PRODUCT(rows, vectors)                                                                            \
    product(rounding, rows, vectors, gates, d + b * depth + first, own_block, s + b, carried + parts * b * hidden + u, \
            hidden)
#define WIDE(rows) PRODUCT(rows, 4)
#define NARROW(rows) PRODUCT(rows, 1)
                if (vectors == 4) TILES(b, batch, WIDE)
                else TILES(b, batch, NARROW)
            }
        }
    }
    free(blocks), free(exact);
    return failed;
}

/* own and cell as recurrent_forward left them, with the weight of h, whose members lie `apart` numbers, and the state
 * it was given; dy [pop, time, batch, H]. dstate [pop, batch, parts * H]: gradient of the last state, which becomes
 * that of the first. dbias [pop, 4H]: zeros. Out: dgates [pop, time, batch, 4H in units] as step_back has them, and
 * dbias. */
int recurrent_backward(const float *own, const float *weight, const float *state, const uint8_t *start,
        const float *cell, const float *dy, void *dgates, float *dstate, float *dbias, int64_t pop, int64_t time,
        int64_t batch, int64_t hidden, int64_t apart, int64_t gates, int64_t rounding) {
#define BACKWARD(rounding, gates)                                                                         \
    backward(rounding, gates, own, weight, state, start, cell, dy, dgates, dstate, dbias, pop, time, batch, hidden, \
             apart)
    if (gates == 4) return rounding ? BACKWARD(1, 4) : BACKWARD(0, 4);
    return rounding ? BACKWARD(1, 3) : BACKWARD(0, 3);
}
