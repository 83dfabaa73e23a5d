// Interpolative elimination of a ragged batch where X_RR is positive definite; the caller treats the other blocks.
//
// Row-major memory is the transpose in Fortran order: a row-major T [s, r] is Tᵀ [r, s], and the upper triangular
// W = L⁻ᵀ stored row-major is the lower triangular L⁻¹.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "arrays.hpp"
#include "lapack.hpp"
#include "tasks.hpp"

namespace {

struct Step {  // one block: pointers into the flat buffers
  int s, r;
  double *W, *K, *schur;
};

// A [s, r], leading dimension lda, −= M [s, r]
void subtract(double* A, int lda, const double* M, int s, int r) {
  for (int i = 0; i < s; ++i)
    for (int j = 0; j < r; ++j) A[std::size_t(i) * lda + j] -= M[std::size_t(i) * r + j];
}

// fills W, K, schur; returns log|X_RR|, or NaN where X_RR is not positive definite or D̂ would outgrow max|A| by `growth`
double eliminate_block(const Step& b, std::vector<double>& D, const std::vector<double>& T, double growth) {
  const int s = b.s, r = b.r, c = s + r;
  double* D_JR = D.data() + s;  // row-major s × r, leading dimension c
  double* X = D.data() + std::size_t(s) * c + s;
  double size = 0, log_abs = 0;
  for (const double d : D) size = std::max(size, std::abs(d));
  if (std::any_of(T.begin(), T.end(), [](double t) { return t != 0; })) {
    // M = ½ D_JJ T (in K);  Z = D_JR − M;  X_RR = D_RR − TᵀZ − ZᵀT;  X_JR = Z − M
    lapack::gemm('N', 'N', r, s, s, 0.5, T.data(), r, D.data(), c, 0.0, b.K, r);
    subtract(D_JR, c, b.K, s, r);
    lapack::syr2k(r, s, -1.0, T.data(), r, D_JR, c, X, c);
    subtract(D_JR, c, b.K, s, r);
  }
  if (r && !lapack::potrf(r, X, c)) return std::nan("");
  for (int i = 0; i < r; ++i) log_abs += 2 * std::log(X[std::size_t(i) * c + i]);
  // K = X_JR L⁻ᵀ, D̂ = D_JJ − K Kᵀ
  for (int i = 0; i < s; ++i) std::copy_n(D_JR + std::size_t(i) * c, r, b.K + std::size_t(i) * r);
  for (int i = 0; i < s; ++i) std::copy_n(D.data() + std::size_t(i) * c, s, b.schur + std::size_t(i) * s);
  if (s && r) {
    lapack::trsm('L', 'L', 'N', r, s, X, c, b.K, r);
    for (int i = 0; i < s; ++i) {
      double update = 0;
      for (int j = 0; j < r; ++j) update += b.K[std::size_t(i) * r + j] * b.K[std::size_t(i) * r + j];
      if (!(update <= growth * size)) return std::nan("");
    }
    lapack::syrk('T', s, r, -1.0, b.K, r, b.schur, s);
    for (int i = 0; i < s; ++i)  // LAPACK's lower triangle is the upper one here
      for (int j = 0; j < i; ++j) b.schur[std::size_t(i) * s + j] = b.schur[std::size_t(j) * s + i];
  }
  if (r && !lapack::trtri(r, X, c)) return std::nan("");
  for (int i = 0; i < r; ++i) {
    std::fill_n(b.W + std::size_t(i) * r, i, 0.0);
    std::copy_n(X + std::size_t(i) * c + i, r - i, b.W + std::size_t(i) * r + i);
  }
  return std::isfinite(log_abs) ? log_abs : std::nan("");
}

// A [c, c] blocks, order [Σ c], T [s, r] blocks → W [r, r], K [s, r], schur [s, s] blocks (flat, preallocated) and log_abs [b]
template <class S>
void eliminate_definite(Array<const double, 1> A, Index order, Array<const S, 1> T, Index skeleton, Index redundant,
                        Array<double, 1> W, Array<double, 1> K, Array<double, 1> schur, Array<double, 1> log_abs, double growth) {
  const std::int64_t n = skeleton.shape(0), *s = skeleton.data(), *r = redundant.data();
  std::vector<std::int64_t> c0(n + 1), a0(n + 1), t0(n + 1), w0(n + 1), z0(n + 1);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t c = s[i] + r[i];
    c0[i + 1] = c0[i] + c;
    a0[i + 1] = a0[i] + c * c;
    t0[i + 1] = t0[i] + s[i] * r[i];
    w0[i + 1] = w0[i] + r[i] * r[i];
    z0[i + 1] = z0[i] + s[i] * s[i];
  }
  if (c0[n] != std::int64_t(order.shape(0)) || a0[n] != std::int64_t(A.shape(0)) || t0[n] != std::int64_t(T.shape(0)) ||
      w0[n] != std::int64_t(W.shape(0)) || t0[n] != std::int64_t(K.shape(0)) || z0[n] != std::int64_t(schur.shape(0)) ||
      n != std::int64_t(log_abs.shape(0)) || n != std::int64_t(redundant.shape(0)))
    throw std::invalid_argument("eliminate: sizes of the blocks do not match");
  nb::gil_scoped_release release;
  double work = 0;
  for (std::int64_t i = 0; i < n; ++i) work += std::pow(double(s[i] + r[i]), 3);
  for_each_task(n, work, [&](std::int64_t i) {
    const std::int64_t c = s[i] + r[i], *rows = order.data() + c0[i];
    for (std::int64_t p = 0; p < c; ++p)
      if (rows[p] < 0 || rows[p] >= c) throw std::invalid_argument("eliminate: order is not a permutation");
    std::vector<double> D(c * c), Td(T.data() + t0[i], T.data() + t0[i + 1]);
    const double* from = A.data() + a0[i];
    for (std::int64_t p = 0; p < c; ++p)
      for (std::int64_t q = 0; q < c; ++q) D[p * c + q] = from[rows[p] * c + rows[q]];
    const Step step{int(s[i]), int(r[i]), W.data() + w0[i], K.data() + t0[i], schur.data() + z0[i]};
    log_abs.data()[i] = eliminate_block(step, D, Td, growth);
  });
}

template <class S>
void define(nb::module_& m) {
  m.def("eliminate_definite", &eliminate_definite<S>, nb::arg("A").noconvert(), nb::arg("order").noconvert(),
        nb::arg("T").noconvert(), nb::arg("skeleton").noconvert(), nb::arg("redundant").noconvert(), nb::arg("W").noconvert(),
        nb::arg("K").noconvert(), nb::arg("schur").noconvert(), nb::arg("log_abs").noconvert(), nb::arg("growth"));
}

}  // namespace

void bind_eliminate(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
