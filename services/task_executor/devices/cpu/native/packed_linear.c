/* Linear layers in fp32 over weights that were packed once.
 *
 * A weight [outputs, inputs] lies as panels of WIDTH outputs, [inputs, WIDTH] each, so that it is
 * read front to back; as bf16, where that is all that its numbers hold. ROWS rows at most meet a
 * panel at a time: their sums stay in registers. While a panel is computed the next one is fetched,
 * for with few rows it is the reading that takes time.
 *
 * A sum takes its products in order, DEPTH of them at a time, whatever else is in the batch: no bit
 * of a row depends on the rows beside it, nor on the number of threads.
 */

#ifndef __AVX512F__
#error "only measured with AVX-512"
#endif
#include "panels.h"

#define ROWS 12 /* their sums, and what they are made of, fill the 32 registers */
#define WIDTH (2 * LANES)
#define DEPTH 256
#define TURNED 16 /* inputs at a time, for both sides to stay in the nearest cache */
/* Tiles, and bytes of them, that meet all panels before the next tiles do: they stay in the
 * second-level cache. */
#define TILES_MAX 32
#define TILES_BYTES_MAX (1 << 20)

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Shorts __attribute__((vector_size(2 * LANES), aligned(2)));

/* How a weight lies in memory. */
typedef enum { AS_FP32, AS_BF16 } Layout;

typedef struct {
    Layout layout;
    const float *values; /* [rows, inputs] */
    const char *panels;
    const float *bias; /* may be absent */
    float *turned;     /* room for the values, turned by tile */
    float *result;     /* [rows, outputs] */
    int64_t rows, inputs, outputs;
} Product;

static inline int64_t bytes_of(Layout layout) {
    return layout == AS_BF16 ? sizeof(uint16_t) : sizeof(float);
}

/* Nothing has to be asked for. */
int64_t prepare(void) { return 0; }

int64_t layout_of(const float *weight, int64_t count, int32_t threads) {
    return shorts_needed(weight, count, threads) == 1 ? AS_BF16 : AS_FP32;
}

int64_t panel_bytes(int64_t layout, int64_t outputs, int64_t inputs) {
    return parts_of(outputs, WIDTH) * WIDTH * inputs * bytes_of(layout);
}

int64_t room_bytes(int64_t rows, int64_t inputs) { return rows * inputs * sizeof(float); }

