// The two sweeps of a solve through one level of eliminated blocks (backend/elimination.py), row-major multivectors:
//
//   forward   b_R' = b_R − Tᵀb_J,  z = σWᵀb_R',  b_J' = b_J − Kz,  b_δ = Vᵀb_R'
//   backward  z' = z − σKᵀx_J',  x_R = Wz' + Vx_δ,  x_J = x_J' − Tx_R
//
// A block's rows are gathered, worked on in a buffer that stays in cache, and scattered; T, K and W are read once, and of
// a triangular W the triangle alone.
#include <stdexcept>
#include <string>

#include "arrays.hpp"
#include "blocks.hpp"
#include "columns.hpp"

namespace {

constexpr std::int64_t kRows = 128;   // pieces of a large block along the rows of what is read
constexpr std::int64_t kCols = 512;   // and along its columns
constexpr std::int64_t kPanel = 32;   // rows of a triangle taken as a rectangle where memory is what counts,
constexpr std::int64_t kStrip = 24;   // rows or columns of it where the multipliers are
constexpr int kFew = 4;               // vectors up to which it is memory

template <class S>
struct Level {  // b blocks, flat
  const std::int64_t *order, *s, *r, *delayed;
  const S* T;
  const double *W, *K, *V, *sign;
  const std::uint8_t* triangular;
  std::vector<std::int64_t> c0, t0, w0, k0, v0, a0, kept0;
};

template <class S>
struct Block {
  std::int64_t s, r, a, d;
  const std::int64_t* order;
  const S* T;
  const double *W, *K, *V, *sign;
  bool triangular;
};

template <class S>
Block<S> block(const Level<S>& l, std::int64_t i) {
  return {l.s[i], l.r[i], l.r[i] - l.delayed[i], l.delayed[i], l.order + l.c0[i], l.T + l.t0[i], l.W + l.w0[i], l.K + l.k0[i],
          l.V + l.v0[i], l.sign + l.a0[i], l.triangular[i] != 0};
}

// Y [m, k] += alpha op(A) X [n, k]
template <class S>
void add_product(const S* A, std::int64_t lda, bool transpose, std::int64_t m, std::int64_t n, const double* X, double* Y, int k,
                 double alpha) {
  if (m <= 0 || n <= 0) return;
  if (transpose)
    columns::add_transposed<S, double>(A, lda, int(n), int(m), X, k, alpha, Y);
  else
    columns::add_product<S, double>(A, lda, int(m), int(n), X, k, alpha, Y);
}

// z [first, last) += Wᵀ b
template <class S>
void times_transpose(const Block<S>& b, const double* R, double* z, int k, std::int64_t first, std::int64_t last) {
  if (!b.triangular) {
    add_product(b.W + first, b.a, true, last - first, b.r, R, z + first * k, k, 1.0);
    return;
  }
  if (k <= kFew) {  // by rows, as they lie
    add_product(b.W + first, b.a, true, last - first, first, R, z + first * k, k, 1.0);
    for (std::int64_t p = first; p < last; p += kPanel)
      add_product(b.W + p * b.a + p, b.a, true, last - p, std::min(kPanel, last - p), R + p * k, z + p * k, k, 1.0);
    return;
  }
  for (std::int64_t p = first; p < last; p += kStrip) {
    const std::int64_t end = std::min(last, p + kStrip);
    add_product(b.W + p, b.a, true, end - p, end, R, z + p * k, k, 1.0);
  }
}

// R [first, last) += W z
template <class S>
void times(const Block<S>& b, const double* z, double* R, int k, std::int64_t first, std::int64_t last) {
  if (!b.triangular) {
    add_product(b.W + first * b.a, b.a, false, last - first, b.a, z, R + first * k, k, 1.0);
    return;
  }
  const std::int64_t height = k <= kFew ? kPanel : kStrip;
  for (std::int64_t p = first; p < last; p += height)
    add_product(b.W + p * b.a + p, b.a, false, std::min(height, last - p), b.a - p, z + p * k, R + p * k, k, 1.0);
}

void copy(const double* from, double* to, int k) { std::copy_n(from, k, to); }

template <class S>
void forward(const Block<S>& b, const Team& team, const double* B, double* kept, double* z, int k) {
  thread_local std::vector<double> buffer;
  buffer.resize(std::size_t(b.r) * k);
  double* R = buffer.data();
  for (std::int64_t j = 0; j < b.s; ++j) copy(B + b.order[j] * k, kept + j * k, k);
  team.pieces(b.r, kCols, double(b.s) * b.r * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t j = first; j < last; ++j) copy(B + b.order[b.s + j] * k, R + j * k, k);
    add_product(b.T + first, b.r, true, last - first, b.s, kept, R + first * k, k, -1.0);
  });
  team.pieces(b.a, kCols, double(b.a) * b.r * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    std::fill(z + first * k, z + last * k, 0.0);
    times_transpose(b, R, z, k, first, last);
    for (std::int64_t j = first; j < last; ++j)
      if (b.sign[j] < 0)
        for (int q = 0; q < k; ++q) z[j * k + q] = -z[j * k + q];
  });
  team.pieces(b.s, kRows, double(b.s) * b.a * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    add_product(b.K + first * b.a, b.a, false, last - first, b.a, z, kept + first * k, k, -1.0);
  });
  std::fill_n(kept + b.s * k, b.d * k, 0.0);
  add_product(b.V, b.d, true, b.d, b.r, R, kept + b.s * k, k, 1.0);
}

