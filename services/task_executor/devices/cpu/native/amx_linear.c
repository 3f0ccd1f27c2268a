/* Linear layers in fp32 on the tiles of AMX, over weights that were packed once.
 *
 * Tiles multiply bf16 only, sixteen times as fast as vectors multiply fp32. So a value is cut into
 * three numbers of bf16 whose sum it is exactly, a weight into as many as its checkpoint needs, and
 * of their products those are added up that fp32 could tell from nothing: by the parts (of value,
 * of weight) 0 0, 1 0, 2 0, then 1 1, 0 1 where there is a second part, then 0 2.
 *
 * A weight [outputs, inputs] lies as panels of WIDTH outputs, read front to back, of blocks of
 * DEPTH inputs. With one or two parts a block is [part][WIDTH / 16] tiles of weights, ready to be
 * multiplied. With three that would be half as much again to read as fp32, and reading is what
 * takes time with few rows: then a block is [16][WIDTH / 16][2][16] of fp32, cut into parts when
 * its turn comes. Input i of a block is beside input 16 + i: a tile takes its inputs in pairs.
 * Values are turned into [tile of ROWS rows][block][part] tiles.
 *
 * A sum takes its products in order, SLICE blocks at a time, whatever else is in the batch: no bit
 * of a row depends on the rows beside it, nor on the number of threads. An infinite value or weight
 * makes its sums NaN, and numbers below the least normal one count as zero.
 */

#define _GNU_SOURCE
#if !defined(__AMX_BF16__) || !defined(__AVX512F__) || !defined(__linux__)
#error "this CPU has no tiles for bf16"
#endif
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "panels.h"

#define QUARTERS 4
#define WIDTH (QUARTERS * LANES)
#define ROWS 16
#define DEPTH (2 * LANES)
#define PARTS 3   /* of a value */
#define TILE 1024 /* bytes */
#define VALUES (PARTS * TILE)                     /* bytes of a block of a tile of values */
#define WEIGHTS(PARTS) ((PARTS)*QUARTERS * TILE)  /* bytes of a block of a panel, ready */
#define UNCUT (DEPTH * WIDTH * 4)                 /* bytes of one that is not */
#define SLICE 32 /* blocks at most: a longer sum loses digits */
#define AHEAD 4  /* blocks from what is computed to what is fetched */
/* Bytes of weights that meet all rows before the next ones do: they stay in the nearest cache. */
#define BITE (2 * WEIGHTS(PARTS))
/* Tiles, and bytes of them, that meet all panels before the next tiles do: they stay in the
 * second-level cache. */
#define TILES_MAX 32
#define TILES_BYTES_MAX (1 << 20)

typedef struct {
    int parts;           /* of a weight */
    const float *values; /* [rows, inputs] */
    const char *panels;
    const float *bias; /* may be absent */
    char *turned;      /* room for the values, turned by tile */
    float *result;     /* [rows, outputs] */
    int64_t rows, inputs, outputs, tiles, blocks;
} Product;

/* So many tiles from `tile` on, and blocks from `block` on. */
typedef struct {
    int64_t tile, tiles, block, blocks;
} Range;

static inline __mmask16 lanes(int64_t count) {
    return count >= LANES ? 0xFFFF : count <= 0 ? 0 : (1u << count) - 1;
}

static inline int64_t block_bytes(int64_t parts) { return parts < 3 ? WEIGHTS(parts) : UNCUT; }

/* Asks the system for tiles, for this process; 0 where they may be used. */
int64_t prepare(void) {
    const long request = 0x1023, tile_data = 18; /* ARCH_REQ_XCOMP_PERM */
    return syscall(SYS_arch_prctl, request, tile_data);
}

int64_t layout_of(const float *weight, int64_t count, int32_t threads) {
    return shorts_needed(weight, count, threads);
}

int64_t panel_bytes(int64_t parts, int64_t outputs, int64_t inputs) {
    return parts_of(outputs, WIDTH) * parts_of(inputs, DEPTH) * block_bytes(parts);
}

