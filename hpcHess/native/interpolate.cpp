// Row interpolative decompositions of a ragged batch by column-pivoted QR, stopped at a tolerance.
//
// A row-major piece R_i [m, k] is S_i = R_iᵀ [k, m] in Fortran order. Small pieces: greedy pivots (pivoted.hpp) until the tail, known
// exactly at every rank, is small enough. Large ones in blocks: pivots are chosen on a sketch Y = Ω S of a few rows (Duersch & Gu 2017;
// Martinsson, Quintana-Ortí, Heavner & van de Geijn 2017), ordered by greedy pivoting among themselves, and the rest of S follows by gemm:
//     H₁ … H_b = I − V L⁻ᵀ Vᵀ,  L = strictly lower part of VᵀV + diag(1/τ)          (Joffrain and others 2006)
//     Y ← Y₂ − Y₁ R₁₁⁻¹ R₁₂                                                          a sketch of what remains
// The tail at each rank within a block is walked back from the tail behind it: tail²(r − 1) = tail²(r) + Σ_{c ≥ r − 1} R[r − 1, c]².
#include <omp.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "arrays.hpp"
#include "lapack.hpp"
#include "pivoted.hpp"
#include "tasks.hpp"

namespace {

using pivoted::odd_lines;
using pivoted::whole_lines;

constexpr int kPanel = 32;          // pivots of a block
constexpr int kSketch = 40;         // rows of the sketch
constexpr int kDirect = 160;        // pieces with no more columns (or samples) are factored greedily
constexpr std::int64_t kChunk = 256;  // columns of one gemm; fixed, so that results do not depend on the number of threads

template <class T>
constexpr double kNothing = sizeof(T) == 4 ? 0x1p-200 : 0.0;  // a tail² (entries are below 1) with pivots whose inverses would overflow: nothing

// what one thread keeps from piece to piece
template <class T>
struct Room {
  std::vector<T> A, V, U, X, Y, panel, squares, top, G, R11;
  std::vector<double> norms, sums;
  std::vector<int> chosen, pivots;
  std::vector<T> tau;
};

template <class T>
struct Piece {
  std::unique_ptr<T[]> interpolation;  // T [r, m − r] row-major
  std::int64_t rank = 0, entries = 0;
  double residual = 0;
};

template <class T>
void at_least(std::vector<T>& room, std::size_t n) {
  if (room.size() < n) room.resize(n);
}

template <class T>
class PivotedQR {
 public:
  PivotedQR(const T* piece, int m, int k, double tolerance, int limit, double samples, const T* omega, std::int64_t* order, Room<T>& room)
      : piece_(piece), m_(m), k_(k), limit_(limit), tolerance_(tolerance), n_(samples), omega_(omega), order_(order), room_(room) {}

  Piece<T> interpolate() {
    const T most = pivoted::largest(piece_, std::int64_t(m_) * k_);
    std::iota(order_, order_ + m_, 0);
    if (!std::isfinite(most)) {
      found_.residual = std::numeric_limits<double>::quiet_NaN();
    } else if (most == 0) {
      found_.residual = corrected(0, 0);
    } else {
      int exponent = 0;
      std::frexp(most, &exponent);
      // a power of two whose inverse is one: squares of small float32 numbers would underflow
      scale_ = std::ldexp(T(1), std::max(exponent, std::numeric_limits<T>::min_exponent) - 1);
      inverse_ = 1 / scale_;
      if (std::min(m_, k_) <= kDirect || limit_ <= kPanel / 2) {
        direct();
      } else {
        blocked();
      }
    }
    return std::move(found_);
  }

 private:
  // (tail/√k)·n/(n − r); n may be infinite
  double corrected(double tail_squared, int r) const {
    if (r == m_) return 0;
    if (r >= n_) return std::numeric_limits<double>::infinity();
    return tail_squared <= kNothing<T> ? 0 : double(scale_) * std::sqrt(tail_squared / k_) / (1 - r / n_);
  }