template <class S>
void backward(const Block<S>& b, const Team& team, const double* kept, const double* state, double* X, int k) {
  thread_local std::vector<double> buffer;
  buffer.resize(std::size_t(b.a + b.r + b.s) * k);
  double *z = buffer.data(), *R = z + b.a * k, *J = R + b.r * k;
  team.pieces(b.a, kCols, double(b.s) * b.a * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    std::fill(z + first * k, z + last * k, 0.0);
    add_product(b.K + first, b.a, true, last - first, b.s, kept, z + first * k, k, -1.0);
    for (std::int64_t j = first; j < last; ++j)
      for (int q = 0; q < k; ++q) z[j * k + q] = state[j * k + q] + b.sign[j] * z[j * k + q];
  });
  team.pieces(b.r, kRows, double(b.a) * b.r * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    std::fill(R + first * k, R + last * k, 0.0);
    times(b, z, R, k, first, last);
    add_product(b.V + first * b.d, b.d, false, last - first, b.d, kept + b.s * k, R + first * k, k, 1.0);
    for (std::int64_t j = first; j < last; ++j) copy(R + j * k, X + b.order[b.s + j] * k, k);
  });
  std::copy_n(kept, b.s * k, J);
  team.pieces(b.s, kRows, double(b.s) * b.r * columns::effort(k), [&](std::int64_t first, std::int64_t last) {
    add_product(b.T + first * b.r, b.r, false, last - first, b.r, R, J + first * k, k, -1.0);
    for (std::int64_t j = first; j < last; ++j) copy(J + j * k, X + b.order[j] * k, k);
  });
}

