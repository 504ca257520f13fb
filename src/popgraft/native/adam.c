/* A step of Adam for a whole population, in one pass over contiguous float32. */
#include <math.h>
#include <stdint.h>

#include "vector.h"

/* params, grad, exp_avg, exp_avg_sq [pop, n]. own [pop, 5]: 0 for a member that rests; what its gradient gains of its
 * parameters; what is left of these before the step; length of the step; root of the bias of exp_avg_sq. constants [3]:
 * 1 - beta1, 1 - beta2, epsilon. */
int adam(float *restrict params, const float *restrict grad, float *restrict exp_avg, float *restrict exp_avg_sq,
        const float *own, const float *constants, int64_t pop, int64_t n) {
    const float towards = constants[0], towards_sq = constants[1], epsilon = constants[2];
    for (int64_t m = 0; m < pop; m++) {
        const float *mine = own + 5 * m;
        if (mine[0] == 0.0f) continue; /* its gradient may be NaN */
        const float decay = mine[1], keep = mine[2], rate = mine[3], root = mine[4];
        for (int64_t i = m * n; i < (m + 1) * n; i++) {
            float theta = params[i] * keep, g = grad[i] + decay * params[i];
            exp_avg[i] = MIX(exp_avg[i], g, towards);
            exp_avg_sq[i] = MIX(exp_avg_sq[i], g * g, towards_sq);
            params[i] = theta - rate * exp_avg[i] / (sqrtf(exp_avg_sq[i]) / root + epsilon);
        }
    }
    return 0;
}
