// Row interpolative decompositions of a ragged batch by column-pivoted QR, stopped at a tolerance.
//
// A row-major piece R_i [m, k] is S_i = R_iᵀ [k, m] in Fortran order. xGEQP3 has no early stop: its panel routine xLAQPS
// (Quintana-Ortí, Sun & Bischof 1998) is driven from here, and after each panel
//     tail²(r − 1) = tail²(r) + Σ_{c ≥ r − 1} R[r − 1, c]²
// is walked back from the trailing block's fresh norm, so the smallest sufficient rank is found exactly.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "arrays.hpp"
#include "lapack.hpp"
#include "tasks.hpp"

namespace {

constexpr int kPanel = 32;

template <class T>
struct Piece {
  std::vector<std::int64_t> order;
  std::vector<T> interpolation;  // T [r, m − r] row-major
  std::int64_t rank = 0;
  double residual = 0;
};

// (tail/√k)·n/(n − r); n may be infinite
double corrected(double tail_squared, int r, int m, int k, double n) {
  if (r == m) return 0;
  if (r >= n) return std::numeric_limits<double>::infinity();
  return tail_squared == 0 ? 0 : std::sqrt(tail_squared / k) / (1 - r / n);
}

template <class T>
class PivotedQR {
 public:
  PivotedQR(const T* piece, int m, int k, double samples) : m_(m), k_(k), n_(samples), A_(piece, piece + std::size_t(m) * k), pivots_(m), vn1_(m), vn2_(m) {
    std::iota(pivots_.begin(), pivots_.end(), 0);
  }

  Piece<T> interpolate(double tolerance, int limit) {
    Piece<T> found;
    double tail = refresh_norms(0);
    if (!std::isfinite(tail)) {
      found.residual = std::numeric_limits<double>::quiet_NaN();
      return found;
    }
    int r = 0;
    found.residual = corrected(tail, 0, m_, k_, n_);
    for (int done = 0; found.residual > tolerance && done < limit;) {
      const int first = done;
      done += factor_panel(done, std::min(kPanel, limit - done));
      tail = refresh_norms(done);
      r = done;
      found.residual = corrected(tail, r, m_, k_, n_);
      for (int q = done - 1; q > first; --q) {
        tail += row_square(q);
        const double residual = corrected(tail, q, m_, k_, n_);
        if (residual <= tolerance) {
          r = q;
          found.residual = residual;
        }
      }
    }
    found.rank = r;
    solve(r, found);
    return found;
  }

 private:
  T* column(int c) { return A_.data() + std::size_t(c) * k_; }

  // norms of what remains of the columns ≥ r below row r, in double; returns the sum of their squares
  double refresh_norms(int r) {
    double total = 0;
    for (int c = r; c < m_; ++c) {
      double partial[4] = {0, 0, 0, 0};
      const T* a = column(c);
      int i = r;
      for (; i + 4 <= k_; i += 4)
        for (int l = 0; l < 4; ++l) partial[l] += double(a[i + l]) * double(a[i + l]);
      for (; i < k_; ++i) partial[0] += double(a[i]) * double(a[i]);
      const double square = (partial[0] + partial[1]) + (partial[2] + partial[3]);
      vn1_[c] = vn2_[c] = static_cast<T>(std::sqrt(square));
      total += square;
    }
    return total;
  }

  int factor_panel(int j, int nb) {
    const int n = m_ - j;
    tau_.resize(nb);
    auxv_.resize(nb);
    F_.resize(std::size_t(n) * nb);
    return lapack::laqps(k_, n, j, nb, column(j), k_, pivots_.data() + j, tau_.data(), vn1_.data() + j, vn2_.data() + j,
                         auxv_.data(), F_.data(), n);
  }

  double row_square(int q) {
    double sum = 0;
    for (int c = q; c < m_; ++c) sum += double(column(c)[q]) * double(column(c)[q]);
    return sum;
  }

  // T = R₁₁⁻¹ R₁₂, the redundant columns in increasing order
  void solve(int r, Piece<T>& found) {
    const int redundant = m_ - r;
    std::vector<int> at(redundant);
    std::iota(at.begin(), at.end(), r);
    std::sort(at.begin(), at.end(), [&](int a, int b) { return pivots_[a] < pivots_[b]; });
    found.order.assign(pivots_.begin(), pivots_.begin() + r);
    for (const int c : at) found.order.push_back(pivots_[c]);
    found.interpolation.resize(std::size_t(r) * redundant);
    for (int q = 0; q < r; ++q)
      for (int c = 0; c < redundant; ++c) found.interpolation[std::size_t(q) * redundant + c] = column(at[c])[q];
    if (r && redundant) lapack::trsm('R', 'U', 'T', redundant, r, A_.data(), k_, found.interpolation.data(), redundant);
  }

  int m_, k_;
  double n_;
  std::vector<T> A_;
  std::vector<int> pivots_;
  std::vector<T> vn1_, vn2_, tau_, auxv_, F_;
};

// (ranks [b], order [Σ m], T data, residual [b]); a residual of NaN marks a piece that holds NaN or Inf
template <class T>
nb::tuple interpolate(Array<const T, 2> R, Index starts, Array<const double, 1> tolerance, std::int64_t max_rank,
                      Array<const double, 1> samples) {
  const std::int64_t b = std::int64_t(starts.shape(0)) - 1, k = R.shape(1);
  const std::int64_t* s = starts.data();
  if (b < 0 || std::int64_t(tolerance.shape(0)) != b || std::int64_t(samples.shape(0)) != b)
    throw std::invalid_argument("interpolate: starts, tolerance and samples do not match");
  for (std::int64_t i = 0; i < b; ++i)
    if (s[i] < 0 || s[i + 1] < s[i] || s[i + 1] > std::int64_t(R.shape(0)))
      throw std::invalid_argument("interpolate: piece " + std::to_string(i) + " lies outside R");
  std::vector<std::int64_t> ranks(b), order;
  std::vector<double> residual(b);
  std::vector<T> flat;
  {
    nb::gil_scoped_release release;
    std::vector<Piece<T>> pieces(b);
    const double work = b ? double(s[b] - s[0]) * double(k) * double(std::min(k, max_rank)) : 0;
    for_each_task(b, work, [&](std::int64_t i) {
      const int m = static_cast<int>(s[i + 1] - s[i]), most = static_cast<int>(std::min({std::int64_t(m), k, max_rank}));
      const int limit = static_cast<int>(std::min(double(most), samples.data()[i]));
      pieces[i] = PivotedQR<T>(R.data() + s[i] * k, m, static_cast<int>(k), samples.data()[i]).interpolate(tolerance.data()[i], limit);
    });
    std::size_t entries = 0;
    for (const auto& piece : pieces) entries += piece.interpolation.size();
    flat.reserve(entries);
    for (std::int64_t i = 0; i < b; ++i) {
      ranks[i] = pieces[i].rank;
      residual[i] = pieces[i].residual;
      order.insert(order.end(), pieces[i].order.begin(), pieces[i].order.end());
      flat.insert(flat.end(), pieces[i].interpolation.begin(), pieces[i].interpolation.end());
      pieces[i] = {};
    }
  }
  return nb::make_tuple(owned(std::move(ranks)), owned(std::move(order)), owned(std::move(flat)), owned(std::move(residual)));
}

template <class T>
void define(nb::module_& m) {
  m.def("interpolate", &interpolate<T>, nb::arg("R").noconvert(), nb::arg("starts").noconvert(),
        nb::arg("tolerance").noconvert(), nb::arg("max_rank"), nb::arg("samples").noconvert());
}

}  // namespace

void bind_interpolate(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
