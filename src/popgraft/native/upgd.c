/* A step of UPGD or AdaptiveUPGD for a whole population, in two passes over contiguous float32 (upgd.py). Between them
 * the largest utility must be known. */
#include <math.h>

#include "vector.h"

/* Averages of utility and, where the rule is adaptive, of moments. params, grad, utility, exp_avg, exp_avg_sq [pop, n];
 * own [pop, 3]: what is kept of the utility, what is taken of the gradient, what is kept of the second moment;
 * constants [2]: factors of g theta and of g^2. Out: extremes [2, pop]: least and largest utility, NaN where one is. */
int upgd_track(const float *params, const float *grad, float *utility, float *exp_avg, float *exp_avg_sq,
        const float *own, const float *constants, float *extremes, int64_t pop, int64_t n, int64_t adaptive) {
    for (int64_t m = 0; m < pop; m++) {
        const float keep = own[3 * m], take_grad = own[3 * m + 1], keep_square = own[3 * m + 2];
        vec low = (vec){} + INFINITY, high = (vec){} - INFINITY;
        ivec odd = {};
        for (int64_t i = 0; i < n; i += WIDTH) {
            int64_t left = n - i, at = m * n + i;
            vec g = take(grad + at, left);
            vec u = take(utility + at, left) * keep + constants[0] * (g * take(params + at, left));
            give(utility + at, u, left);
            odd |= u != u;
            low = pick(u < low, u, low);
            high = pick(u > high, u, high);
            if (adaptive) {
                vec first = take(exp_avg + at, left), second = take(exp_avg_sq + at, left);
                give(exp_avg + at, MIX(first, g, take_grad), left);
                give(exp_avg_sq + at, second * keep_square + constants[1] * (g * g), left);
            }
        }
        float *lowest = extremes + m, *highest = extremes + pop + m;
        *lowest = low[0], *highest = high[0];
        for (int i = 0; i < WIDTH; i++) {
            *lowest = low[i] < *lowest ? low[i] : *lowest;
            *highest = high[i] > *highest ? high[i] : *highest;
        }
        for (int i = 0; i < WIDTH; i++)
            if (odd[i]) *lowest = *highest = NAN;
    }
    return 0;
}

/* The step itself. noise [pop, n]; own [pop, 5]: eta, factor of the noise, epsilon, factor of the direction, what is
 * kept of the parameters. Out: gate [pop], the mean of 1 - s. */
int upgd_descend(float *params, const float *grad, const float *utility, const float *exp_avg, const float *exp_avg_sq,
        const float *noise, const float *own, float *gate, int64_t pop, int64_t n, int64_t adaptive) {
    for (int64_t m = 0; m < pop; m++) {
        const float *mine = own + 5 * m;
        const float eta = mine[0], spread = mine[1], epsilon = mine[2], length = mine[3], keep = mine[4];
        double sum = 0;
        vec part = {}; /* of 2^8 vectors at most, so that nothing is lost of it */
        for (int64_t i = 0; i < n; i += WIDTH) {
            int64_t left = n - i, at = m * n + i;
            vec open = vsigmoid(-(take(utility + at, left) / eta));
            vec towards = adaptive ? take(exp_avg + at, left) / (vsqrt(take(exp_avg_sq + at, left)) + epsilon)
                                   : take(grad + at, left);
            vec step = (take(noise + at, left) * spread + towards) * open;
            give(params + at, take(params + at, left) * keep + length * step, left);
            if (left >= WIDTH) part += open;
            for (int64_t l = 0; left < WIDTH && l < left; l++) sum += open[l];
            if (i / WIDTH % 256 == 255 || left <= WIDTH) {
                for (int l = 0; l < WIDTH; l++) sum += part[l];
                part = (vec){};
            }
        }
        gate[m] = (float)(sum / n);
    }
    return 0;
}