int64_t room_bytes(int64_t rows, int64_t inputs) {
    return parts_of(rows, ROWS) * parts_of(inputs, DEPTH) * VALUES;
}

/* Two vectors of fp32 -> a vector of pairs of bf16 for each part, `stride` bytes apart. A third
 * part has eight digits left at most, which is what bf16 holds. Rounding makes what is left have
 * either sign, so that what is not added up has no direction; one of two factors is enough. */
ALWAYS void cut_pairs(const int parts, const int rounds, __m512 low, __m512 high, char *out,
                      int64_t stride) {
    const __m512i kept = _mm512_set1_epi32((int)0xFFFF0000), half = _mm512_set1_epi32(0x8000);
    const int second_and_kept_or_moved = 0xEA;
#pragma GCC unroll 3
    for (int part = 0; part < parts; part++) {
        __m512i first = _mm512_castps_si512(low), second = _mm512_castps_si512(high);
        if (rounds && part < 2) {
            first = _mm512_add_epi32(first, half);
            second = _mm512_add_epi32(second, half);
        }
        if (part < parts - 1) {
            first = _mm512_and_si512(first, kept);
            second = _mm512_and_si512(second, kept);
            low = _mm512_sub_ps(low, _mm512_castsi512_ps(first));
            high = _mm512_sub_ps(high, _mm512_castsi512_ps(second));
        }
        _mm512_storeu_si512(out + part * stride,
                            _mm512_ternarylogic_epi32(second, kept, _mm512_srli_epi32(first, 16),
                                                      second_and_kept_or_moved));
    }
}

/* weight: [outputs, inputs] -> panels, filled up with zeros. */
void pack_weight(int64_t parts, const float *weight, char *panels, int64_t outputs, int64_t inputs,
                 int32_t threads) {
    const int64_t count = parts_of(outputs, WIDTH), blocks = parts_of(inputs, DEPTH);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < count * blocks; item++) {
        char *block = panels + item * block_bytes(parts);
        float uncut[LANES][QUARTERS][2][LANES];
        for (int64_t w = 0; w < WIDTH; w++)
            for (int64_t i = 0; i < DEPTH; i++) {
                const int64_t output = item / blocks * WIDTH + w, input = item % blocks * DEPTH + i;
                const int is_there = output < outputs && input < inputs;
                uncut[i % LANES][w / LANES][i / LANES][w % LANES] =
                    is_there ? weight[output * inputs + input] : 0;
            }
        if (parts == 3) memcpy(block, uncut, UNCUT);
        for (int64_t r = 0; r < LANES && parts < 3; r++)
            for (int64_t q = 0; q < QUARTERS; q++) {
                const __m512 low = _mm512_loadu_ps(uncut[r][q][0]);
                const __m512 high = _mm512_loadu_ps(uncut[r][q][1]);
                char *out = block + q * TILE + r * LINE;
                if (parts == 1)
                    cut_pairs(1, 0, low, high, out, 0);
                else
                    cut_pairs(2, 0, low, high, out, QUARTERS * TILE);
            }
    }
}

/* The rows of a tile. Those that are not there are not written: their sums are never looked at. */
static void turn(const Product *it, int64_t tile) {
    char *out = it->turned + tile * it->blocks * VALUES;
    const int64_t first = tile * ROWS, left = it->rows - first, count = left < ROWS ? left : ROWS;
    for (int64_t b = 0; b < it->blocks; b++)
        for (int64_t r = 0; r < count; r++) {
            const float *values = it->values + (first + r) * it->inputs + b * DEPTH;
            const int64_t inputs = it->inputs - b * DEPTH;
            cut_pairs(PARTS, 1, _mm512_maskz_loadu_ps(lanes(inputs), values),
                      _mm512_maskz_loadu_ps(lanes(inputs - LANES), values + LANES),
                      out + b * VALUES + r * LINE, TILE);
        }
}

