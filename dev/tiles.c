/* What a product's inner loop costs by its rows when nothing surrounds it: how well arithmetic hides behind memory.

       gcc -O3 -march=native dev/tiles.c -o /tmp/tiles -lpthread && /tmp/tiles      (AVX-512)

   Two threads read 200 MB of bf16 weights, half each, in blocks of 576 features by 32 columns, and multiply R rows of
   fp32 by them, as `kernels/cpu/linear.py` does. A line is one feature of a block, 64 bytes. Each line is asked for 3 KB
   ahead. Printed are nanoseconds a line, the median of nine runs: from memory, and with the block in a cache. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { FEATURES = 576, COLUMNS = 32, LINE = 64, AHEAD = 3072, RUNS = 9, THREADS = 2, MOST = 8 };
static const size_t BLOCK = (size_t)FEATURES * LINE, TOTAL = (size_t)200 << 20;
static char *weights;
static pthread_barrier_t barrier;

typedef struct { int thread, rows, resident; double seconds; } Job;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

#define TILE(R)                                                                                                  \
    static inline __attribute__((always_inline)) void tile##R(const float *x, const char *w, float *out) {       \
        __m512 sum[R][2];                                                                                        \
        __m512i high = _mm512_set1_epi32((int)0xffff0000);                                                       \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();          \
        for (int f = 0; f < FEATURES; f++) {                                                                     \
            __m512i both = _mm512_loadu_si512(w + (size_t)f * LINE);                                             \
            __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));                                      \
            __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(both, high));                                      \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                \
                __m512 number = _mm512_set1_ps(x[f * R + r]);                                                    \
                sum[r][0] = _mm512_fmadd_ps(even, number, sum[r][0]);                                            \
                sum[r][1] = _mm512_fmadd_ps(odd, number, sum[r][1]);                                             \
            }                                                                                                    \
            _mm_prefetch(w + AHEAD + (size_t)f * LINE, _MM_HINT_T0);                                             \
        }                                                                                                        \
        _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                    \
            _mm512_storeu_ps(out + r * COLUMNS, sum[r][0]);                                                      \
            _mm512_storeu_ps(out + r * COLUMNS + 16, sum[r][1]);                                                 \
        }                                                                                                        \
        __asm__ volatile("" ::"r"(out) : "memory");                                                              \
    }
TILE(1) TILE(2) TILE(4) TILE(6) TILE(8)

static void *work(void *given) {
    Job *job = given;
    float *x = aligned_alloc(4096, 4096 * 8), out[MOST * COLUMNS];
    for (int i = 0; i < FEATURES * MOST; i++) x[i] = 0.01f * (i % 100);
    size_t count = TOTAL / BLOCK / THREADS;
    const char *own = weights + job->thread * count * BLOCK;
    pthread_barrier_wait(&barrier);
    double start = now();
    for (size_t b = 0; b < count; b++) {
        const char *block = own + (job->resident ? 0 : b * BLOCK);
        switch (job->rows) {
        case 1: tile1(x, block, out); break;
        case 2: tile2(x, block, out); break;
        case 4: tile4(x, block, out); break;
        case 6: tile6(x, block, out); break;
        case 8: tile8(x, block, out); break;
        }
    }
    job->seconds = now() - start;
    free(x);
    return NULL;
}

static int by_size(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

static double line_ns(int rows, int resident) {
    double found[RUNS];
    for (int run = 0; run < RUNS; run++) {
        pthread_t threads[THREADS];
        Job jobs[THREADS];
        found[run] = 0;
        pthread_barrier_init(&barrier, NULL, THREADS);
        for (int t = 0; t < THREADS; t++) {
            jobs[t] = (Job){t, rows, resident, 0};
            pthread_create(&threads[t], NULL, work, &jobs[t]);
        }
        for (int t = 0; t < THREADS; t++) {
            pthread_join(threads[t], NULL);
            if (jobs[t].seconds > found[run]) found[run] = jobs[t].seconds;
        }
    }
    qsort(found, RUNS, sizeof(double), by_size);
    return 1e9 * found[RUNS / 2] / (TOTAL / BLOCK / THREADS * FEATURES);
}

int main(void) {
    size_t mapped = TOTAL + (4 << 20);
    weights = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(weights, mapped, MADV_HUGEPAGE);
    for (size_t i = 0; i < mapped / 2; i++) ((uint16_t *)weights)[i] = 0x3c00 + i * 40503 % 512;
    for (int rows = 1; rows <= MOST; rows += rows < 2 ? 1 : 2)
        printf("%d rows   from memory %5.2f ns   from a cache %5.2f ns\n", rows, line_ns(rows, 0), line_ns(rows, 1));
    return 0;
}