  void direct() {
    const std::int64_t ld = odd_lines<T>(m_);
    at_least(room_.A, k_ * ld);
    at_least(room_.V, std::size_t(limit_) * k_);
    at_least(room_.squares, ld);
    room_.tau.resize(limit_);
    room_.pivots.resize(limit_);
    T* A = room_.A.data();
    pivoted::transpose(piece_, k_, m_, k_, A, ld);
    for (int i = 0; i < k_; ++i) {
      for (int c = 0; c < m_; ++c) A[i * ld + c] *= inverse_;
      std::fill(A + i * ld + m_, A + (i + 1) * ld, T(0));
    }
    const auto enough = [&](int j, double tail) {
      found_.residual = corrected(tail, j);
      return found_.residual <= tolerance_;
    };
    const int* pivots = room_.pivots.data();
    const int r = pivoted::factor(A, ld, k_, m_, limit_, room_.pivots.data(), room_.tau.data(), room_.V.data(), k_, room_.squares.data(), enough);
    std::vector<char> chosen(m_, 0);
    for (int q = 0; q < r; ++q) {
      order_[q] = pivots[q];
      chosen[pivots[q]] = 1;
    }
    for (int c = 0, at = r; c < m_; ++c)
      if (!chosen[c]) order_[at++] = c;
    T* found = reserve(r);
    room_.R11.resize(std::size_t(r) * r);
    for (int q = 0; q < r; ++q) {
      for (int j = 0; j < r; ++j) room_.R11[std::size_t(j) * r + q] = A[q * ld + pivots[j]];
      for (int c = 0; c < m_ - r; ++c) found[std::size_t(q) * (m_ - r) + c] = A[q * ld + order_[r + c]];
    }
    if (found_.entries) lapack::trsm('R', 'U', 'T', m_ - r, r, room_.R11.data(), r, found, m_ - r);
  }

  T* reserve(int r) {
    found_.rank = r;
    found_.entries = std::int64_t(r) * (m_ - r);
    found_.interpolation.reset(new T[found_.entries]);
    return found_.interpolation.get();
  }

  // ---- blocks ----

  void blocked() {
    ld_ = odd_lines<T>(k_);
    ldy_ = odd_lines<T>(m_ + pivoted::lanes<T>);
    at_least(room_.A, m_ * ld_);
    at_least(room_.X, std::size_t(m_) * kPanel);
    at_least(room_.V, std::size_t(kPanel) * ld_);
    at_least(room_.U, std::size_t(kPanel) * ld_);
    at_least(room_.panel, std::size_t(kPanel) * k_);
    at_least(room_.squares, ldy_);
    at_least(room_.norms, m_);
    room_.tau.resize(kPanel);
    room_.Y.assign(kSketch * ldy_, T(0));
    for_each_chunk(0, 1, [&](std::int64_t c, std::int64_t end) {
      for (; c < end; ++c) {
        for (int i = 0; i < k_; ++i) column(c)[i] = piece_[c * k_ + i] * inverse_;
        room_.norms[c] = pivoted::sum_of_squares(column(c), k_);
      }
    });
    double tail = remaining(0);
    found_.residual = corrected(tail, 0);
    int r = 0;
    for (bool fresh = false; found_.residual > tolerance_ && r < limit_;) {
      const int first = r, wide = choose(first, fresh), done = first + factor_panel(first, wide);
      const double after = rows(first, done, wide, tail);
      constexpr double trusted = sizeof(T) == 4 ? 5e-3 : 6e-6;  // ε^⅓: what a difference of squares still knows of the tail
      bool updated = after < trusted * tail;
      if (updated) update(first, done, wide);
      tail = updated ? remaining(done) : after;
      r = walk_back(first, done, tail);
      if (found_.residual <= tolerance_ || done == limit_) break;
      if (!updated) update(first, done, wide);
      tail = remaining(done);
      found_.residual = corrected(tail, done);
      fresh = downdate(first, done, wide);
    }
    solve(r);
  }

  T* column(std::int64_t c) { return room_.A.data() + c * ld_; }

  template <class Run>
  void for_each_chunk(std::int64_t from, double work_a_column, const Run& run) {
    const std::int64_t chunks = (m_ - from + kChunk - 1) / kChunk;
    for_each_task(chunks, double(m_ - from) * k_ * work_a_column, [&](std::int64_t i) {
      run(from + i * kChunk, std::min<std::int64_t>(m_, from + (i + 1) * kChunk));
    });
  }

  double remaining(int r) const { return std::accumulate(room_.norms.begin() + r, room_.norms.begin() + m_, 0.0); }

