// Compiled for several instruction sets at once, the processor's is picked when the module is loaded: a package built on
// one machine of a cluster runs on all.
#include "narrow.hpp"

#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define HPCHESS_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define HPCHESS_CLONES
#endif
#define HPCHESS_INLINE __attribute__((always_inline)) inline

namespace narrow {
namespace {

constexpr int kAhead = 512;  // bytes prefetched ahead in every row: a fifth faster than without, measured on an EPYC

template <class T>
struct Vector;  // 64 bytes of T, and as many lanes of any other type; the compiler splits them where registers are shorter
template <>
struct Vector<double> {
  static constexpr int lanes = 8;
  typedef double type __attribute__((vector_size(64)));
  typedef float half __attribute__((vector_size(32)));
};
template <>
struct Vector<float> {
  static constexpr int lanes = 16;
  typedef float type __attribute__((vector_size(64)));
  typedef double twice __attribute__((vector_size(128)));
};

HPCHESS_INLINE void load(const double* p, Vector<double>::type& v) { std::memcpy(&v, p, sizeof v); }
HPCHESS_INLINE void load(const float* p, Vector<float>::type& v) { std::memcpy(&v, p, sizeof v); }
HPCHESS_INLINE void load(const float* p, Vector<double>::type& v) {
  Vector<double>::half h;
  std::memcpy(&h, p, sizeof h);
  v = __builtin_convertvector(h, Vector<double>::type);
}
HPCHESS_INLINE void load(const double* p, Vector<float>::type& v) {
  Vector<float>::twice d;
  std::memcpy(&d, p, sizeof d);
  v = __builtin_convertvector(d, Vector<float>::type);
}

// sum of the lanes, by halves
HPCHESS_INLINE double total(const Vector<double>::type& given) {
  Vector<double>::type v = given;
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6);
  return v[0];
}
HPCHESS_INLINE float total(const Vector<float>::type& given) {
  Vector<float>::type v = given;
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  v += __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  v += __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  return v[0];
}

// R rows of A against K columns: R·K dot products, kept in registers (the pragmas are what keeps them there)
template <int R, int K, class S, class T>
HPCHESS_INLINE void dots(const S* A, std::int64_t lda, int cols, const T* Xt, T* Y) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  V sum[R * K];
#pragma GCC unroll 16
  for (int i = 0; i < R * K; ++i) sum[i] = V{};
  int c = 0;
  for (; c + lanes <= cols; c += lanes) {
    V x[K], a;
#pragma GCC unroll 16
    for (int j = 0; j < K; ++j) load(Xt + std::int64_t(j) * cols + c, x[j]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      __builtin_prefetch(A + i * lda + c + kAhead / sizeof(S));
      load(A + i * lda + c, a);
#pragma GCC unroll 16
      for (int j = 0; j < K; ++j) sum[i * K + j] += a * x[j];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R * K; ++i) Y[i] = total(sum[i]);
  for (; c < cols; ++c)
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < K; ++j) Y[i * K + j] += static_cast<T>(A[i * lda + c]) * Xt[std::int64_t(j) * cols + c];
}

template <int K, class S, class T>
HPCHESS_INLINE void times_columns(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, T* Y) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) dots<4, K>(A + r * lda, lda, cols, Xt, Y + std::int64_t(r) * K);
  for (; r < rows; ++r) dots<1, K>(A + r * lda, lda, cols, Xt, Y + std::int64_t(r) * K);
}

// R rows of A added to K columns
template <int R, int K, class S, class T>
HPCHESS_INLINE void add_rows(const S* A, std::int64_t lda, int cols, const T* X, T* Yt) {
  using V = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  int c = 0;
  for (; c + lanes <= cols; c += lanes) {
    V y[K], a;
#pragma GCC unroll 16
    for (int j = 0; j < K; ++j) load(Yt + std::int64_t(j) * cols + c, y[j]);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      __builtin_prefetch(A + i * lda + c + kAhead / sizeof(S));
      load(A + i * lda + c, a);
#pragma GCC unroll 16
      for (int j = 0; j < K; ++j) y[j] += a * X[i * K + j];
    }
    for (int j = 0; j < K; ++j) std::memcpy(Yt + std::int64_t(j) * cols + c, &y[j], sizeof(V));
  }
  for (; c < cols; ++c)
    for (int i = 0; i < R; ++i)
      for (int j = 0; j < K; ++j) Yt[std::int64_t(j) * cols + c] += static_cast<T>(A[i * lda + c]) * X[i * K + j];
}

template <int K, class S, class T>
HPCHESS_INLINE void transpose_times_columns(const S* A, std::int64_t lda, int rows, int cols, const T* X, T* Yt) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) add_rows<4, K>(A + r * lda, lda, cols, X + std::int64_t(r) * K, Yt);
  for (; r < rows; ++r) add_rows<1, K>(A + r * lda, lda, cols, X + std::int64_t(r) * K, Yt);
}

}  // namespace

// target_clones wants plain functions: one of each kind for every pair of types
#define HPCHESS_NARROW(S, T, name)                                                                                   \
  HPCHESS_CLONES static void times_##name(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, int k, T* Y) { \
    if (k == 1) times_columns<1>(A, lda, rows, cols, Xt, Y);                                                         \
    if (k == 2) times_columns<2>(A, lda, rows, cols, Xt, Y);                                                         \
    if (k == 3) times_columns<3>(A, lda, rows, cols, Xt, Y);                                                         \
    if (k == 4) times_columns<4>(A, lda, rows, cols, Xt, Y);                                                         \
  }                                                                                                                  \
  HPCHESS_CLONES static void transpose_##name(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T* Yt) { \
    if (k == 1) transpose_times_columns<1>(A, lda, rows, cols, X, Yt);                                               \
    if (k == 2) transpose_times_columns<2>(A, lda, rows, cols, X, Yt);                                               \
    if (k == 3) transpose_times_columns<3>(A, lda, rows, cols, X, Yt);                                               \
    if (k == 4) transpose_times_columns<4>(A, lda, rows, cols, X, Yt);                                               \
  }                                                                                                                  \
  HPCHESS_CLONES static void convert_##name(const S* from, int n, T* to) {                                           \
    using V = Vector<T>;                                                                                             \
    int i = 0;                                                                                                       \
    for (; i + V::lanes <= n; i += V::lanes) {                                                                       \
      typename V::type v;                                                                                            \
      load(from + i, v);                                                                                             \
      std::memcpy(to + i, &v, sizeof v);                                                                             \
    }                                                                                                                \
    for (; i < n; ++i) to[i] = static_cast<T>(from[i]);                                                              \
  }                                                                                                                  \
  template <>                                                                                                        \
  void times<S, T>(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, int k, T* Y) {                     \
    times_##name(A, lda, rows, cols, Xt, k, Y);                                                                      \
  }                                                                                                                  \
  template <>                                                                                                        \
  void transpose_times<S, T>(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T* Yt) {           \
    transpose_##name(A, lda, rows, cols, X, k, Yt);                                                                  \
  }                                                                                                                  \
  template <>                                                                                                        \
  void convert<S, T>(const S* from, int n, T* to) {                                                                  \
    convert_##name(from, n, to);                                                                                     \
  }

HPCHESS_NARROW(float, float, ff)
HPCHESS_NARROW(double, double, dd)
HPCHESS_NARROW(float, double, fd)
HPCHESS_NARROW(double, float, df)

}  // namespace narrow
