// What a sweep through a network does besides products of matrices that BLAS returns in fresh memory: C += A B, strided transpositions, and
// scaling by the derivatives of the activations, on all threads.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>

#include "arrays.hpp"
#include "lapack.hpp"
#include "tasks.hpp"

namespace {

template <class T, int ndim>
using Strided = nb::ndarray<T, nb::ndim<ndim>, nb::device::cpu>;

constexpr int kTile = 32;                      // rows and columns of a transposed tile
constexpr std::int64_t kPass = std::int64_t(1) << 15;  // numbers of one task of an elementwise pass

int small(std::int64_t n) {
  if (n > std::numeric_limits<int>::max()) throw std::invalid_argument("sweep: an extent is beyond 32 bits");
  return static_cast<int>(n);
}

// a matrix whose rows (or columns, `transposed`) are contiguous, for Fortran's gemm: (leading dimension, transposed)
template <class A>
std::pair<int, bool> leading(const A& a) {
  const std::int64_t rows = a.shape(0), cols = a.shape(1), r = a.stride(0), c = a.stride(1);
  if ((c == 1 || cols <= 1) && (r >= cols || rows <= 1)) return {small(rows <= 1 ? std::max<std::int64_t>(cols, 1) : r), false};
  if ((r == 1 || rows <= 1) && (c >= rows || cols <= 1)) return {small(cols <= 1 ? std::max<std::int64_t>(rows, 1) : c), true};
  throw std::invalid_argument("matmul: neither rows nor columns are contiguous");
}

// C [m, n] += A [m, k] B [k, n]: in Fortran order Cᵀ += Bᵀ Aᵀ
template <class T>
void add_product(Strided<const T, 2> A, Strided<const T, 2> B, Strided<T, 2> C) {
  const int m = small(C.shape(0)), n = small(C.shape(1)), k = small(A.shape(1));
  if (m != std::int64_t(A.shape(0)) || k != std::int64_t(B.shape(0)) || n != std::int64_t(B.shape(1)))
    throw std::invalid_argument("matmul: the shapes do not match");
  const auto [lda, ta] = leading(A);
  const auto [ldb, tb] = leading(B);
  const auto [ldc, tc] = leading(C);
  if (tc && n > 1) throw std::invalid_argument("matmul: the result's rows are not contiguous");
  if (!m || !n || !k) return;
  nb::gil_scoped_release release;
  lapack::gemm(tb ? 'T' : 'N', ta ? 'T' : 'N', n, m, k, T(1), B.data(), ldb, A.data(), lda, T(1), C.data(), std::max(n, ldc));
}

// out[o, j, i] = scale · source[o, i, j]
template <class T>
void swap_axes(Strided<const T, 3> source, Strided<T, 3> out, double scale) {
  const std::int64_t n = source.shape(0), rows = source.shape(1), cols = source.shape(2);
  if (std::int64_t(out.shape(0)) != n || std::int64_t(out.shape(1)) != cols || std::int64_t(out.shape(2)) != rows)
    throw std::invalid_argument("swap_axes: the shapes do not match");
  const std::int64_t s0 = source.stride(0), s1 = source.stride(1), s2 = source.stride(2), t0 = out.stride(0), t1 = out.stride(1), t2 = out.stride(2);
  const T *from = source.data(), factor = static_cast<T>(scale);
  T* to = out.data();
  if (!n || !rows || !cols) return;
  nb::gil_scoped_release release;
  const std::int64_t strips = (rows + kTile - 1) / kTile;  // of one matrix
  for_each_task(n * strips, double(n) * double(rows) * double(cols), [&](std::int64_t task) {
    const std::int64_t o = task / strips, i0 = (task % strips) * kTile, i1 = std::min(rows, i0 + kTile);
    for (std::int64_t j0 = 0; j0 < cols; j0 += kTile)
      for (std::int64_t j = j0; j < std::min(cols, j0 + kTile); ++j)
        for (std::int64_t i = i0; i < i1; ++i) to[o * t0 + j * t1 + i * t2] = factor * from[o * s0 + i * s1 + j * s2];
  });
}

// out [d, k, m] = U [d, k, m] ∘ s [d, m]; out may be U
template <class T>
void scale_samples(Strided<const T, 3> U, Strided<const T, 2> s, Strided<T, 3> out) {
  const std::int64_t d = U.shape(0), k = U.shape(1), m = U.shape(2);
  if (std::int64_t(s.shape(0)) != d || std::int64_t(s.shape(1)) != m) throw std::invalid_argument("scale_samples: the shapes do not match");
  if (std::int64_t(out.shape(0)) != d || std::int64_t(out.shape(1)) != k || std::int64_t(out.shape(2)) != m)
    throw std::invalid_argument("scale_samples: the shapes do not match");
  if (m > 1 && (U.stride(2) != 1 || s.stride(1) != 1 || out.stride(2) != 1)) throw std::invalid_argument("scale_samples: the samples are not contiguous");
  if (!d || !k || !m) return;
  const std::int64_t u0 = U.stride(0), u1 = U.stride(1), o0 = out.stride(0), o1 = out.stride(1), s0 = s.stride(0);
  const std::int64_t step = std::max<std::int64_t>(1, kPass / m), pieces = (k + step - 1) / step;
  T* to = out.data();
  const T *from = U.data(), *by = s.data();
  nb::gil_scoped_release release;
  for_each_task(d * pieces, double(d) * double(k) * double(m), [&](std::int64_t task) {
    const std::int64_t p = task / pieces, first = (task % pieces) * step;
    const T* slope = by + p * s0;
    for (std::int64_t j = first; j < std::min(k, first + step); ++j) {
      const T* row = from + p * u0 + j * u1;
      T* result = to + p * o0 + j * o1;
      for (std::int64_t i = 0; i < m; ++i) result[i] = row[i] * slope[i];
    }
  });
}

// U [d, k, m] = p ∘ (U − Σ_e p_e U_e), p [d, m], U less its row of the sample's largest p before: nothing cancels then
template <class T>
void softmax_hessian(Strided<T, 3> U, Strided<const T, 2> p) {
  const std::int64_t d = U.shape(0), k = U.shape(1), m = U.shape(2);
  if (std::int64_t(p.shape(0)) != d || std::int64_t(p.shape(1)) != m) throw std::invalid_argument("softmax_hessian: the shapes do not match");
  if (m > 1 && (U.stride(2) != 1 || p.stride(1) != 1)) throw std::invalid_argument("softmax_hessian: the samples are not contiguous");
  if (!d || !k || !m) return;
  const std::int64_t u0 = U.stride(0), u1 = U.stride(1), p0 = p.stride(0);
  T* u = U.data();
  const T* q = p.data();
  nb::gil_scoped_release release;
  std::vector<std::int64_t> top(m, 0);
  for (std::int64_t e = 1; e < d; ++e)
    for (std::int64_t i = 0; i < m; ++i)
      if (q[e * p0 + i] > q[top[i] * p0 + i]) top[i] = e;
  for_each_task(k, 2.0 * double(d) * double(k) * double(m), [&](std::int64_t j) {
    thread_local std::vector<T> likeliest, mean;
    likeliest.resize(m);
    mean.assign(m, T(0));
    T *row = u + j * u1, *first = likeliest.data(), *sum = mean.data();
    for (std::int64_t i = 0; i < m; ++i) first[i] = row[top[i] * u0 + i];
    for (std::int64_t e = 0; e < d; ++e)
      for (std::int64_t i = 0; i < m; ++i) sum[i] += q[e * p0 + i] * (row[e * u0 + i] - first[i]);
    for (std::int64_t e = 0; e < d; ++e)
      for (std::int64_t i = 0; i < m; ++i) row[e * u0 + i] = q[e * p0 + i] * ((row[e * u0 + i] - first[i]) - sum[i]);
  });
}

template <class T>
void define(nb::module_& m) {
  m.def("add_product", &add_product<T>, nb::arg("A").noconvert(), nb::arg("B").noconvert(), nb::arg("C").noconvert());
  m.def("swap_axes", &swap_axes<T>, nb::arg("source").noconvert(), nb::arg("out").noconvert(), nb::arg("scale"));
  m.def("scale_samples", &scale_samples<T>, nb::arg("U").noconvert(), nb::arg("s").noconvert(), nb::arg("out").noconvert());
  m.def("softmax_hessian", &softmax_hessian<T>, nb::arg("U").noconvert(), nb::arg("p").noconvert());
}

}  // namespace

void bind_sweep(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
