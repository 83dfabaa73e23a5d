// Compiled for several instruction sets at once, the processor's is picked when the module is loaded.
#include "small.hpp"

#include <cmath>
#include <cstring>

#define HPCHESS_INLINE __attribute__((always_inline)) inline

namespace small {
namespace {

constexpr int kLanes = 8;
typedef double Vector __attribute__((vector_size(64)));

// rows 8 b … of U [n, 8 V] ← rows of chol(U)ᵀ, U_k = (U_k − Σ_{j<k} U_jk U_j) / √pivot; what lies below the diagonal is not read
template <int V, int b>
HPCHESS_INLINE bool factor_rows(double* U, int n, double* inverse) {
  constexpr int width = V * kLanes;
  const Vector* rows = reinterpret_cast<const Vector*>(U);
  for (int k = b * kLanes; k < n && k < (b + 1) * kLanes; ++k) {
    Vector even[V - b], odd[V - b];
#pragma GCC unroll 4
    for (int v = b; v < V; ++v) {
      even[v - b] = rows[k * V + v];
      odd[v - b] = Vector{};
    }
    int j = 0;
    for (; j + 1 < k; j += 2) {
      const double u = U[j * width + k], w = U[(j + 1) * width + k];
#pragma GCC unroll 4
      for (int v = b; v < V; ++v) {
        even[v - b] -= u * rows[j * V + v];
        odd[v - b] -= w * rows[(j + 1) * V + v];
      }
    }
    if (j < k) {
      const double u = U[j * width + k];
#pragma GCC unroll 4
      for (int v = b; v < V; ++v) even[v - b] -= u * rows[j * V + v];
    }
#pragma GCC unroll 4
    for (int v = b; v < V; ++v) even[v - b] += odd[v - b];
    const double pivot = even[0][k % kLanes];
    if (!(pivot > 0)) return false;
    inverse[k] = 1 / std::sqrt(pivot);
#pragma GCC unroll 4
    for (int v = b; v < V; ++v) reinterpret_cast<Vector*>(U)[k * V + v] = even[v - b] * inverse[k];
  }
  if constexpr (b + 1 < V) return factor_rows<V, b + 1>(U, n, inverse);
  return true;
}

// sum −= U_ki W_i over the rows i of block g and of those behind it, whose first vector is g
template <int V, int b, int g>
HPCHESS_INLINE void subtract_rows(const double* row, const Vector* W, int first, int n, Vector* sum) {
  for (int i = first; i < n && i < (g + 1) * kLanes; ++i) {
    const double u = row[i];
#pragma GCC unroll 4
    for (int v = g; v < V; ++v) sum[v - b] -= u * W[i * V + v];
  }
  if constexpr (g + 1 < V) subtract_rows<V, b, g + 1>(row, W, (g + 1) * kLanes, n, sum);
}

// W = U⁻¹ from below, W_k = (e_k − Σ_{i>k} U_ki W_i) / U_kk; vectors left of the diagonal's are not written
template <int V, int b>
HPCHESS_INLINE void invert_rows(const double* U, int n, const double* inverse, Vector* W) {
  if constexpr (b + 1 < V) invert_rows<V, b + 1>(U, n, inverse, W);
  for (int k = (n < (b + 1) * kLanes ? n : (b + 1) * kLanes) - 1; k >= b * kLanes; --k) {
    Vector sum[V - b] = {};
    sum[0][k % kLanes] = 1;
    subtract_rows<V, b, b>(U + k * V * kLanes, W, k + 1, n, sum);
#pragma GCC unroll 4
    for (int v = b; v < V; ++v) W[k * V + v] = sum[v - b] * inverse[k];
  }
}

template <int V>
HPCHESS_INLINE bool factor_copy(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) {
  alignas(64) double u[V * kLanes * V * kLanes], w[V * kLanes * V * kLanes], inverse[V * kLanes];
  constexpr int width = V * kLanes;
  std::memset(u, 0, sizeof(double) * n * width);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j) u[j * width + i] = X[i * ldx + j];
  if (!factor_rows<V, 0>(u, n, inverse)) return false;
  invert_rows<V, 0>(u, n, inverse, reinterpret_cast<Vector*>(w));
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) X[i * ldx + j] = u[j * width + i];
    std::memset(W + i * ldw, 0, sizeof(double) * i);
    std::memcpy(W + i * ldw + i, w + i * width + i, sizeof(double) * (n - i));
  }
  return true;
}