/* weight: [outputs, inputs] -> panels, the last one filled up with zeros. */
void pack_weight(int64_t layout, const float *weight, char *panels, int64_t outputs, int64_t inputs,
                 int32_t threads) {
    const int64_t count = parts_of(outputs, WIDTH), size = WIDTH * inputs;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t p = 0; p < count; p++) {
        const int64_t left = outputs - p * WIDTH, width = left < WIDTH ? left : WIDTH;
        for (int64_t i = 0; i < inputs; i++)
            for (int64_t w = 0; w < WIDTH; w++) {
                const float value = w < width ? weight[(p * WIDTH + w) * inputs + i] : 0;
                const int64_t place = p * size + i * WIDTH + w;
                if (layout == AS_BF16)
                    ((uint16_t *)panels)[place] = bits_of(value) >> 16;
                else
                    ((float *)panels)[place] = value;
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

ALWAYS Vector load(const Layout layout, const char *weights) {
    if (layout == AS_FP32) return *(const Vector *)weights;
    return (Vector)(__builtin_convertvector(*(const Shorts *)weights, Words) << 16);
}

/* Adds `count` rows times `depth` inputs of a panel to [count][2] vectors of sums; meanwhile it
 * fetches `lines` of the next panel. */
ALWAYS void tile(const Layout layout, const int count, const float *rows, const char *panel,
                 int64_t depth, const char *next, int64_t lines, Vector *sums) {
    const int64_t half = LANES * bytes_of(layout);
    Vector low[ROWS], high[ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < count; r++) low[r] = high[r] = (Vector){0};
    for (int64_t i = 0; i < depth; i++) {
        const Vector left = load(layout, panel + i * 2 * half);
        const Vector right = load(layout, panel + i * 2 * half + half);
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
        tile(layout, COUNT, rows, panel, depth, next, lines, sums);                                \
        break;

/* The number of rows has to be known when this is compiled. */
ALWAYS void tile_of(const Layout layout, int64_t count, const float *rows, const char *panel,
                    int64_t depth, const char *next, int64_t lines, Vector *sums) {
    switch (count) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
    }
}

/* And the layout. */
static void any_tile(Layout layout, int64_t count, const float *rows, const char *panel,
                     int64_t depth, const char *next, int64_t lines, Vector *sums) {
    if (layout == AS_BF16)
        tile_of(AS_BF16, count, rows, panel, depth, next, lines, sums);
    else
        tile_of(AS_FP32, count, rows, panel, depth, next, lines, sums);
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

static void widen(const char *weights, float *out, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES)
        *(Vector *)(out + i) = load(AS_BF16, weights + i * sizeof(uint16_t));
}

/* Tiles from .. to - 1 of `tiles` times a panel. Its part for DEPTH inputs stays in the nearest
 * cache while one tile after the other meets it; bf16 is widened once for several of them. */
static void take_panel(const Product *it, int64_t tiles, int64_t from, int64_t to, int64_t panel,
                       int64_t next) {
    const int64_t input = WIDTH * bytes_of(it->layout), size = it->inputs * input;
    const int64_t lines = next == panel ? 0 : size / LINE;
    const int64_t depths = parts_of(it->inputs, DEPTH), calls = depths * (to - from);
    const char *weights = it->panels + panel * size, *ahead = it->panels + next * size;
    const int widens = it->layout == AS_BF16 && to - from > 2;
    float wide[DEPTH * WIDTH];
    Vector sums[TILES_MAX * 2 * ROWS];
    memset(sums, 0, (to - from) * 2 * ROWS * sizeof(Vector));
    for (int64_t call = 0; call < calls; call++) {
        const int64_t begin = call / (to - from) * DEPTH, t = from + call % (to - from);
        const int64_t depth = it->inputs - begin < DEPTH ? it->inputs - begin : DEPTH;
        const int64_t first = cut(t, tiles, it->rows), count = cut(t + 1, tiles, it->rows) - first;
        const int64_t line = cut(call, calls, lines), last = cut(call + 1, calls, lines);
        const char *met = weights + begin * input;
        if (widens && t == from) widen(met, wide, depth * WIDTH);
        any_tile(widens ? AS_FP32 : it->layout, count,
                 it->turned + first * it->inputs + begin * count, widens ? (char *)wide : met,
                 depth, ahead + line * LINE, last - line, sums + (t - from) * 2 * ROWS);
    }
    for (int64_t t = from; t < to; t++) {
        const int64_t first = cut(t, tiles, it->rows), count = cut(t + 1, tiles, it->rows) - first;
        store(it, sums + (t - from) * 2 * ROWS, first, count, panel);
    }
}

/* result = values x weight + bias */
void packed_linear(int64_t layout, const float *values, const char *panels, const float *bias,
                   void *room, float *result, int64_t rows, int64_t inputs, int64_t outputs,
                   int32_t threads) {
    const Product it = {layout, values, panels, bias, room, result, rows, inputs, outputs};
    const int64_t tiles = parts_of(rows, ROWS), count = parts_of(outputs, WIDTH);
    const int64_t tile_bytes = ROWS * inputs * sizeof(float);
    const int64_t fitting = tile_bytes < TILES_BYTES_MAX ? TILES_BYTES_MAX / tile_bytes : 1;
    const int64_t together = fitting < TILES_MAX ? fitting : TILES_MAX;
    const int64_t blocks = parts_of(tiles, together), items = blocks * count;
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
