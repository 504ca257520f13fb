/* The hyperbolic tangent of contiguous float32, and its gradient. */
#include "vector.h"

/* y = tanh(x), for n numbers. */
int tanh_forward(const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i += WIDTH) give(y + i, vtanh(take(x + i, n - i)), n - i);
    return 0;
}

/* dx = dy (1 - y^2), for n numbers. */
int tanh_backward(const float *restrict dy, const float *restrict y, float *restrict dx, int64_t n) {
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * (1.0f - y[i] * y[i]);
    return 0;
}
