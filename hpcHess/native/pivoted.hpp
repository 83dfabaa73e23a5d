// Householder QR with column pivoting of matrices that lie by rows: the lanes of a register are columns, so the scalar products of a
// reflector with all columns and the columns' fresh norms need no sums across lanes.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

namespace pivoted {

template <class T>
constexpr std::int64_t lanes = 64 / sizeof(T);
template <class T>
std::int64_t whole_lines(std::int64_t n) {
  return (n + lanes<T> - 1) / lanes<T> * lanes<T>;
}
// an odd number of lines: rows or columns at powers of two would share the cache's sets
template <class T>
std::int64_t odd_lines(std::int64_t n) {
  return (n + lanes<T> - 1) / lanes<T> * lanes<T> | lanes<T>;
}

// What knows registers, compiled for several instruction sets (pivoted.cpp).
// H A in place, H = I − tau v vᵀ with v[0] = 1, and s_c = ‖column c below the first row‖²; A [rows ≥ 1, width], whole lines
void reflect(float* A, std::int64_t ld, std::int64_t width, int rows, const float* v, float tau, float* squares);
void reflect(double* A, std::int64_t ld, std::int64_t width, int rows, const double* v, double tau, double* squares);
// s_c = ‖column c‖²
void column_squares(const float* A, std::int64_t ld, std::int64_t width, int rows, float* squares);
void column_squares(const double* A, std::int64_t ld, std::int64_t width, int rows, double* squares);
// Σ max(0, s_c)
double total(const float* squares, std::int64_t n);
double total(const double* squares, std::int64_t n);
// the first c of the largest s_c
std::int64_t longest(const float* squares, std::int64_t n);
std::int64_t longest(const double* squares, std::int64_t n);
// Σ a_i², summed in double
double sum_of_squares(const float* a, std::int64_t n);
double sum_of_squares(const double* a, std::int64_t n);
// max |a_i|; NaN where one of them is NaN or Inf
float largest(const float* a, std::int64_t n);
double largest(const double* a, std::int64_t n);
// out [k, n] with rows ldo apart = (A [n, k] with rows lda apart)ᵀ
void transpose(const float* A, std::int64_t lda, int n, int k, float* out, std::int64_t ldo);
void transpose(const double* A, std::int64_t lda, int n, int k, double* out, std::int64_t ldo);

// x → (1, v₁, …) of the reflector I − tau v vᵀ that maps it to beta e₁, in place; returns beta (xLARFG; beta takes the other sign
// than x₀). x = 0: v = 0, tau = 0.
template <class T>
T reflector(T* x, int n, T& tau) {
  const T beta = static_cast<T>(-std::copysign(std::sqrt(sum_of_squares(x, n)), double(x[0])));
  if (beta == 0) {
    tau = 0;
    return 0;
  }
  tau = (beta - x[0]) / beta;
  const T below = x[0] - beta;
  for (int i = 1; i < n; ++i) x[i] /= below;
  x[0] = 1;
  return beta;
}

// Qᵀ A of A [k, n] (rows `ld` apart, zeros behind n to whole lines) in place, Q of at most `steps` reflectors, each of the column
// whose remainder is longest (Businger & Golub 1965; the first of equal ones). Before each step j and after the last
//     stop(j, tail²)   with   tail² = ‖rows ≥ j of the columns not chosen‖_F²
// is asked; returns the number of steps taken. Columns stay where they are: row q of R is row q of A, pivots[q] its pivot.
// Reflector q is V[q ldv + i] for rows i ≥ q, zeros above. `squares` is room for whole lines.
template <class T, class Stop>
int factor(T* A, std::int64_t ld, int k, int n, int steps, int* pivots, T* tau, T* V, std::int64_t ldv, T* squares, const Stop& stop) {
  const std::int64_t width = whole_lines<T>(n);
  column_squares(A, ld, width, k, squares);
  for (int j = 0;; ++j) {
    for (int q = 0; q < j; ++q) squares[pivots[q]] = -1;
    if (n == j) {
      stop(j, 0.0);
      return j;
    }
    double tail = total(squares, n);
    int pivot = static_cast<int>(longest(squares, n));
    if (sizeof(T) < sizeof(double) && tail < 1e-24) {  // squares of small float32 numbers vanish
      double most = -1;
      tail = 0;
      for (int c = 0; c < n; ++c) {
        double square = 0;
        for (int i = j; i < k && squares[c] >= 0; ++i) square += double(A[i * ld + c]) * double(A[i * ld + c]);
        if (squares[c] >= 0 && square > most) {
          most = square;
          pivot = c;
        }
        tail += square;
      }
    }
    if (stop(j, tail) || j == steps) return j;
    T* v = V + j * ldv;
    std::fill(v, v + j, T(0));
    for (int i = j; i < k; ++i) v[i] = A[i * ld + pivot];
    pivots[j] = pivot;
    const T beta = reflector(v + j, k - j, tau[j]);
    reflect(A + j * ld, ld, width, k - j, v + j, tau[j], squares);
    A[j * ld + pivot] = beta;
  }
}

}  // namespace pivoted
