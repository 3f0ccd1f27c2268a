/* Linear layers in fp32 over weights that were packed once.
 *
 * A weight [outputs, inputs] lies as panels of WIDTH outputs, [inputs, WIDTH] each, so that it is
 * read front to back. ROWS rows at most meet a panel at a time: their sums stay in registers. While
 * a panel is computed the next one is fetched, for with few rows it is the reading that takes time.
 *
 * A sum takes its products in order, DEPTH of them at a time, whatever else is in the batch: no bit
 * of a row depends on the rows beside it, nor on the number of threads.
 */

#include <stdint.h>
#include <string.h>

#ifndef __AVX512F__
#error "only measured with AVX-512: left to torch"
#endif
#define LANES 16
#define ROWS 12 /* their sums, and what they are made of, fill the 32 registers */
#define WIDTH (2 * LANES)
#define DEPTH 256
#define TURNED 16 /* inputs at a time, for both sides to stay in the nearest cache */
#define PARALLEL_PRODUCTS_MIN (1 << 17) /* fewer are done sooner than other threads have woken up */
#define LINE 64 /* bytes that are fetched at once */
/* Tiles, and bytes of them, that meet all panels before the next tiles do: they stay in the
 * second-level cache. */
#define TILES_MAX 32
#define TILES_BYTES_MAX (1 << 20)

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));

typedef struct {
    const float *values; /* [rows, inputs] */
    const float *panels;
    const float *bias; /* may be absent */
    float *turned;     /* room for the values, turned by tile */
    float *result;     /* [rows, outputs] */
    int64_t rows, inputs, outputs;
} Product;

/* Where part `index` begins of so many things that are cut into even parts. */
static inline int64_t cut(int64_t index, int64_t parts, int64_t count) {
    return index * count / parts;
}

int64_t panel_width(void) { return WIDTH; }

/* weight: [outputs, inputs] -> panels, the last one filled up with zeros. */
void pack_weight(const float *weight, float *panels, int64_t outputs, int64_t inputs,
                 int32_t threads) {
    const int64_t count = (outputs + WIDTH - 1) / WIDTH;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < count; p++) {
        float *panel = panels + p * WIDTH * inputs;
        const int64_t left = outputs - p * WIDTH, width = left < WIDTH ? left : WIDTH;
        for (int64_t i = 0; i < inputs; i++) {
            float *out = panel + i * WIDTH;
            for (int64_t w = 0; w < width; w++) out[w] = weight[(p * WIDTH + w) * inputs + i];
            for (int64_t w = width; w < WIDTH; w++) out[w] = 0;
        }
    }
}

/* Rows first .. first + count - 1 -> [inputs, count]: a tile reads them front to back, too. */
static void turn(const Product *it, int64_t first, int64_t count) {
    const float *rows = it->values + first * it->inputs;
    float *out = it->turned + first * it->inputs;
    for (int64_t begin = 0; begin < it->inputs; begin += TURNED) {
        const int64_t end = begin + TURNED < it->inputs ? begin + TURNED : it->inputs;
        for (int64_t r = 0; r < count; r++)
            for (int64_t i = begin; i < end; i++) out[i * count + r] = rows[r * it->inputs + i];
    }
}

/* Adds `count` rows times `depth` inputs of a panel to [count][2] vectors of sums; meanwhile it
 * fetches `lines` of the next panel. */