  // brings the pivots of a block to columns first, first + 1, …; returns how many
  int choose(int first, bool fresh) {
    T* Y = room_.Y.data() + first;
    if (!fresh)
      for_each_chunk(first, kSketch, [&](std::int64_t c, std::int64_t end) {
        lapack::gemm('T', 'T', int(end - c), kSketch, k_ - first, T(1), column(c) + first, int(ld_), omega_ + first * kSketch, kSketch, T(0),
                     room_.Y.data() + c, int(ldy_));
      });
    std::vector<int>& chosen = room_.chosen;
    chosen.resize(kPanel);
    T V[kSketch * kPanel];
    double whole = 0;
    const double nothing = std::pow(64 * double(std::numeric_limits<T>::epsilon()), 2);
    const auto spent = [&](int j, double tail) {
      if (j == 0) whole = tail;
      return j > 0 && tail <= nothing * whole;
    };
    chosen.resize(pivoted::factor(Y, ldy_, kSketch, m_ - first, std::min(kPanel, limit_ - first), chosen.data(), room_.tau.data(), V, kSketch,
                                  room_.squares.data(), spent));
    const int longest = int(std::max_element(room_.norms.begin() + first, room_.norms.begin() + m_) - room_.norms.begin()) - first;
    if (std::find(chosen.begin(), chosen.end(), longest) == chosen.end()) chosen.back() = longest;
    for (int q = 0; q < int(chosen.size()); ++q) {
      swap(first + q, first + chosen[q]);
      std::replace(chosen.begin() + q + 1, chosen.end(), q, chosen[q]);
    }
    return int(chosen.size());
  }

  void swap(int a, int b) {
    if (a == b) return;
    std::swap_ranges(column(a), column(a) + k_, column(b));
    std::swap(order_[a], order_[b]);
    std::swap(room_.norms[a], room_.norms[b]);
    for (int i = 0; i < kSketch; ++i) std::swap(room_.Y[i * ldy_ + a], room_.Y[i * ldy_ + b]);
  }

  // Householder QR of columns first … first + wide − 1, pivoted among themselves; returns the number of reflectors
  int factor_panel(int first, int wide) {
    const int rows = k_ - first;
    const std::int64_t ldp = whole_lines<T>(wide);
    T* panel = room_.panel.data();
    std::fill(panel, panel + rows * ldp, T(0));
    pivoted::transpose(column(first) + first, ld_, wide, rows, panel, ldp);
    int pivots[kPanel];
    bool taken[kPanel] = {};
    const int steps = pivoted::factor(panel, ldp, rows, wide, std::min(wide, rows), pivots, room_.tau.data(), room_.V.data(), ld_,
                                      room_.squares.data(), [](int j, double tail) { return j > 0 && tail == 0; });
    for (int q = 0; q < steps; ++q) taken[pivots[q]] = true;
    for (int q = 0, at = steps; q < wide; ++q)
      if (!taken[q]) pivots[at++] = q;
    // the columns in their new order: rows of R above, then the panel's
    at_least(room_.top, std::size_t(kPanel) * ld_);
    std::int64_t ids[kPanel];
    T sketch[kPanel];
    for (int q = 0; q < wide; ++q) {
      T* to = room_.top.data() + q * ld_;
      std::copy_n(column(first + pivots[q]), first, to);
      for (int i = 0; i < rows; ++i) to[first + i] = i > q && q < steps ? T(0) : panel[i * ldp + pivots[q]];
      ids[q] = order_[first + pivots[q]];
    }
    for (int q = 0; q < wide; ++q) {
      std::copy_n(room_.top.data() + q * ld_, k_, column(first + q));
      order_[first + q] = ids[q];
      room_.norms[first + q] = 0;  // what remains of a pivot, and of a column that the pivots span
    }
    for (int i = 0; i < kSketch; ++i) {
      T* y = room_.Y.data() + i * ldy_ + first;
      for (int q = 0; q < wide; ++q) sketch[q] = y[pivots[q]];
      std::copy_n(sketch, wide, y);
    }
    return steps;
  }

