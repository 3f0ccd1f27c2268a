/* What linear layers over packed weights share, whatever multiplies. */

#ifndef PANELS_H
#define PANELS_H

#include <stdint.h>
#include <string.h>

#define LANES 16
#define LINE 64 /* bytes that are fetched at once */
#define ALWAYS static inline __attribute__((always_inline))
/* Products of fewer are done sooner than other threads have woken up. */
#define PARALLEL_PRODUCTS_MIN (1 << 17)

/* Where part `index` begins of so many things that are cut into even parts. */
static inline int64_t cut(int64_t index, int64_t parts, int64_t count) {
    return index * count / parts;
}

/* How many parts of this size hold so many things. */
static inline int64_t parts_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* What bf16 holds of a number, towards zero. */
static inline float short_of(float value) { return of_bits(bits_of(value) & 0xFFFF0000); }

/* The fewest numbers of bf16, of 1 .. 3, whose sum each of the weights is. Checkpoints of bf16 need
 * 1, those of fp16 need 2. */
static int shorts_needed(const float *weight, int64_t count, int32_t threads) {
    uint32_t after_one = 0, after_two = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(| : after_one, after_two)
    for (int64_t i = 0; i < count; i++) {
        after_one |= bits_of(weight[i]) & 0xFFFF;
        after_two |= bits_of(weight[i] - short_of(weight[i])) & 0xFFFF;
    }
    return !after_one ? 1 : !after_two ? 2 : 3;
}

#endif