static inline __attribute__((always_inline)) void tile(const int count, const float *rows,
                                                       const float *panel, int64_t depth,
                                                       const char *next, int64_t lines,
                                                       Vector *sums) {
    Vector low[ROWS], high[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) low[r] = high[r] = (Vector){0};
    for (int64_t i = 0; i < depth; i++) {
        const Vector left = *(const Vector *)(panel + i * WIDTH);
        const Vector right = *(const Vector *)(panel + i * WIDTH + LANES);
        if (i < lines) __builtin_prefetch(next + i * LINE, 0, 2);
        if (i + depth < lines) __builtin_prefetch(next + (i + depth) * LINE, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < count; r++) {
            low[r] += left * rows[i * count + r];
            high[r] += right * rows[i * count + r];
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) {
        sums[2 * r] += low[r];
        sums[2 * r + 1] += high[r];
    }
}

#define CASE(COUNT)                                                                                \
    case COUNT:                                                                                    \
        tile(COUNT, rows, panel, depth, next, lines, sums);                                        \
        break;

/* The number of rows has to be known when this is compiled. */
static void any_tile(int64_t count, const float *rows, const float *panel, int64_t depth,
                     const char *next, int64_t lines, Vector *sums) {
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}

static void store(const Product *it, const Vector *sums, int64_t row, int64_t count,
                  int64_t panel) {
    const int64_t first = panel * WIDTH, left = it->outputs - first;
    const int64_t width = left < WIDTH ? left : WIDTH;
    const float *sum = (const float *)sums;
    for (int64_t r = 0; r < count; r++) {
        float *out = it->result + (row + r) * it->outputs + first;
        if (it->bias)
            for (int64_t w = 0; w < width; w++) out[w] = sum[r * WIDTH + w] + it->bias[first + w];
        else
            memcpy(out, sum + r * WIDTH, width * sizeof(float));
    }
}

/* Tiles from .. to - 1 of `tiles` times a panel. Its part for DEPTH inputs stays in the nearest
 * cache while one tile after the other meets it. */
static void take_panel(const Product *it, int64_t tiles, int64_t from, int64_t to, int64_t panel,
                       int64_t next) {
    const int64_t size = it->inputs * WIDTH;
    const int64_t lines = next == panel ? 0 : size * sizeof(float) / LINE;
    const int64_t depths = (it->inputs + DEPTH - 1) / DEPTH, calls = depths * (to - from);
    const float *weights = it->panels + panel * size;
    const char *ahead = (const char *)(it->panels + next * size);
    Vector sums[TILES_MAX * 2 * ROWS];
    memset(sums, 0, (to - from) * 2 * ROWS * sizeof(Vector));
    for (int64_t call = 0; call < calls; call++) {
        const int64_t begin = call / (to - from) * DEPTH, t = from + call % (to - from);
        const int64_t depth = it->inputs - begin < DEPTH ? it->inputs - begin : DEPTH;
        const int64_t first = cut(t, tiles, it->rows), count = cut(t + 1, tiles, it->rows) - first;
        const int64_t line = cut(call, calls, lines), last = cut(call + 1, calls, lines);
        any_tile(count, it->turned + first * it->inputs + begin * count, weights + begin * WIDTH,
                 depth, ahead + line * LINE, last - line, sums + (t - from) * 2 * ROWS);
    }
    for (int64_t t = from; t < to; t++) {
        const int64_t first = cut(t, tiles, it->rows), count = cut(t + 1, tiles, it->rows) - first;
        store(it, sums + (t - from) * 2 * ROWS, first, count, panel);
    }
}

/* result = values x weight + bias */
void packed_linear(const float *values, const float *panels, const float *bias, float *turned,
                   float *result, int64_t rows, int64_t inputs, int64_t outputs, int32_t threads) {
    const Product it = {values, panels, bias, turned, result, rows, inputs, outputs};
    const int64_t tiles = (rows + ROWS - 1) / ROWS, count = (outputs + WIDTH - 1) / WIDTH;
    const int64_t tile_bytes = ROWS * inputs * sizeof(float);
    const int64_t fitting = tile_bytes < TILES_BYTES_MAX ? TILES_BYTES_MAX / tile_bytes : 1;
    const int64_t together = fitting < TILES_MAX ? fitting : TILES_MAX;
    const int64_t blocks = (tiles + together - 1) / together, items = blocks * count;
    int64_t taken = 0; /* a thread that is held up takes fewer, and each knows its next one */
#pragma omp parallel num_threads(threads) if (rows * inputs * outputs >= PARALLEL_PRODUCTS_MIN)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < tiles; t++)
            turn(&it, cut(t, tiles, rows), cut(t + 1, tiles, rows) - cut(t, tiles, rows));
        int64_t item = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
        while (item < items) {
            const int64_t next = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED);
            const int64_t block = item / count, panel = item % count;
            take_panel(&it, tiles, cut(block, blocks, tiles), cut(block + 1, blocks, tiles), panel,
                       next < items ? next % count : panel);
            item = next;
        }
    }
}
