/* A layer of minGRUs over time, and its gradient, on one core, in contiguous float32. The equations are those of
 * mingru.py; H, the hidden units, must be a multiple of width(). */
#include "products.h"

/* One step of WIDTH hidden units in some environments: their gates, h and y. `before` is h before it. */
INLINE void step(int rounding, int rows, const unit *panel, const float *bias, const unit *in, int64_t depth,
        const float *way, const float *before, const uint8_t *start, float *gates, float *h, float *y,
        int64_t hidden) {
    vec acc[ROWS][4];
    for (int r = 0; r < rows; r++)
        for (int g = 0; g < 3; g++) acc[r][g] = LOAD(bias + g * hidden);
    multiply(rounding, rows, 3, in, depth, panel, depth, acc);
    for (int r = 0; r < rows; r++) {
        vec z = vsigmoid(acc[r][0]), p = vsigmoid(acc[r][1]), n = acc[r][2], x = LOAD(way + r * hidden);
        vec h_t = kept(LOAD(before + r * hidden), start[r]);
        h_t += z * (n - h_t);
        float *out = gates + 3 * r * hidden;
        STORE(out, z); STORE(out + hidden, p); STORE(out + 2 * hidden, n);
        STORE(h + r * hidden, h_t);
        STORE(y + r * hidden, x + p * (h_t - x));
    }
}

INLINE int forward(int rounding, const float *x, const unit *panels, const float *bias, const float *way,
        const uint8_t *start, const float *state, float *gates, float *h, float *y, int64_t pop, int64_t time,
        int64_t batch, int64_t hidden, int64_t n_in) {
    int64_t depth = units(rounding, n_in), layer = batch * hidden, count = time * batch;
    unit *rounded = rounding ? malloc((size_t)(count * depth) * sizeof(unit) + 1) : NULL;
    if (rounding && !rounded) return 1;
    for (int64_t m = 0; m < pop; m++) {
        const unit *in = rounding ? rounded : x + m * count * n_in;
        if (rounding)
            for (int64_t b = 0; b < count; b++) round_to(x + (m * count + b) * n_in, n_in, rounded + b * depth);
        for (int64_t u = 0; u < hidden; u += WIDTH) {
            const float *before = state + m * layer + u;
            for (int64_t t = 0; t < time; t++) {
                int64_t now = (m * time + t) * layer + u;
#define STEP(rows)                                                                                        \
    step(rounding, rows, panels + (m * hidden + u) * 3 * depth, bias + 3 * m * hidden + u,                \
         in + (t * batch + b) * depth, depth, way + now + b * hidden, before + b * hidden,                \
         start + (m * time + t) * batch + b, gates + 3 * (now - u + b * hidden) + u, h + now + b * hidden, \
         y + now + b * hidden, hidden)
                TILES(b, batch, STEP)
                before = h + now;
            }
        }
    }
    free(rounded);
    return 0;
}

/* x [pop, time, batch, n_in]; panels as pack leaves the weights of z, p and n; bias [pop, 3H]; way [pop, time, batch,
 * H]: what the highway carries; start [pop, time, batch]; state [pop, batch, H] before the first step. Out: gates [pop,
 * time, batch, 3H], h and y [pop, time, batch, H]. */
int mingru_forward(const float *x, const void *panels, const float *bias, const float *way, const uint8_t *start,
        const float *state, float *gates, float *h, float *y, int64_t pop, int64_t time, int64_t batch, int64_t hidden,
        int64_t n_in, int64_t rounding) {
#define FORWARD(rounding)                                                                                 \
    forward(rounding, x, panels, bias, way, start, state, gates, h, y, pop, time, batch, hidden, n_in)
    return rounding ? FORWARD(1) : FORWARD(0);
}

/* gates, h, way, start and state as mingru_forward had and left them; dy [pop, time, batch, H]. dh [pop, batch, H]:
 * gradient of the last state, which becomes that of the first. dbias [pop, 3H]: zeros. Out: dgates [pop, time, batch,
 * 3H], before the nonlinearities, dway, and dbias. Back in every row too: what the processor reads ahead then lies in
 * one direction. */
int mingru_backward(const float *gates, const float *h, const float *way, const uint8_t *start, const float *state,
        const float *dy, float *dh, float *dgates, float *dway, float *dbias, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden) {
    for (int64_t i = pop * time * batch - 1; i >= 0; i--) {
        int64_t m = i / (time * batch), e = i % batch, first = i / batch % time == 0, at = i * hidden;
        const float *before = first ? state + (m * batch + e) * hidden : h + at - batch * hidden;
        float *carried = dh + (m * batch + e) * hidden, *sum = dbias + 3 * m * hidden;
        for (int64_t u = hidden - WIDTH; u >= 0; u -= WIDTH) {
            const float *gate = gates + 3 * at + u;
            vec z = LOAD(gate), p = LOAD(gate + hidden), n = LOAD(gate + 2 * hidden);
            vec by_y = LOAD(dy + at + u), by_h = LOAD(carried + u) + p * by_y;
            vec moved = n - kept(LOAD(before + u), start[i]), over = LOAD(h + at + u) - LOAD(way + at + u);
            vec found[3] = {by_h * moved * z * (1.0f - z), by_y * over * p * (1.0f - p), by_h * z};
            for (int g = 2; g >= 0; g--) {
                STORE(dgates + 3 * at + g * hidden + u, found[g]);
                STORE(sum + g * hidden + u, LOAD(sum + g * hidden + u) + found[g]);
            }
            STORE(dway + at + u, (1.0f - p) * by_y);
            STORE(carried + u, kept((1.0f - z) * by_h, start[i]));
        }
    }
    return 0;
}
