// Interpolative elimination of a ragged batch where X_RR is positive definite; the caller treats the other blocks.
//
// A block is permuted to [R; J], redundant rows first, and its lower triangle held row-major in M [c, c]. Everything but
// Cholesky factors of 32 rows is matrix products (LAPACK's own triangular routines reach a tenth of their speed at these sizes):
//
//   H = ½ D_JJ T,  Z = D_JR − H,  X_RR = D_RR − [T; Z]ᵀ[Z; T],  X_JR = Z − H
//   by panels of columns P:  M_P −= M_{:,<P} M_{P,<P}ᵀ,  X_PP = LLᵀ,  W_PP = L⁻ᵀ,  M_{>P,P} ← M_{>P,P} W_PP
//   so that the rows J end as K = X_JR L⁻ᵀ;  D̂ = D_JJ − KKᵀ;  W_{<P,P} = −W_{<P,<P} (M_{P,<P}ᵀ W_PP)
//
// All products are cut into pieces of fixed sizes: what is computed does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <memory>
#include <stdexcept>

#include "arrays.hpp"
#include "blocks.hpp"
#include "lapack.hpp"
#include "small.hpp"

namespace {

using small::kBase;
constexpr std::int64_t kRows = 256;  // rows of a piece

class Scratch {  // doubles that a thread keeps from block to block, not initialized
 public:
  double* of(std::size_t n) {
    if (n > size_) {
      held_.reset(new double[n]);
      size_ = n;
    }
    return held_.get();
  }

 private:
  std::unique_ptr<double[]> held_;
  std::size_t size_ = 0;
};

// row-major products: C [m, n] = alpha op(A) op(B) + beta C
void multiply(bool ta, bool tb, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* A, std::int64_t lda,
              const double* B, std::int64_t ldb, double beta, double* C, std::int64_t ldc) {
  if (m > 0 && n > 0 && (k > 0 || beta != 1.0))
    lapack::gemm(tb ? 'T' : 'N', ta ? 'T' : 'N', int(n), int(m), int(k), alpha, B, int(ldb), A, int(lda), beta, C, int(ldc));
}

std::int64_t strip(std::int64_t n) { return n <= 128 ? 32 : n <= 512 ? 64 : 128; }  // rows of a triangle taken as a rectangle

// W [n, n] upper: W_{<P,P} = −W_{<P,<P} (L_{P,<P}ᵀ W_PP) for the panel of columns [p, q); L row-major below
void extend_inverse(const double* L, std::int64_t ld, double* W, std::int64_t ldw, std::int64_t p, std::int64_t q, const Team& team) {
  thread_local Scratch scratch;
  const std::int64_t n = q - p;
  double* G = scratch.of(p * n);
  multiply(true, false, p, n, n, 1.0, L + p * ld, ld, W + p * ldw + p, ldw, 0.0, G, n);
  team.pieces(p, strip(p), double(p) * p * n / 2, [&](std::int64_t i, std::int64_t j) {
    multiply(false, false, j - i, n, p - i, -1.0, W + i * ldw + i, ldw, G + i * n, n, 0.0, W + i * ldw + p, ldw);
  });
}

// the first n columns of M [rows, n…], lower: L; and panels W_PP = L_PP⁻ᵀ, completed to W = L⁻ᵀ where `whole`
bool factor(double* M, std::int64_t ld, std::int64_t rows, std::int64_t n, double* W, std::int64_t ldw, bool whole, const Team& team) {
  if (n <= kBase && rows == n) return n == 0 || small::factor(M, ld, int(n), W, ldw);
  const std::int64_t panel = n <= 6 * kBase ? kBase : 2 * kBase;
  for (std::int64_t p = 0; p < n; p += panel) {
    const std::int64_t q = std::min(n, p + panel), w = q - p;
    double* P = M + p * ld;
    multiply(false, true, w, w, p, -1.0, P, ld, P, ld, 1.0, P + p, ld);
    if (!factor(P + p, ld, w, w, W + p * ldw + p, ldw, true, Team(false))) return false;
    team.pieces(rows - q, kRows, double(rows - q) * w * q, [&](std::int64_t i, std::int64_t j) {
      thread_local Scratch scratch;
      double *C = M + (q + i) * ld, *held = scratch.of((j - i) * w);
      multiply(false, true, j - i, w, p, -1.0, C, ld, P, ld, 1.0, C + p, ld);
      for (std::int64_t row = 0; row < j - i; ++row) std::copy_n(C + row * ld + p, w, held + row * w);
      multiply(false, false, j - i, w, w, 1.0, held, w, W + p * ldw + p, ldw, 0.0, C + p, ld);
    });
    if (whole && p) extend_inverse(M, ld, W, ldw, p, q, team);
  }
  return true;
}

void copy(const double* from, std::int64_t n, double* to) { std::copy_n(from, n, to); }
void copy(const float* from, std::int64_t n, double* to) { small::convert(from, n, to); }

template <class D, class B>
struct Source {  // a block [[D₀, B], [Bᵀ, D₁]] + shift·I, B [b₀, b₁] in the leading rows and columns of its corner; or D₀ + shift·I
  std::int64_t n0, n1, b0, b1;
  const D *D0, *D1;
  const B* coupling;
  double shift;

