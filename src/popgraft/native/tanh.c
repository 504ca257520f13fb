/* The hyperbolic tangent of contiguous float32, and its gradient. */
#include <string.h>

#include "vector.h"

/* y = tanh(x), for n numbers. */
int tanh_forward(const float *x, float *y, int64_t n) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) STORE(y + i, vtanh(LOAD(x + i)));
    if (i < n) {
        float rest[WIDTH] = {0};
        memcpy(rest, x + i, (n - i) * sizeof(float));
        STORE(rest, vtanh(LOAD(rest)));
        memcpy(y + i, rest, (n - i) * sizeof(float));
    }
    return 0;
}

/* dx = dy (1 - y^2), for n numbers. */
int tanh_backward(const float *restrict dy, const float *restrict y, float *restrict dx, int64_t n) {
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * (1.0f - y[i] * y[i]);
    return 0;
}
