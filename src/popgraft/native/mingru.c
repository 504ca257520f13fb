/* What a minGRU does after its products, and its gradient, in contiguous float32. The equations are those of mingru.py. */
#include "vector.h"

typedef struct {
    vec z, p, n; /* σ(z), σ(p) and the candidate */
} gates_of;

INLINE gates_of gates_at(const float *row, int64_t hidden, int64_t u) {
    int64_t left = hidden - u;
    return (gates_of){vsigmoid(take(row + u, left)), vsigmoid(take(row + hidden + u, left)),
                      take(row + 2 * hidden + u, left)};
}

/* h before a step; zero where an episode starts, whatever it is. */
INLINE vec before(const float *h, int64_t u, int64_t left, uint8_t start) {
    return start ? (vec){} : take(h + u, left);
}

/* gates [pop, time, batch, 3H]: z, p and n before their nonlinearities. x, h and y [pop, time, batch, H]; state [pop, batch,
 * H] before the first step; start [pop, time, batch]. Out: h after every step, and y. */
int mingru_forward(const float *gates, const float *x, const uint8_t *start, const float *state, float *h, float *y,
        int64_t pop, int64_t time, int64_t batch, int64_t hidden) {
    for (int64_t m = 0; m < pop; m++)
        for (int64_t t = 0; t < time; t++)
            for (int64_t e = 0; e < batch; e++) {
                int64_t row = (m * time + t) * batch + e, at = row * hidden;
                const float *h_tm1 = t ? h + at - batch * hidden : state + (m * batch + e) * hidden;
                for (int64_t u = 0; u < hidden; u += WIDTH) {
                    int64_t left = hidden - u;
                    gates_of g = gates_at(gates + 3 * at, hidden, u);
                    vec h_t = before(h_tm1, u, left, start[row]), x_t = take(x + at + u, left);
                    h_t += g.z * (g.n - h_t);
                    give(h + at + u, h_t, left);
                    give(y + at + u, x_t + g.p * (h_t - x_t), left);
                }
            }
    return 0;
}

/* gates, x, start, state and h as mingru_forward had and left them; dy [pop, time, batch, H]. dh [pop, batch, H]: gradient
 * of the last state, which becomes that of the first. Out: dgates [pop, time, batch, 3H], and dx by y. */
int mingru_backward(const float *gates, const float *x, const uint8_t *start, const float *state, const float *h,
        const float *dy, float *dh, float *dgates, float *dx, int64_t pop, int64_t time, int64_t batch,
        int64_t hidden) {
    /* Back in every row too: what is read ahead for us goes in one direction. */
    for (int64_t m = 0; m < pop; m++)
        for (int64_t t = time - 1; t >= 0; t--)
            for (int64_t e = batch - 1; e >= 0; e--) {
                int64_t row = (m * time + t) * batch + e, at = row * hidden;
                const float *h_tm1 = t ? h + at - batch * hidden : state + (m * batch + e) * hidden;
                float *own = dh + (m * batch + e) * hidden, *out = dgates + 3 * at;
                for (int64_t u = (hidden - 1) / WIDTH * WIDTH; u >= 0; u -= WIDTH) {
                    int64_t left = hidden - u;
                    gates_of g = gates_at(gates + 3 * at, hidden, u);
                    vec by_y = take(dy + at + u, left), by_h = take(own + u, left) + g.p * by_y;
                    vec moved = g.n - before(h_tm1, u, left, start[row]);
                    vec way = take(h + at + u, left) - take(x + at + u, left);
                    give(out + u, by_h * moved * g.z * (1.0f - g.z), left);
                    give(out + hidden + u, by_y * way * g.p * (1.0f - g.p), left);
                    give(out + 2 * hidden + u, by_h * g.z, left);
                    give(dx + at + u, (1.0f - g.p) * by_y, left);
                    give(own + u, start[row] ? (vec){} : (1.0f - g.z) * by_h, left);
                }
            }
    return 0;
}
