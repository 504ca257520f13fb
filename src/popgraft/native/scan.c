/* Sums over time that begin anew at the end of an episode, in contiguous float32. */
#include "vector.h"

/* out[t] = x[t] + decay * (the sum so far), forward in time or backward. x, out [pop, time, env]; end [pop, time, env]:
 * whether the episode ended with a step, so that nothing passes between it and the next; decay [pop]; carry [pop, env]:
 * the sum before the first step, and then after the last. */
int accumulate(const float *x, const uint8_t *end, const float *decay, float *carry, float *out, int64_t pop,
        int64_t time, int64_t env, int64_t backward) {
    for (int64_t m = 0; m < pop; m++) {
        float *sum = carry + m * env;
        for (int64_t step = 0; step < time; step++) {
            int64_t at = (m * time + (backward ? time - 1 - step : step)) * env;
            for (int64_t e = 0; e < env; e++) {
                float before = backward && end[at + e] ? 0.0f : sum[e];
                float now = x[at + e] + decay[m] * before;
                out[at + e] = now;
                sum[e] = !backward && end[at + e] ? 0.0f : now;
            }
        }
    }
    return 0;
}

/* One step of scan for n numbers of one environment; with `pairs` they are the real parts of n complex ones, whose
 * imaginary parts lie n behind. */
INLINE void scan_step(int pairs, int backward, const float *restrict a, const float *restrict b, int start,
        float *restrict h, float *restrict out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        float re = h[i], im = pairs ? h[n + i] : 0.0f, a_im = pairs ? a[n + i] : 0.0f;
        if (backward) {
            re += b[i], im += pairs ? b[n + i] : 0.0f;
            out[i] = re;
            if (pairs) out[n + i] = im;
            h[i] = start ? 0.0f : a[i] * re + a_im * im;
            if (pairs) h[n + i] = start ? 0.0f : a[i] * im - a_im * re;
        } else {
            out[i] = h[i] = (start ? 0.0f : a[i] * re - a_im * im) + b[i];
            if (pairs) out[n + i] = h[n + i] = (start ? 0.0f : a[i] * im + a_im * re) + b[n + i];
        }
    }
}

/* out[t] = a[t] h + b[t] is h for the next step; where start says so h is 0 before. With `backward` in time out[t] = h
 * + b[t], and conj(a[t]) out[t], or 0, is h for the step before. b, out [pop, time, env, n]; a like b or, where it is
 * `fixed`, [pop, n]; start [pop, time, env]; carry [pop, env, n]: h before, and then after all steps. With `pairs` n is
 * twice the number of complex numbers, real parts first. */
int scan(const float *b, const float *a, const uint8_t *start, float *carry, float *out, int64_t pop, int64_t time,
        int64_t env, int64_t n, int64_t fixed, int64_t pairs, int64_t backward) {
    for (int64_t m = 0; m < pop; m++)
        for (int64_t step = 0; step < time; step++)
            for (int64_t e = 0; e < env; e++) {
                int64_t row = (m * time + (backward ? time - 1 - step : step)) * env + e;
                const float *own = a + (fixed ? m : row) * n;
#define STEP(pairs, backward)                                                                             \
    scan_step(pairs, backward, own, b + row * n, start[row], carry + (m * env + e) * n, out + row * n,    \
              (pairs) ? n / 2 : n)
                if (backward) {
                    if (pairs) STEP(1, 1);
                    else STEP(0, 1);
                } else if (pairs) STEP(1, 0);
                else STEP(0, 0);
            }
    return 0;
}