/* Part `index` of `parts` of some lines. */
ALWAYS void fetch(const char *ahead, const int64_t lines, const int64_t index,
                  const int64_t parts) {
#pragma GCC unroll 32
    for (int64_t line = cut(index, parts, lines); line < cut(index + 1, parts, lines); line++)
        __builtin_prefetch(ahead + line * LINE, 0, 2);
}

/* The lines of a block ahead that are fetched while one is cut, and while it is multiplied: reading
 * should never pause. */
#define CUT_LINES (3 * LANES)
static inline int64_t tile_lines(int parts) {
    return block_bytes(parts) / LINE - (parts < 3 ? 0 : CUT_LINES);
}

/* A block that is not cut yet -> [part][quarter] tiles. */
static void cut_block(const char *block, char *out, const char *ahead) {
    for (int64_t r = 0; r < LANES; r++) {
        fetch(ahead + tile_lines(3) * LINE, CUT_LINES, r, LANES);
#pragma GCC unroll 4
        for (int64_t q = 0; q < QUARTERS; q++) {
            const float *in = (const float *)block + (r * QUARTERS + q) * 2 * LANES;
            cut_pairs(3, 0, _mm512_loadu_ps(in), _mm512_loadu_ps(in + LANES),
                      out + q * TILE + r * LINE, QUARTERS * TILE);
        }
    }
}

