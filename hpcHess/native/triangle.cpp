// Compiled for several instruction sets at once as narrow.cpp is.
#include "triangle.hpp"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define HPCHESS_CLONES __attribute__((target_clones("arch=skylake-avx512", "arch=haswell", "default")))
#else
#define HPCHESS_CLONES
#endif
#define HPCHESS_INLINE __attribute__((always_inline)) inline

namespace triangle {
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

HPCHESS_CLONES bool factor_any(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) {
  if (n <= 8) return factor_copy<1>(X, ldx, n, W, ldw);
  if (n <= 16) return factor_copy<2>(X, ldx, n, W, ldw);
  if (n <= 24) return factor_copy<3>(X, ldx, n, W, ldw);
  return factor_copy<4>(X, ldx, n, W, ldw);
}

}  // namespace

bool factor(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) { return factor_any(X, ldx, n, W, ldw); }

}  // namespace triangle
