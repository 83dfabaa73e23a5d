// Inner products over the samples of small sets of rows, samples contiguous: what entries of Gram-type matrices are made of.
#pragma once
#include <cstdint>

namespace dots {

template <class T>
constexpr int kLanes = 64 / int(sizeof(T));  // rows are padded by zeros to a multiple of these, and aligned
constexpr int kFew = 4;                      // rows a side up to which `weighted` takes one pass

template <class T>
struct Kernels {
  // H[i·ldh + j] += Σ_s A[i, s] B[j, s],  A [a, m], B [b, m] with rows ld apart, m ≤ ld padded; `upper`: j ≥ i alone are meant
  void (*products)(const T* A, int a, const T* B, int b, std::int64_t ld, int m, bool upper, double* H, std::int64_t ldh);

  // H[i·ldh + j] += Σ_s k[s] A[i, s] B[j, s] for a, b ≤ kFew; k [m] needs no alignment nor padding
  void (*weighted)(const T* k, const T* A, int a, const T* B, int b, std::int64_t ld, int m, double* H, std::int64_t ldh);

  // S[i, s] = k[s] A[i, s], padding too
  void (*scale)(const T* k, const T* A, int a, std::int64_t ld, int m, T* S);

  // K[i·b + j] [s] = Σ_e P_i[e·n + s] Q_j[e·n + s] for a, b ≤ kFew arrays of r rows n apart, s < m; K's rows are ld apart
  void (*cross)(const T* const* P, int a, const T* const* Q, int b, int r, std::int64_t n, int m, T* K, std::int64_t ld);

  // K[s] = Σ_e c[e] P[e·n + s]
  void (*combine)(const T* P, const T* c, int r, std::int64_t n, int m, T* K);
};

// the fastest of this processor
template <class T>
const Kernels<T>& kernels();

}  // namespace dots