  // row i
  void row(std::int64_t i, double* to) const {
    if (i < n0) {
      copy(D0 + i * n0, n0, to);
      if (i < b0) copy(coupling + i * b1, b1, to + n0);
      std::fill(to + n0 + (i < b0 ? b1 : 0), to + n0 + n1, 0.0);
    } else {
      const std::int64_t j = i - n0;
      std::fill_n(to, n0, 0.0);
      for (std::int64_t p = 0; j < b1 && p < b0; ++p) to[p] = double(coupling[p * b1 + j]);
      copy(D1 + j * n1, n1, to + n0);
    }
    to[i] += shift;
  }
};

template <class S>
struct Step {  // one block: pointers into the flat buffers
  std::int64_t s, r;
  const std::int64_t* order;
  const S* T;
  double *W, *K, *schur;
};

struct Found {
  double log_abs, largest;  // log|X_RR|, or NaN where refused; max ‖W e_j‖²
};

// M [c, c]: the lower triangle of the block in the order [R; J], D_JJ whole; returns max|A|
template <class D, class B, class S>
double gather(const Source<D, B>& source, const Step<S>& b, double* M, std::int64_t ld, const Team& team) {
  const std::int64_t r = b.r, c = b.s + r;
  thread_local std::vector<std::int64_t> from;
  std::vector<double> most((c + kRows - 1) / kRows, 0.0);
  from.resize(c);
  std::copy_n(b.order + b.s, r, from.begin());
  std::copy_n(b.order, b.s, from.begin() + r);
  const std::int64_t* rows = from.data();
  team.pieces(c, kRows, double(c) * c, [&](std::int64_t first, std::int64_t last) {
    thread_local Scratch scratch;
    double *row = scratch.of(c), size = 0;
    for (std::int64_t p = first; p < last; ++p) {
      source.row(rows[p], row);
      size = std::max(size, small::largest(row, c));
      small::gather(row, rows, p < r ? p + 1 : c, M + p * ld);
    }
    most[first / kRows] = size;
  });
  return *std::max_element(most.begin(), most.end());
}

// the congruence by T: X_RR and X_JR in place of D_RR and D_JR
template <class S>
void transform(const Step<S>& b, double* M, std::int64_t ld, const Team& team) {
  const std::int64_t s = b.s, r = b.r;
  if (std::none_of(b.T, b.T + s * r, [](S t) { return t != 0; })) return;
  thread_local Scratch scratch;
  double *T = scratch.of(4 * s * r), *Z = T + s * r, *H = T + 3 * s * r, *D_J = M + r * ld;  // T, Z, T one below the other
  copy(b.T, s * r, T);
  std::copy_n(T, s * r, T + 2 * s * r);
  team.pieces(s, kRows, double(s) * s * r, [&](std::int64_t i, std::int64_t j) {
    multiply(false, false, j - i, r, s, 0.5, D_J + i * ld + r, ld, T, r, 0.0, H + i * r, r);
    for (std::int64_t p = i; p < j; ++p) small::subtract(D_J + p * ld, H + p * r, Z + p * r, r);
  });
  team.pieces(r, strip(r), double(s) * r * r, [&](std::int64_t i, std::int64_t j) {
    multiply(true, false, j - i, j, 2 * s, -1.0, T + i, r, Z, r, 1.0, M + i * ld, ld);
  });
}

// K and D̂ out of the rows J of the factored M; false where D̂ would outgrow `limit`
template <class S>
bool finish(const Step<S>& b, const double* M, std::int64_t ld, double limit, const Team& team) {
  thread_local std::vector<double> squares;
  const std::int64_t s = b.s, r = b.r;
  for (std::int64_t i = 0; i < s; ++i) {
    const double* row = M + (r + i) * ld;
    std::copy_n(row, r, b.K + i * r);
    squares.assign(r, 0.0);
    small::add_squares(row, r, squares.data());
    double update = 0;
    for (const double each : squares) update += each;
    if (r && !(update <= limit)) return false;
  }
  const std::int64_t height = strip(s);
  team.pieces(s, height, double(s) * s * r / 2, [&](std::int64_t i, std::int64_t j) {
    for (std::int64_t p = i; p < j; ++p) std::copy_n(M + (r + p) * ld + r, j, b.schur + p * s);
    multiply(false, true, j - i, j, r, -1.0, b.K + i * r, r, b.K, r, 1.0, b.schur + i * s, s);
  });
  for (std::int64_t i = 0; i < s; i += 16)  // the upper triangle, tile by tile
    for (std::int64_t p = 0; p <= i; p += 16)
      for (std::int64_t row = i; row < std::min(s, i + 16); ++row)
        for (std::int64_t q = p; q < std::min(row, p + 16); ++q) b.schur[q * s + row] = b.schur[row * s + q];
  return true;
}

template <class D, class B, class S>
Found eliminate_block(const Source<D, B>& source, const Step<S>& b, double growth, const Team& team) {
  thread_local Scratch scratch;
  thread_local std::vector<double> squares;
  const Found refused{std::nan(""), 0};
  const std::int64_t r = b.r, c = b.s + r, even = (c + 7) / 8 * 8, ld = even + (even % 64 == 0 ? 8 : 0);  // no rows one page apart
  if (!c) return {0, 0};
  double *M = scratch.of(c * ld), log_abs = 0;
  const double size = gather(source, b, M, ld, team);
  transform(b, M, ld, team);
  if (!factor(M, ld, c, r, b.W, r, false, team)) return refused;
  for (std::int64_t i = 0; i < r; ++i) log_abs += 2 * std::log(M[i * ld + i]);
  if (!std::isfinite(log_abs) || !finish(b, M, ld, growth * size, team)) return refused;
  const std::int64_t panel = r <= 6 * kBase ? kBase : 2 * kBase;
  for (std::int64_t p = panel; p < r; p += panel) extend_inverse(M, ld, b.W, r, p, std::min(r, p + panel), team);
  squares.assign(r, 0.0);
  for (std::int64_t i = 0; i < r; ++i) small::add_squares(b.W + i * r + i, r - i, squares.data() + i);
  return {log_abs, r ? *std::max_element(squares.begin(), squares.end()) : 0.0};
}

// D: `parts` (1 or 2) diagonal blocks of sizes `sizes` a block, coupled by B [B_rows × B_cols] where there are two; order [Σ c],
// T [s, r] → W [r, r] (given as zeros), K [s, r], schur [s, s] blocks (flat, preallocated), log_abs [b], largest [b]
template <class D, class B, class S>
void eliminate_definite(Array<const D, 1> diagonal, Index sizes, std::int64_t parts, Array<const B, 1> coupling, Index B_rows,
                        Index B_cols, double shift, Index order, Array<const S, 1> T, Index skeleton, Index redundant,
                        Array<double, 1> W, Array<double, 1> K, Array<double, 1> schur, Array<double, 1> log_abs,
                        Array<double, 1> largest, double growth) {
  const std::int64_t n = skeleton.shape(0), *s = skeleton.data(), *r = redundant.data(), *size = sizes.data();
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
  };
  const char* mismatch = "eliminate: sizes of the blocks do not match";
  demand((parts == 1 || parts == 2) && n == std::int64_t(redundant.shape(0)) && n * parts == std::int64_t(sizes.shape(0)), mismatch);
  demand(parts == 1 || (n == std::int64_t(B_rows.shape(0)) && n == std::int64_t(B_cols.shape(0))), mismatch);
  std::vector<std::int64_t> c0(n + 1), d0(n * parts + 1), b0(n + 1), t0(n + 1), w0(n + 1), z0(n + 1);
  std::vector<double> work(n);
  for (std::int64_t i = 0; i < n * parts; ++i) d0[i + 1] = d0[i] + size[i] * size[i];
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t c = s[i] + r[i], *own = size + i * parts;
    demand(s[i] >= 0 && r[i] >= 0 && own[0] >= 0 && own[parts - 1] >= 0, "eliminate: a negative size");
    demand(c == own[0] + (parts == 2 ? own[1] : 0), mismatch);
    if (parts == 2) {
      const std::int64_t rows = B_rows.data()[i], cols = B_cols.data()[i];
      demand(rows >= 0 && rows <= own[0] && cols >= 0 && cols <= own[1], mismatch);
      b0[i + 1] = b0[i] + rows * cols;
    }
    work[i] = double(c) * c * c / 2;
    c0[i + 1] = c0[i] + c;
    t0[i + 1] = t0[i] + s[i] * r[i];
    w0[i + 1] = w0[i] + r[i] * r[i];
    z0[i + 1] = z0[i] + s[i] * s[i];
  }
  demand(c0[n] == std::int64_t(order.shape(0)) && d0[n * parts] == std::int64_t(diagonal.shape(0)), mismatch);
  demand(t0[n] == std::int64_t(T.shape(0)) && t0[n] == std::int64_t(K.shape(0)), mismatch);
  demand(parts == 1 || b0[n] == std::int64_t(coupling.shape(0)), mismatch);
  demand(w0[n] == std::int64_t(W.shape(0)) && z0[n] == std::int64_t(schur.shape(0)), mismatch);
  demand(n == std::int64_t(log_abs.shape(0)) && n == std::int64_t(largest.shape(0)), mismatch);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t p = c0[i]; p < c0[i + 1]; ++p)
      demand(order.data()[p] >= 0 && order.data()[p] < s[i] + r[i], "eliminate: order is not a permutation");
  nb::gil_scoped_release release;
  for_each_block(work, [&](std::int64_t i, const Team& team) {
    const std::int64_t own = i * parts;
    Source<D, B> source{size[own], 0, 0, 0, diagonal.data() + d0[own], nullptr, nullptr, shift};
    if (parts == 2) {
      source.n1 = size[own + 1], source.b0 = B_rows.data()[i], source.b1 = B_cols.data()[i];
      source.D1 = diagonal.data() + d0[own + 1], source.coupling = coupling.data() + b0[i];
    }
    const Step<S> step{s[i], r[i], order.data() + c0[i], T.data() + t0[i],
                       W.data() + w0[i], K.data() + t0[i], schur.data() + z0[i]};
    const Found found = eliminate_block(source, step, growth, team);
    log_abs.data()[i] = found.log_abs;
    largest.data()[i] = found.largest;
  });
}

template <class D, class B, class S>
void define(nb::module_& m) {
  m.def("eliminate_definite", &eliminate_definite<D, B, S>, nb::arg("diagonal").noconvert(), nb::arg("sizes").noconvert(),
        nb::arg("parts"), nb::arg("coupling").noconvert(), nb::arg("B_rows").noconvert(), nb::arg("B_cols").noconvert(),
        nb::arg("shift"), nb::arg("order").noconvert(), nb::arg("T").noconvert(), nb::arg("skeleton").noconvert(),
        nb::arg("redundant").noconvert(), nb::arg("W").noconvert(), nb::arg("K").noconvert(), nb::arg("schur").noconvert(),
        nb::arg("log_abs").noconvert(), nb::arg("largest").noconvert(), nb::arg("growth"));
}

}  // namespace

void bind_eliminate(nb::module_& m) {
  define<double, float, float>(m);
  define<double, double, double>(m);
  define<double, double, float>(m);
  define<double, float, double>(m);
  define<float, float, float>(m);
}