template <class S>
Level<S> level(Index order, Index s, Index r, Index delayed, Array<const S, 1> T, Array<const double, 1> W,
               Array<const double, 1> K, Array<const double, 1> V, Array<const double, 1> sign, Array<const std::uint8_t, 1> triangular,
               Index first_rows, std::int64_t n_rows) {
  const std::size_t n = s.shape(0);
  if (first_rows.shape(0) < n || r.shape(0) != n || delayed.shape(0) != n || triangular.shape(0) != n)
    throw std::invalid_argument("solve: sizes of the blocks do not match");
  Level<S> l{order.data(), s.data(), r.data(), delayed.data(), T.data(), W.data(), K.data(), V.data(), sign.data(), triangular.data(),
             {}, {}, {}, {}, {}, {}, {}};
  std::vector<std::int64_t>* starts[] = {&l.c0, &l.t0, &l.w0, &l.k0, &l.v0, &l.a0, &l.kept0};
  for (auto* each : starts) each->assign(n + 1, 0);
  for (std::size_t i = 0; i < n; ++i) {
    const std::int64_t si = l.s[i], ri = l.r[i], d = l.delayed[i], a = ri - d;
    if (si < 0 || ri < 0 || d < 0 || a < 0) throw std::invalid_argument("solve: a negative size");
    const std::int64_t counts[] = {si + ri, si * ri, ri * a, si * a, ri * d, a, si + d};
    for (int j = 0; j < 7; ++j) (*starts[j])[i + 1] = (*starts[j])[i] + counts[j];
  }
  const std::int64_t sizes[] = {std::int64_t(order.shape(0)), std::int64_t(T.shape(0)), std::int64_t(W.shape(0)),
                                std::int64_t(K.shape(0)),     std::int64_t(V.shape(0)), std::int64_t(sign.shape(0))};
  for (int j = 0; j < 6; ++j)
    if ((*starts[j])[n] != sizes[j]) throw std::invalid_argument("solve: sizes of the blocks do not match");
  for (std::size_t i = 0; i < n; ++i)
    for (std::int64_t j = l.c0[i]; j < l.c0[i + 1]; ++j)
      if (first_rows.data()[i] + l.order[j] < 0 || first_rows.data()[i] + l.order[j] >= n_rows)
        throw std::invalid_argument("solve: a row of a block lies outside the vectors");
  return l;
}

template <class S>
std::vector<double> work_of(const Level<S>& l, int k) {
  std::vector<double> work(l.c0.size() - 1);
  for (std::size_t i = 0; i < work.size(); ++i)
    work[i] = columns::effort(k) * (double(l.t0[i + 1] - l.t0[i]) + double(l.k0[i + 1] - l.k0[i]) +
                                    0.5 * double(l.w0[i + 1] - l.w0[i]) + 8.0 * double(l.c0[i + 1] - l.c0[i]));
  return work;
}

// B [n, k], rows starts[i] + order of block i → kept [Σ (s + δ), k], z [Σ (r − δ), k]
template <class S>
void solve_forward(Array<const double, 2> B, Index starts, Index order, Index s, Index r, Index delayed, Array<const S, 1> T,
                   Array<const double, 1> W, Array<const double, 1> K, Array<const double, 1> V, Array<const double, 1> sign,
                   Array<const std::uint8_t, 1> triangular, Array<double, 2> kept, Array<double, 2> z) {
  const Level<S> l = level<S>(order, s, r, delayed, T, W, K, V, sign, triangular, starts, B.shape(0));
  const std::size_t n = s.shape(0), k = B.shape(1);
  if (kept.shape(1) != k || z.shape(1) != k || std::int64_t(kept.shape(0)) != l.kept0[n] ||
      std::int64_t(z.shape(0)) != l.a0[n])
    throw std::invalid_argument("solve: sizes of the vectors do not match");
  if (k == 0) return;
  nb::gil_scoped_release release;
  for_each_block(work_of(l, int(k)), [&](std::int64_t i, const Team& team) {
    forward(block(l, i), team, B.data() + starts.data()[i] * k, kept.data() + l.kept0[i] * k, z.data() + l.a0[i] * k, int(k));
  });
}

// kept [Σ (s + δ), k], z [Σ (r − δ), k] → X [n, k], rows starts[i] + order of block i
template <class S>
void solve_backward(Array<const double, 2> kept, Array<const double, 2> z, Index starts, Index order, Index s, Index r,
                    Index delayed, Array<const S, 1> T, Array<const double, 1> W, Array<const double, 1> K, Array<const double, 1> V,
                    Array<const double, 1> sign, Array<const std::uint8_t, 1> triangular, Array<double, 2> X) {
  const Level<S> l = level<S>(order, s, r, delayed, T, W, K, V, sign, triangular, starts, X.shape(0));
  const std::size_t n = s.shape(0), k = X.shape(1);
  if (kept.shape(1) != k || z.shape(1) != k || std::int64_t(kept.shape(0)) != l.kept0[n] || std::int64_t(z.shape(0)) != l.a0[n])
    throw std::invalid_argument("solve: sizes of the vectors do not match");
  if (k == 0) return;
  nb::gil_scoped_release release;
  for_each_block(work_of(l, int(k)), [&](std::int64_t i, const Team& team) {
    backward(block(l, i), team, kept.data() + l.kept0[i] * k, z.data() + l.a0[i] * k, X.data() + starts.data()[i] * k, int(k));
  });
}

