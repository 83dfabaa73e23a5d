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

// U [n, 8 V], upper: U ← chol(U)ᵀ and W = U⁻¹, rows of V vectors; rows from n on are not read
template <int V>
HPCHESS_INLINE bool factor_rows(Vector* U, int n, Vector* W) {
  double inverse[V * kLanes];
  for (int k = 0; k < n; ++k) {
    Vector* row = U + k * V;
    const double pivot = row[k / kLanes][k % kLanes];
    if (!(pivot > 0)) return false;
    inverse[k] = 1 / std::sqrt(pivot);
    for (int v = 0; v < V; ++v) row[v] *= inverse[k];
    for (int i = k + 1; i < n; ++i) {
      const double u = row[i / kLanes][i % kLanes];
      for (int v = i / kLanes; v < V; ++v) U[i * V + v] -= u * row[v];
    }
  }
  for (int k = n - 1; k >= 0; --k) {  // U W = I from below
    Vector sum[V] = {};
    sum[k / kLanes][k % kLanes] = 1;
    for (int i = k + 1; i < n; ++i) {
      const double u = U[k * V + i / kLanes][i % kLanes];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] -= u * W[i * V + v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) W[k * V + v] = sum[v] * inverse[k];
  }
  return true;
}

template <int V>
HPCHESS_INLINE bool factor_copy(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw) {
  alignas(64) double u[V * kLanes * V * kLanes], w[V * kLanes * V * kLanes];
  constexpr int width = V * kLanes;
  std::memset(u, 0, sizeof(double) * n * width);
  for (int i = 0; i < n; ++i)
    for (int j = 0; j <= i; ++j) u[j * width + i] = X[i * ldx + j];
  if (!factor_rows<V>(reinterpret_cast<Vector*>(u), n, reinterpret_cast<Vector*>(w))) return false;
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j <= i; ++j) X[i * ldx + j] = u[j * width + i];
    std::memcpy(W + i * ldw, w + i * width, sizeof(double) * n);
    for (int j = 0; j < i; ++j) W[i * ldw + j] = 0;  // exactly
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