  // rows first … done − 1 of R; their squares in `sums`; returns tail² behind them, by difference
  double rows(int first, int done, int wide, double tail) {
    const int b = done - first, below = k_ - first;
    T* V = room_.V.data();
    T* U = room_.U.data();
    T L[kPanel * kPanel];
    lapack::gemm('T', 'N', b, b, below, T(1), V, int(ld_), V, int(ld_), T(0), L, kPanel);
    for (int q = 0; q < b; ++q) L[q * kPanel + q] = room_.tau[q] ? 1 / room_.tau[q] : T(1);
    std::copy_n(V, (b - 1) * ld_ + below, U);
    lapack::trsm('R', 'L', 'T', below, b, L, kPanel, U, int(ld_));
    const std::int64_t from = first + wide, chunks = (m_ - from + kChunk - 1) / kChunk;
    room_.sums.assign((chunks + 1) * kPanel, 0.0);
    for_each_chunk(from, 2 * b, [&](std::int64_t c, std::int64_t end) {
      T* X = room_.X.data() + c * kPanel;
      lapack::gemm('T', 'N', b, int(end - c), below, T(1), U, int(ld_), column(c) + first, int(ld_), T(0), X, kPanel);
      lapack::gemm('N', 'N', b, int(end - c), b, T(-1), V, int(ld_), X, kPanel, T(1), column(c) + first, int(ld_));
      add_row_squares(first, b, c, end, room_.sums.data() + ((c - from) / kChunk + 1) * kPanel);
    });
    add_row_squares(first, b, first, from, room_.sums.data());
    for (std::int64_t i = 1; i <= chunks; ++i)
      for (int q = 0; q < b; ++q) room_.sums[q] += room_.sums[i * kPanel + q];
    return std::max(0.0, tail - std::accumulate(room_.sums.begin(), room_.sums.begin() + b, 0.0));
  }

  void add_row_squares(int first, int b, std::int64_t c, std::int64_t end, double* sums) {
    for (; c < end; ++c)
      for (int q = 0; q < b; ++q) sums[q] += double(column(c)[first + q]) * double(column(c)[first + q]);
  }

  // the remainders of the columns behind the block, and their norms
  void update(int first, int done, int wide) {
    const int b = done - first, below = k_ - done;
    for_each_chunk(first + wide, 2 * b, [&](std::int64_t c, std::int64_t end) {
      if (below)
        lapack::gemm('N', 'N', below, int(end - c), b, T(-1), room_.V.data() + b, int(ld_), room_.X.data() + c * kPanel, kPanel, T(1),
                     column(c) + done, int(ld_));
      for (; c < end; ++c) room_.norms[c] = pivoted::sum_of_squares(column(c) + done, below);
    });
  }

  // the smallest sufficient rank in (first, done], else done; tail² at `done` given
  int walk_back(int first, int done, double tail) {
    int r = done;
    found_.residual = corrected(tail, done);
    for (int q = done - 1; q > first; --q) {
      tail += room_.sums[q - first];
      const double residual = corrected(tail, q);
      if (residual <= tolerance_) {
        r = q;
        found_.residual = residual;
      }
    }
    return r;
  }

  // the sketch of what remains; false where rounding has taken it over
  bool downdate(int first, int done, int wide) {
    const int b = done - first, from = first + wide;
    const T* R11 = column(first) + first;
    if (b < wide || std::abs(R11[(b - 1) * ld_ + b - 1]) < std::sqrt(std::numeric_limits<T>::epsilon()) * std::abs(R11[0])) return false;
    T G[kSketch * kPanel];
    for (int q = 0; q < b; ++q)
      for (int i = 0; i < kSketch; ++i) G[q * kSketch + i] = room_.Y[i * ldy_ + first + q];
    lapack::trsm('R', 'U', 'N', kSketch, b, R11, int(ld_), G, kSketch);
    for_each_chunk(from, kSketch, [&](std::int64_t c, std::int64_t end) {
      lapack::gemm('T', 'T', int(end - c), kSketch, b, T(-1), column(c) + first, int(ld_), G, kSketch, T(1), room_.Y.data() + c, int(ldy_));
    });
    return true;
  }