HPCHESS_INLINE bool factor_any(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) {
  if (n <= 8) return factor_copy<1>(X, ldx, n, W, ldw);
  if (n <= 16) return factor_copy<2>(X, ldx, n, W, ldw);
  if (n <= 24) return factor_copy<3>(X, ldx, n, W, ldw);
  return factor_copy<4>(X, ldx, n, W, ldw);
}

HPCHESS_INLINE double largest_any(const double* a, std::int64_t n) {
  Vector most[4] = {};
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      Vector x;
      std::memcpy(&x, a + i + v * kLanes, sizeof x);
      x = x < 0 ? -x : x;
      most[v] = x > most[v] ? x : most[v];
    }
  for (; i + kLanes <= n; i += kLanes) {
    Vector x;
    std::memcpy(&x, a + i, sizeof x);
    x = x < 0 ? -x : x;
    most[0] = x > most[0] ? x : most[0];
  }
  double result = 0;
  for (int v = 0; v < 4; ++v)
    for (int lane = 0; lane < kLanes; ++lane) result = most[v][lane] > result ? most[v][lane] : result;
  for (; i < n; ++i) result = std::fabs(a[i]) > result ? std::fabs(a[i]) : result;
  return result;
}

HPCHESS_INLINE void convert_any(const float* from, std::int64_t n, double* to) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) to[i] = from[i];
}

HPCHESS_INLINE void gather_any(const double* row, const std::int64_t* from, std::int64_t n, double* to) {
  for (std::int64_t i = 0; i < n; ++i) to[i] = row[from[i]];
}

HPCHESS_INLINE void add_squares_any(const double* a, std::int64_t n, double* sums) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) sums[i] += a[i] * a[i];
}

HPCHESS_INLINE void subtract_any(double* D, const double* H, double* Z, std::int64_t n) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    Z[i] = D[i] - H[i];
    D[i] = Z[i] - H[i];
  }
}

#define HPCHESS_SET(name, target)                                                                                              \
  target bool factor_##name(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) {                                  \
    return factor_any(X, ldx, n, W, ldw);                                                                                       \
  }                                                                                                                             \
  target void convert_##name(const float* from, std::int64_t n, double* to) { convert_any(from, n, to); }                      \
  target double largest_##name(const double* a, std::int64_t n) { return largest_any(a, n); }                                  \
  target void gather_##name(const double* row, const std::int64_t* from, std::int64_t n, double* to) {                          \
    gather_any(row, from, n, to);                                                                                               \
  }                                                                                                                             \
  target void add_squares_##name(const double* a, std::int64_t n, double* sums) { add_squares_any(a, n, sums); }               \
  target void subtract_##name(double* D, const double* H, double* Z, std::int64_t n) { subtract_any(D, H, Z, n); }

HPCHESS_SET(plain, )
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
HPCHESS_SET(avx2, __attribute__((target("avx2,fma"))))
HPCHESS_SET(avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx2,fma"))))
const bool kWide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
const int kSet = kWide ? 2 : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
#define HPCHESS_PICK(name, ...) \
  (kSet == 2 ? name##_avx512(__VA_ARGS__) : kSet == 1 ? name##_avx2(__VA_ARGS__) : name##_plain(__VA_ARGS__))
#else
#define HPCHESS_PICK(name, ...) name##_plain(__VA_ARGS__)
#endif

}  // namespace

bool factor(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) { return HPCHESS_PICK(factor, X, ldx, n, W, ldw); }
void gather(const double* row, const std::int64_t* from, std::int64_t n, double* to) { HPCHESS_PICK(gather, row, from, n, to); }
void convert(const float* from, std::int64_t n, double* to) { HPCHESS_PICK(convert, from, n, to); }
double largest(const double* a, std::int64_t n) { return HPCHESS_PICK(largest, a, n); }
void add_squares(const double* a, std::int64_t n, double* sums) { HPCHESS_PICK(add_squares, a, n, sums); }
void subtract(double* D, const double* H, double* Z, std::int64_t n) { HPCHESS_PICK(subtract, D, H, Z, n); }

}  // namespace small