/* GCC does not know that to load a tile, or the shapes of all, reads memory. */
static inline void written(const void *memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

#define LOAD_SUMS(TO, SUMS) _tile_loadd(TO, SUMS, WIDTH * sizeof(float));
#define STORE_SUMS(FROM, SUMS) _tile_stored(FROM, SUMS, WIDTH * sizeof(float));
#define LOAD(TO, FROM) _tile_loadd(TO, FROM, LINE);
#define MULTIPLY(SUM, VALUES, WEIGHTS) _tile_dpbf16ps(SUM, VALUES, WEIGHTS);

/* One tile of rows times some blocks of a panel; meanwhile blocks ahead are fetched, if any. */
ALWAYS void one_tile(const int parts, const char *values, const char *weights, int64_t blocks,
                     float *sums, const char *ahead) {
    written(weights);
    LOAD_SUMS(0, sums)
    LOAD_SUMS(1, sums + LANES)
    LOAD_SUMS(2, sums + 2 * LANES)
    LOAD_SUMS(3, sums + 3 * LANES)
#define FETCH(INDEX) if (ahead) fetch(ahead, tile_lines(parts), INDEX, parts * QUARTERS);
#define WEIGHT(PART, Q) LOAD(7, weights + ((PART)*QUARTERS + (Q)) * TILE)
#define FIRST(Q) FETCH(Q) WEIGHT(0, Q) MULTIPLY(Q, 4, 7) MULTIPLY(Q, 5, 7) MULTIPLY(Q, 6, 7)
#define SECOND(Q) FETCH(4 + Q) WEIGHT(1, Q) MULTIPLY(Q, 5, 7) MULTIPLY(Q, 4, 7)
#define THIRD(Q) FETCH(8 + Q) WEIGHT(2, Q) MULTIPLY(Q, 4, 7)
    for (int64_t b = 0; b < blocks; b++) {
        LOAD(4, values) LOAD(5, values + TILE) LOAD(6, values + 2 * TILE)
        FIRST(0) FIRST(1) FIRST(2) FIRST(3)
        if (parts > 1) { SECOND(0) SECOND(1) SECOND(2) SECOND(3) }
        if (parts > 2) { THIRD(0) THIRD(1) THIRD(2) THIRD(3) }
        values += VALUES, weights += WEIGHTS(parts), ahead += ahead ? block_bytes(parts) : 0;
    }
#undef FETCH
#undef WEIGHT
    STORE_SUMS(0, sums)
    STORE_SUMS(1, sums + LANES)
    STORE_SUMS(2, sums + 2 * LANES)
    STORE_SUMS(3, sums + 3 * LANES)
}

/* Two tiles of rows, `stride` bytes apart, times a half of some blocks, likewise. */
ALWAYS void two_tiles(const int parts, const int half, const char *values, int64_t stride,
                      const char *weights, int64_t blocks, float *sums, const char *ahead) {
    const char *others = values + stride;
    float *more = (sums += half * 2 * LANES) + ROWS * WIDTH;
    const int steps = parts == 1 ? 3 : parts == 2 ? 5 : 6;
    weights += half * 2 * TILE;
    written(weights);
    LOAD_SUMS(0, sums)
    LOAD_SUMS(1, sums + LANES)
    LOAD_SUMS(2, more)
    LOAD_SUMS(3, more + LANES)
#define FETCH(STEP) if (ahead) fetch(ahead, tile_lines(parts), half * steps + STEP, 2 * steps);
#define WEIGHT(TO, PART, Q) LOAD(TO, weights + ((PART)*QUARTERS + (Q)) * TILE)
#define HALF(PART) WEIGHT(6, PART, 0) WEIGHT(7, PART, 1)
#define BOTH(PART) LOAD(4, values + (PART)*TILE) LOAD(5, others + (PART)*TILE)
#define FOUR(STEP)                                                                                 \
    FETCH(STEP) MULTIPLY(0, 4, 6) MULTIPLY(1, 4, 7) MULTIPLY(2, 5, 6) MULTIPLY(3, 5, 7)
    for (int64_t b = 0; b < blocks; b++) {
        HALF(0) BOTH(0) FOUR(0) BOTH(1) FOUR(1) BOTH(2) FOUR(2)
        if (parts > 1) { HALF(1) BOTH(1) FOUR(3) BOTH(0) FOUR(4) }
        if (parts > 2) { HALF(2) FOUR(5) }
        values += VALUES, others += VALUES, weights += WEIGHTS(parts);
        ahead += ahead ? block_bytes(parts) : 0;
    }
#undef FETCH
#undef WEIGHT
    STORE_SUMS(0, sums)
    STORE_SUMS(1, sums + LANES)
    STORE_SUMS(2, more)
    STORE_SUMS(3, more + LANES)
}

/* Adds the sums of a slice to what the slices before it made; the bias comes last. */
static void store(const Product *it, const float *sums, int64_t tile, int64_t panel, int is_first,
                  int is_last) {
    const int64_t first = tile * ROWS, left = it->rows - first, count = left < ROWS ? left : ROWS;
    for (int64_t q = 0; q < QUARTERS; q++) {
        const int64_t output = panel * WIDTH + q * LANES;
        const __mmask16 mask = lanes(it->outputs - output);
        if (!mask) return;
        for (int64_t r = 0; r < count; r++) {
            float *out = it->result + (first + r) * it->outputs + output;
            __m512 sum = _mm512_loadu_ps(sums + r * WIDTH + q * LANES);
            if (!is_first) sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), sum);
            if (is_last && it->bias)
                sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, it->bias + output));
            _mm512_mask_storeu_ps(out, mask, sum);
        }
    }
}

/* Some tiles times a slice of a panel. A bite of it stays in the nearest cache while one tile after
 * the other meets it; meanwhile blocks ahead are fetched, in the end those of the next panel. */
