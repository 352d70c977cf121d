// What the CUDA source needs to be C++ on this machine: the grid as thread-local numbers, and the intrinsics as what
// they are, one IEEE operation each. A control may define them otherwise, before this text.
#include <cmath>
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __align__(bytes) alignas(bytes)
struct place { unsigned int x, y, z; };
static thread_local place gridDim, blockDim, blockIdx, threadIdx;
#ifndef CONTROL
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return std::sqrt(a); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dsub_rn(double a, double b) { return a - b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }
static inline double __dsqrt_rn(double a) { return std::sqrt(a); }
#endif

// A grid of blocks, one thread after the other; nothing in the kernels may depend on their order.
template <typename Rows>
static void launch(void (*kernel)(const Rows*, unsigned int*), const void* rows, unsigned int* diverged,
                   unsigned int across, unsigned int down, unsigned int threads) {
    gridDim = {across, down, 1};
    blockDim = {threads, 1, 1};
    for (unsigned int y = 0; y < down; ++y)
        for (unsigned int x = 0; x < across; ++x)
            for (unsigned int t = 0; t < threads; ++t) {
                blockIdx = {x, y, 0};
                threadIdx = {t, 0, 0};
                kernel((const Rows*)rows, diverged);
            }
}