  // T = R₁₁⁻¹ R₁₂, the redundant columns in increasing order
  void solve(int r) {
    std::vector<int> at(m_ - r);
    std::iota(at.begin(), at.end(), r);
    std::sort(at.begin(), at.end(), [&](int a, int b) { return order_[a] < order_[b]; });
    T* found = reserve(r);
    for (int c = 0; c < m_ - r; ++c) pivoted::transpose(column(at[c]), ld_, 1, r, found + c, m_ - r);
    std::sort(order_ + r, order_ + m_);
    if (found_.entries) lapack::trsm('R', 'U', 'T', m_ - r, r, room_.A.data(), int(ld_), found, m_ - r);
  }

  const T* piece_;
  const int m_, k_, limit_;
  const double tolerance_, n_;
  const T* omega_;
  std::int64_t* order_;
  Room<T>& room_;
  Piece<T> found_;
  T scale_ = 1, inverse_ = 1;
  std::int64_t ld_ = 0, ldy_ = 0;
};

// (ranks [b], order [Σ m], T data, residual [b]); a residual of NaN marks a piece that holds NaN or Inf; omega [k, 40]
template <class T>
nb::tuple interpolate(Array<const T, 2> R, Index starts, Array<const double, 1> tolerance, std::int64_t max_rank,
                      Array<const double, 1> samples, Array<const T, 2> omega) {
  const std::int64_t b = std::int64_t(starts.shape(0)) - 1, k = R.shape(1);
  const std::int64_t* s = starts.data();
  if (b < 0 || std::int64_t(tolerance.shape(0)) != b || std::int64_t(samples.shape(0)) != b)
    throw std::invalid_argument("interpolate: starts, tolerance and samples do not match");
  if (std::int64_t(omega.shape(0)) < k || omega.shape(1) != kSketch)
    throw std::invalid_argument("interpolate: omega must have a row of " + std::to_string(kSketch) + " for every sample");
  for (std::int64_t i = 0; i < b; ++i)
    if (s[i] < 0 || s[i + 1] < s[i] || s[i + 1] > std::int64_t(R.shape(0)))
      throw std::invalid_argument("interpolate: piece " + std::to_string(i) + " lies outside R");
  std::vector<std::int64_t> ranks(b), order(b ? s[b] - s[0] : 0);
  std::vector<double> residual(b);
  std::vector<std::int64_t> at(b + 1, 0);
  std::unique_ptr<T[]> flat;
  {
    nb::gil_scoped_release release;
    std::vector<Piece<T>> pieces(b);
    const int threads = omp_get_max_threads();
    std::vector<Room<T>> rooms(threads);
    const auto run = [&](std::int64_t i) {
      const int m = static_cast<int>(s[i + 1] - s[i]), most = static_cast<int>(std::min({std::int64_t(m), k, max_rank}));
      const int limit = static_cast<int>(std::min(double(most), samples.data()[i]));
      pieces[i] = PivotedQR<T>(R.data() + s[i] * k, m, static_cast<int>(k), tolerance.data()[i], limit, samples.data()[i], omega.data(),
                               order.data() + (s[i] - s[0]), rooms[omp_get_thread_num()]).interpolate();
    };
    if (b < threads) {
      SerialBlas serial;  // threads inside of the pieces
      for (std::int64_t i = 0; i < b; ++i) run(i);
    } else {
      for_each_task(b, b ? double(s[b] - s[0]) * double(k) * double(std::min(k, max_rank)) : 0, run);
    }
    for (std::int64_t i = 0; i < b; ++i) {
      ranks[i] = pieces[i].rank;
      residual[i] = pieces[i].residual;
      at[i + 1] = at[i] + pieces[i].entries;
    }
    flat.reset(new T[at[b]]);
    for_each_task(b, double(at[b]), [&](std::int64_t i) {
      std::copy_n(pieces[i].interpolation.get(), pieces[i].entries, flat.get() + at[i]);
      pieces[i].interpolation.reset();
    });
  }
  return nb::make_tuple(owned(std::move(ranks)), owned(std::move(order)), owned(std::move(flat), at[b]), owned(std::move(residual)));
}

template <class T>
void define(nb::module_& m) {
  m.def("interpolate", &interpolate<T>, nb::arg("R").noconvert(), nb::arg("starts").noconvert(), nb::arg("tolerance").noconvert(),
        nb::arg("max_rank"), nb::arg("samples").noconvert(), nb::arg("omega").noconvert());
}

}  // namespace

void bind_interpolate(nb::module_& m) {
  define<float>(m);
  define<double>(m);
}
