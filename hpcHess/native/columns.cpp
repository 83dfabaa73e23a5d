// Compiled for several instruction sets at once, the processor's is picked when the module is loaded: a package built on
// one machine of a cluster runs on all.
#include "columns.hpp"

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#define HPCHESS_INLINE __attribute__((always_inline)) inline
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define HPCHESS_X86 1
#else
#define HPCHESS_X86 0
#endif

namespace columns {
namespace {

constexpr int kNarrow = 4;        // columns at most that are bound by memory
constexpr int kAhead = 4096;      // bytes prefetched ahead of narrow products at least
constexpr std::size_t kLine = 64;    // bytes of a line of the caches
constexpr int kTileRows = 128, kTileCols = 512;  // of A used in both directions or converted at once: a quarter of a second cache

namespace plain {
#define HPCHESS_BYTES 32
#define HPCHESS_MASKS 0
#include "columns_kernels.hpp"
#undef HPCHESS_BYTES
#undef HPCHESS_MASKS
}  // namespace plain

#if HPCHESS_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
namespace avx2 {
#define HPCHESS_BYTES 32
#define HPCHESS_MASKS 0
#include "columns_kernels.hpp"
#undef HPCHESS_BYTES
#undef HPCHESS_MASKS
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx512cd,avx2,fma,bmi2")
namespace avx512 {
#define HPCHESS_BYTES 64
#define HPCHESS_MASKS 1
#include "columns_kernels.hpp"
#undef HPCHESS_BYTES
#undef HPCHESS_MASKS
}  // namespace avx512
#pragma GCC pop_options

const int kSet = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")
                     ? 2
                     : (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0);
#define HPCHESS_PICK(...)       \
  do {                          \
    if (kSet == 2)              \
      avx512::__VA_ARGS__;             \
    else if (kSet == 1)         \
      avx2::__VA_ARGS__;               \
    else                        \
      plain::__VA_ARGS__;              \
  } while (false)
#else
#define HPCHESS_PICK(...) plain::__VA_ARGS__
#endif

// the directions whose outputs are there (Y_rows, Y_cols), by kernels with vectors along the rows of A
template <class S, class T>
void narrow(const S* A, std::int64_t lda, int rows, int cols, const T* X_cols, T* Y_rows, const T* X_rows, T* Y_cols, int k,
            T alpha) {
  if (k == 1) {
    HPCHESS_PICK(narrow_both<S, T>(A, lda, rows, cols, X_cols, Y_rows, X_rows, Y_cols, k, alpha));
    return;
  }
  thread_local std::vector<T> Xt, Yt;
  const std::int64_t n = cols;
  if (Y_rows) {
    Xt.resize(std::max(Xt.size(), std::size_t(n * k)));
    for (std::int64_t i = 0; i < n; ++i)
      for (int j = 0; j < k; ++j) Xt[j * n + i] = X_cols[i * k + j];
  }
  if (Y_cols) Yt.assign(std::size_t(n * k), T(0));
  T* into = Y_cols ? Yt.data() : nullptr;
  HPCHESS_PICK(narrow_both<S, T>(A, lda, rows, cols, Xt.data(), Y_rows, X_rows, into, k, alpha));
  if (Y_cols)
    for (std::int64_t i = 0; i < n; ++i)
      for (int j = 0; j < k; ++j) Y_cols[i * k + j] += Yt[j * n + i];
}

template <class T>
void wide(const T* A, std::int64_t lda, int rows, int cols, const T* X_cols, T* Y_rows, const T* X_rows, T* Y_cols, int k, T alpha) {
  if (Y_rows) HPCHESS_PICK(wide<false, T>(A, lda, rows, cols, X_cols, k, alpha, Y_rows));
  if (Y_cols) HPCHESS_PICK(wide<true, T>(A, lda, cols, rows, X_rows, k, alpha, Y_cols));
}

template <class S, class T>
void add(const S* A, std::int64_t lda, int rows, int cols, const T* X_cols, T* Y_rows, const T* X_rows, T* Y_cols, int k, T alpha) {
  if (rows <= 0 || cols <= 0 || k <= 0) return;
  if (k <= kNarrow) return narrow<S, T>(A, lda, rows, cols, X_cols, Y_rows, X_rows, Y_cols, k, alpha);
  for (int r = 0; r < rows; r += kTileRows) {
    const int h = std::min(kTileRows, rows - r);
    for (int c = 0; c < cols; c += kTileCols) {
      const int w = std::min(kTileCols, cols - c);
      const S* part = A + r * lda + c;
      const std::int64_t row = std::int64_t(r) * k, col = std::int64_t(c) * k;
      const T *x_cols = Y_rows ? X_cols + col : nullptr, *x_rows = Y_cols ? X_rows + row : nullptr;
      T *y_rows = Y_rows ? Y_rows + row : nullptr, *y_cols = Y_cols ? Y_cols + col : nullptr;
      if constexpr (std::is_same_v<S, T>) {
        wide<T>(part, lda, h, w, x_cols, y_rows, x_rows, y_cols, k, alpha);
      } else {
        thread_local std::vector<T> copy(kTileRows * kTileCols);
        HPCHESS_PICK(convert<S, T>(part, lda, h, w, copy.data()));
        wide<T>(copy.data(), w, h, w, x_cols, y_rows, x_rows, y_cols, k, alpha);
      }
    }
  }
}

}  // namespace

template <class S, class T>
void add_product(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T alpha, T* Y) {
  add<S, T>(A, lda, rows, cols, X, Y, nullptr, nullptr, k, alpha);
}
template <class S, class T>
void add_transposed(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T alpha, T* Y) {
  add<S, T>(A, lda, rows, cols, nullptr, nullptr, X, Y, k, alpha);
}
template <class S, class T>
void add_both(const S* A, std::int64_t lda, int rows, int cols, const T* X_cols, T* Y_rows, const T* X_rows, T* Y_cols, int k,
              T alpha) {
  add<S, T>(A, lda, rows, cols, X_cols, Y_rows, X_rows, Y_cols, k, alpha);
}

#define HPCHESS_COLUMNS(S, T)                                                                                            \
  template void add_product<S, T>(const S*, std::int64_t, int, int, const T*, int, T, T*);                               \
  template void add_transposed<S, T>(const S*, std::int64_t, int, int, const T*, int, T, T*);                            \
  template void add_both<S, T>(const S*, std::int64_t, int, int, const T*, T*, const T*, T*, int, T);
HPCHESS_COLUMNS(float, float)
HPCHESS_COLUMNS(double, double)
HPCHESS_COLUMNS(float, double)
HPCHESS_COLUMNS(double, float)

}  // namespace columns
