/* Draws from categorical distributions, in contiguous float32. */
#include "vector.h"

/* e^x, and nothing at all of what is out of reach. */
INLINE vec share(vec x) { return pick(x < -87.0f, (vec){}, vexp(x)); }

/* The first choice of every sub-action whose cumulative probability exceeds the noise; choice 0 where it is NaN.
 * logits [rows, sum of sizes], noise [rows, dims] in [0, 1), sizes [dims]. Out: choices [rows, dims]. */
int choose(const float *logits, const float *noise, const int64_t *sizes, int64_t *choices, int64_t rows,
        int64_t dims) {
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < dims; logits += sizes[d], d++, noise++, choices++) {
            int64_t n = sizes[d];
            float top = logits[0], whole = 0.0f, cumulative = 0.0f;
            for (int64_t k = 1; k < n; k++) top = logits[k] > top ? logits[k] : top;
            for (int64_t k = 0; k < n; k += WIDTH) {
                vec p = share(take(logits + k, n - k) - top);
                for (int64_t i = 0; i < WIDTH && k + i < n; i++) whole += p[i];
            }
            *choices = 0;
            for (int64_t k = 0; k < n - 1; k += WIDTH) {
                vec p = share(take(logits + k, n - k) - top);
                for (int64_t i = 0; i < WIDTH && k + i < n - 1; i++) {
                    cumulative += p[i];
                    *choices += cumulative <= *noise * whole;
                }
            }
        }
    return 0;
}
