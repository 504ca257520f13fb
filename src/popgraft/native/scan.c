/* Sums over time that begin anew at the end of an episode, in contiguous float32. */
#include <stdint.h>

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
