/* What a model does to each row by itself, in one pass where torch takes one an operation. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "exponential.h"

#define PARALLEL_FLOATS_MIN 16384 /* less is done sooner than other threads have woken up */

static inline float absolute_maximum(const float *row, int64_t columns) {
    int32_t most = 0; /* as integers, so that a NaN is the greatest of all */
#pragma omp simd reduction(max : most)
    for (int64_t i = 0; i < columns; i++) {
        union { float value; int32_t bits; } it = {row[i]};
        int32_t bits = it.bits & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    union { int32_t bits; float value; } found = {most};
    return found.value;
}

/* int8 in -levels .. levels, and a scale for each row. */
void quantize_rows(const float *values, int8_t *quantized, float *scales, int64_t rows,
                   int64_t columns, float levels, float scale_min, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) \
    if (rows * columns >= PARALLEL_FLOATS_MIN)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = values + r * columns;
        int8_t *out = quantized + r * columns;
        float most = absolute_maximum(row, columns);
        float scale = (most < scale_min ? scale_min : most) / levels;
        scales[r] = scale;
        for (int64_t i = 0; i < columns; i++) out[i] = (int8_t)(int32_t)rintf(row[i] / scale);
    }
}

/* normed = (inputs + residual) / rms * weight; residual and weight may be absent. */
void rms_norm(const float *inputs, const float *residual, const float *weight, float *total,
              float *normed, int64_t rows, int64_t columns, float epsilon, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) \
    if (rows * columns >= PARALLEL_FLOATS_MIN)
    for (int64_t r = 0; r < rows; r++) {
        const float *row = inputs + r * columns;
        float *out = normed + r * columns;
        if (residual) {
            const float *more = residual + r * columns;
            float *sum = total + r * columns;
            for (int64_t i = 0; i < columns; i++) sum[i] = row[i] + more[i];
            row = sum;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < columns; i++) squares += row[i] * row[i];
        float factor = 1.0f / sqrtf(squares / (float)columns + epsilon);
        if (weight)
            for (int64_t i = 0; i < columns; i++) out[i] = row[i] * factor * weight[i];
        else
            for (int64_t i = 0; i < columns; i++) out[i] = row[i] * factor;
    }
}

/* silu(first half) * second half of each row of 2 * columns. */
void swiglu(const float *gate_up, float *output, int64_t rows, int64_t columns, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) \
    if (rows * columns >= PARALLEL_FLOATS_MIN)
    for (int64_t r = 0; r < rows; r++) {
        const float *gate = gate_up + r * 2 * columns, *up = gate + columns;
        float *out = output + r * columns;
#pragma omp simd
        for (int64_t i = 0; i < columns; i++) {
            float g = gate[i], e = exp_of(-fabsf(g));
            float sigmoid = (g < 0 ? e : 1.0f) / (1.0f + e);
            out[i] = g * sigmoid * up[i];
        }
    }
}

/* Turns the two halves of each head against each other.
 *
 * heads: [tokens, count, 2 * half], `stride` floats from one token to the next; out likewise, dense.
 * cos, sin: [tokens, half]. */
void rotate(const float *heads, const float *cos, const float *sin, float *out, int64_t tokens,
            int64_t count, int64_t half, int64_t stride, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads) \
    if (tokens * count * half >= PARALLEL_FLOATS_MIN)
    for (int64_t t = 0; t < tokens; t++) {
        const float *c = cos + t * half, *s = sin + t * half;
        for (int64_t h = 0; h < count; h++) {
            const float *first = heads + t * stride + h * 2 * half, *second = first + half;
            float *low = out + (t * count + h) * 2 * half, *high = low + half;
#pragma omp simd
            for (int64_t i = 0; i < half; i++) {
                low[i] = first[i] * c[i] - second[i] * s[i];
                high[i] = second[i] * c[i] + first[i] * s[i];
            }
        }
    }
}