// W [r, a] blocks → triangular [b]: 1 where W is square with zeros below the diagonal; largest [b]: max ‖W e_j‖²
void inspect(Array<const double, 1> W, Index r, Index a, Array<std::uint8_t, 1> triangular, Array<double, 1> largest) {
  const std::size_t n = r.shape(0);
  std::vector<std::int64_t> w0(n + 1);
  std::vector<double> work(n);
  if (a.shape(0) != n || triangular.shape(0) != n || largest.shape(0) != n) throw std::invalid_argument("inspect: sizes differ");
  for (std::size_t i = 0; i < n; ++i) {
    if (r.data()[i] < 0 || a.data()[i] < 0) throw std::invalid_argument("inspect: a negative size");
    work[i] = double(r.data()[i]) * double(a.data()[i]);
    w0[i + 1] = w0[i] + r.data()[i] * a.data()[i];
  }
  if (w0[n] != std::int64_t(W.shape(0))) throw std::invalid_argument("inspect: sizes differ");
  nb::gil_scoped_release release;
  for_each_block(work, [&](std::int64_t i, const Team&) {
    thread_local std::vector<double> squares;
    const std::int64_t rows = r.data()[i], cols = a.data()[i];
    const double* from = W.data() + w0[i];
    bool zeros = rows == cols;
    for (std::int64_t p = 1; p < rows && zeros; ++p)
      zeros = std::all_of(from + p * cols, from + p * cols + p, [](double w) { return w == 0; });
    squares.assign(cols, 0.0);
    for (std::int64_t p = 0; p < rows; ++p)
      for (std::int64_t q = zeros ? p : 0; q < cols; ++q) squares[q] += from[p * cols + q] * from[p * cols + q];
    double most = 0;
    for (const double each : squares) most = !(each <= most) ? each : most;  // NaN stays
    triangular.data()[i] = zeros;
    largest.data()[i] = most;
  });
}

template <class S>
void define(nb::module_& m) {
  m.def("solve_forward", &solve_forward<S>, nb::arg("B").noconvert(), nb::arg("starts").noconvert(), nb::arg("order").noconvert(),
        nb::arg("s").noconvert(), nb::arg("r").noconvert(), nb::arg("delayed").noconvert(), nb::arg("T").noconvert(),
        nb::arg("W").noconvert(), nb::arg("K").noconvert(), nb::arg("V").noconvert(), nb::arg("sign").noconvert(),
        nb::arg("triangular").noconvert(), nb::arg("kept").noconvert(), nb::arg("z").noconvert());
  m.def("solve_backward", &solve_backward<S>, nb::arg("kept").noconvert(), nb::arg("z").noconvert(), nb::arg("starts").noconvert(),
        nb::arg("order").noconvert(), nb::arg("s").noconvert(), nb::arg("r").noconvert(), nb::arg("delayed").noconvert(), nb::arg("T").noconvert(),
        nb::arg("W").noconvert(), nb::arg("K").noconvert(), nb::arg("V").noconvert(), nb::arg("sign").noconvert(),
        nb::arg("triangular").noconvert(), nb::arg("X").noconvert());
}

}  // namespace

void bind_solve(nb::module_& m) {
  define<float>(m);
  define<double>(m);
  m.def("inspect", &inspect, nb::arg("W").noconvert(), nb::arg("r").noconvert(), nb::arg("a").noconvert(),
        nb::arg("triangular").noconvert(), nb::arg("largest").noconvert());
}
