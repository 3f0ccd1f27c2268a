/* Attention of one query token a sequence over paged KV, which is read in place and once.
 *
 * KV: fp32 [blocks, block_size, kv_heads, head_dim]. The maximum and the sum of a softmax are
 * corrected from block to block, so that no score is kept longer than its block. A head is computed
 * in the same order whatever else is in the batch: its bits depend on its own sequence alone.
 */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "exponential.h"

#define HEADS_MAX 512
#define BLOCK_MAX 256

typedef struct {
    int64_t sequences, block_size, kv_heads, group, head_dim;
    int64_t table_width;
    int64_t query_stride; /* floats from one token to the next */
    const int32_t *tables;  /* [sequences, table_width] */
    const int64_t *tokens;  /* [sequences]: which token of the step each one is */
    const int64_t *starts;  /* [sequences]: the first key that is seen */
    const int64_t *lengths; /* [sequences]: one more than the last */
    float scale;
    int32_t threads;
} Step;

static inline float dot(const float *a, const float *b, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

/* One head takes in tokens first .. last - 1 of a block. */
static inline void take_block(const float *query, const float *keys, const float *values,
                              int64_t first, int64_t last, int64_t stride, int64_t head_dim,
                              float scale, float *most, float *total, float *output) {
    float scores[BLOCK_MAX];
    float high = *most;
    for (int64_t t = first; t < last; t++) {
        scores[t] = dot(query, keys + t * stride, head_dim) * scale;
        high = scores[t] > high ? scores[t] : high;
    }
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t t = first; t < last; t++) {
        scores[t] = exp_of(scores[t] - high);
        sum += scores[t];
    }
    float kept = exp_of(*most - high);
    *most = high;
    *total = *total * kept + sum;
    for (int64_t i = 0; i < head_dim; i++) output[i] *= kept;
    for (int64_t t = first; t < last; t++) {
        const float *value = values + t * stride;
        for (int64_t i = 0; i < head_dim; i++) output[i] += scores[t] * value[i];
    }
}

/* The queries of KV heads from_head .. to_head - 1 of one sequence. */
#define ATTEND(NAME, HEAD_DIM)                                                                     \
    static void NAME(const Step *step, const float *queries, const float *keys,                    \
                     const float *values, float *outputs, int64_t sequence, int64_t from_head,     \
                     int64_t to_head) {                                                            \
        const int64_t head_dim = HEAD_DIM, group = step->group, size = step->block_size;           \
        const int64_t stride = step->kv_heads * head_dim, heads = step->kv_heads * group;          \
        const int64_t token = step->tokens[sequence];                                              \
        const int64_t start = step->starts[sequence], end = step->lengths[sequence];               \
        const float *query = queries + token * step->query_stride;                                 \
        float *output = outputs + token * heads * head_dim;                                        \
        float most[HEADS_MAX], total[HEADS_MAX];                                                   \
        for (int64_t h = from_head * group; h < to_head * group; h++) {                            \
            most[h] = -INFINITY;                                                                   \
            total[h] = 0;                                                                          \
        }                                                                                          \
        memset(output + from_head * group * head_dim, 0,                                           \
               (to_head - from_head) * group * head_dim * sizeof(float));                          \
        for (int64_t b = start / size; b * size < end; b++) {                                      \
            int64_t block = step->tables[sequence * step->table_width + b];                        \
            int64_t first = start > b * size ? start - b * size : 0;                               \
            int64_t last = end - b * size < size ? end - b * size : size;                          \
            for (int64_t k = from_head; k < to_head; k++) {                                        \
                int64_t offset = block * size * stride + k * head_dim;                             \
                for (int64_t h = k * group; h < (k + 1) * group; h++)                              \
                    take_block(query + h * head_dim, keys + offset, values + offset, first, last,  \
                               stride, head_dim, step->scale, most + h, total + h,                 \
                               output + h * head_dim);                                             \
            }                                                                                      \
        }                                                                                          \
        for (int64_t h = from_head * group; h < to_head * group; h++)                              \
            for (int64_t i = 0; i < head_dim; i++) output[h * head_dim + i] /= total[h];           \
    }

ATTEND(attend_64, 64)
ATTEND(attend_128, 128)
ATTEND(attend_any, step->head_dim)

/* queries, outputs: [tokens, heads, head_dim]; only the tokens of the step are read and written. */
void decode_attention(const Step *step, const float *queries, const float *keys,
                      const float *values, float *outputs) {
    /* Whole sequences where there are enough of them: their blocks are then read front to back. */
    const int64_t parts = step->sequences >= 2 * step->threads ? 1 : step->kv_heads;
    const int64_t heads = step->kv_heads / parts;
#pragma omp parallel for schedule(dynamic, 1) num_threads(step->threads)
    for (int64_t item = 0; item < step->sequences * parts; item++) {
        const int64_t sequence = item / parts, from = item % parts * heads, to = from + heads;
        if (step->head_dim == 64)
            attend_64(step, queries, keys, values, outputs, sequence, from, to);
        else if (step->head_dim == 128)
            attend_128(step, queries, keys, values, outputs, sequence, from, to);
        else
            attend_any(step, queries, keys, values, outputs, sequence, from, to);
    }
}