ALWAYS void take_slice(const int parts, const Product *it, Range range, int64_t panel,
                       const char *next) {
    float sums[TILES_MAX * ROWS * WIDTH] __attribute__((aligned(LINE)));
    char room[BITE] __attribute__((aligned(LINE)));
    const int is_uncut = parts == 3;
    const int64_t block = block_bytes(parts), stride = it->blocks * VALUES;
    const int64_t end = range.block + range.blocks;
    const char *blocks = it->panels + panel * it->blocks * block;
    /* With few rows reading takes the time, and goes on more evenly in smaller bites. */
    const int64_t most = range.tiles > 2 ? BITE / WEIGHTS(parts) : is_uncut ? 1 : range.blocks;
    memset(sums, 0, range.tiles * ROWS * WIDTH * sizeof(float));
    for (int64_t begin = range.block; begin < end; begin += most) {
        const int64_t count = end - begin < most ? end - begin : most;
        const char *weights = is_uncut ? room : blocks + begin * block;
        const char *values = it->turned + range.tile * stride + begin * VALUES;
        const int64_t later = begin + AHEAD, over = later - end < range.blocks ? later - end : 0;
        const char *ahead =
            later < end ? blocks + later * block : next + (range.block + over) * block;
        for (int64_t b = 0; b < count && is_uncut; b++)
            cut_block(blocks + (begin + b) * block, room + b * WEIGHTS(parts), ahead + b * block);
        for (int64_t t = 0; t < range.tiles; t += 2, values += 2 * stride, ahead = 0) {
            float *sum = sums + t * ROWS * WIDTH;
            if (t + 1 == range.tiles) {
                one_tile(parts, values, weights, count, sum, ahead);
            } else {
                two_tiles(parts, 0, values, stride, weights, count, sum, ahead);
                two_tiles(parts, 1, values, stride, weights, count, sum, ahead);
            }
        }
    }
    for (int64_t t = 0; t < range.tiles; t++)
        store(it, sums + t * ROWS * WIDTH, range.tile + t, panel, range.block == 0,
              end == it->blocks);
}

/* The number of parts has to be known when this is compiled. */
static void any_slice(const Product *it, Range range, int64_t panel, const char *next) {
    if (it->parts == 1)
        take_slice(1, it, range, panel, next);
    else if (it->parts == 2)
        take_slice(2, it, range, panel, next);
    else
        take_slice(3, it, range, panel, next);
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} TileShapes;

/* Tile 7 holds weights always, 6 where there are several tiles of rows. */
static void shape_tiles(const Product *it) {
    TileShapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) {
        shapes.bytes[i] = LINE;
        shapes.rows[i] = i < 7 && it->tiles == 1 ? it->rows : ROWS;
    }
    written(&shapes);
    _tile_loadconfig(&shapes);
}

/* result = values x weight + bias */
void packed_linear(int64_t parts, const float *values, const char *panels, const float *bias,
                   void *room, float *result, int64_t rows, int64_t inputs, int64_t outputs,
                   int32_t threads) {
    const Product it = {parts, values, panels,  bias,    room,
                        result, rows,  inputs, outputs, parts_of(rows, ROWS),
                        parts_of(inputs, DEPTH)};
    const int64_t slices = parts_of(it.blocks, SLICE), count = parts_of(outputs, WIDTH);
    const int64_t fitting = TILES_BYTES_MAX / (parts_of(it.blocks, slices) * VALUES);
    const int64_t together = fitting < TILES_MAX ? fitting : TILES_MAX;
    const int64_t groups = parts_of(it.tiles, together), items = groups * count;
    int64_t taken[slices]; /* a thread that is held up takes fewer, and each knows its next one */
    memset(taken, 0, sizeof taken);
#pragma omp parallel num_threads(threads) if (rows * inputs * outputs >= PARALLEL_PRODUCTS_MIN)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < it.tiles; t++) turn(&it, t);
        shape_tiles(&it);
        for (int64_t s = 0; s < slices; s++) {
            const int64_t begin = cut(s, slices, it.blocks), end = cut(s + 1, slices, it.blocks);
            int64_t item = __atomic_fetch_add(&taken[s], 1, __ATOMIC_RELAXED);
            while (item < items) {
                const int64_t next = __atomic_fetch_add(&taken[s], 1, __ATOMIC_RELAXED);
                const int64_t group = item / count, panel = item % count;
                const int64_t tile = cut(group, groups, it.tiles);
                const int64_t tiles = cut(group + 1, groups, it.tiles) - tile;
                const int64_t ahead = next < items ? next % count : panel;
                any_slice(&it, (Range){tile, tiles, begin, end - begin}, panel,
                          panels + ahead * it.blocks * block_bytes(parts));
                item = next;
            }
#pragma omp barrier
        }
        _tile_release();
    }
}
