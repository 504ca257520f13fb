/* Draws from categorical distributions, in contiguous float32. */
#include <stdlib.h>

#include "vector.h"

/* e^x, and nothing at all of what is out of reach. */
INLINE vec share(vec x) { return pick(x < -87.0f, (vec){}, vexp(x)); }

/* The first choice of every sub-action whose cumulative probability exceeds the noise; choice 0 where it is NaN.
 * logits [rows, sum of sizes], noise [rows, dims] in [0, 1), sizes [dims]. Out: choices [rows, dims]. 1: no memory. */
int choose(const float *logits, const float *noise, const int64_t *sizes, int64_t *choices, int64_t rows,
        int64_t dims) {
    int64_t most = 0;
    for (int64_t d = 0; d < dims; d++) most = sizes[d] > most ? sizes[d] : most;
    float *cumulative = malloc(most * sizeof(float));
    if (!cumulative) return 1;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t d = 0; d < dims; logits += sizes[d], d++, noise++, choices++) {
            int64_t n = sizes[d];
            float top = logits[0], whole = 0.0f;
            for (int64_t k = 1; k < n; k++) top = logits[k] > top ? logits[k] : top;
            for (int64_t k = 0; k < n; k += WIDTH) {
                vec p = share(take(logits + k, n - k) - top);
                for (int64_t i = 0; i < WIDTH && k + i < n; i++) cumulative[k + i] = whole += p[i];
            }
            *choices = 0;
            for (int64_t k = 0; k < n - 1; k++) *choices += cumulative[k] <= *noise * whole;
        }
    free(cumulative);
    return 0;
}
