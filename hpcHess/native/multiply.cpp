// Y[y_starts[i] :] += alpha op(A_i) X[x_starts[i] :] over a ragged batch, row-major.
#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "arrays.hpp"
#include "lapack.hpp"
#include "narrow.hpp"
#include "tasks.hpp"

namespace {

constexpr std::int64_t kChunk = 256;            // output rows of one task: fixed, so that results do not depend on threads
constexpr int kTileRows = 256, kTileCols = 256;  // entries converted at once, to stay in cache

template <class S, class T>
struct Batch {
  const S* data;
  const std::int64_t *rows, *cols, *offsets, *x_starts, *y_starts;
  const T* X;
  T* Y;
  int k;
  bool transpose;
  T alpha;

  std::int64_t outputs(std::int64_t i) const { return transpose ? cols[i] : rows[i]; }
  std::int64_t inputs(std::int64_t i) const { return transpose ? rows[i] : cols[i]; }
};

// Y [m, k] += alpha op(A) X for k ≤ narrow::kColumns, A [rows, cols] row-major of any type
template <class S, class T>
void multiply_narrow(const S* A, int lda, bool transpose, int m, int n, const T* X, T* Y, int k, T alpha) {
  thread_local std::vector<T> Xt, product;
  product.assign(std::size_t(m) * k, T(0));
  if (transpose) {
    narrow::transpose_times<S, T>(A, lda, n, m, X, k, product.data());
    for (int i = 0; i < m; ++i)
      for (int j = 0; j < k; ++j) Y[std::int64_t(i) * k + j] += alpha * product[std::int64_t(j) * m + i];
  } else {
    if (k > 1) {
      Xt.resize(std::size_t(n) * k);
      for (int i = 0; i < n; ++i)
        for (int j = 0; j < k; ++j) Xt[std::int64_t(j) * n + i] = X[std::int64_t(i) * k + j];
    }
    narrow::times<S, T>(A, lda, m, n, k > 1 ? Xt.data() : X, k, product.data());
    for (std::int64_t i = 0; i < std::int64_t(m) * k; ++i) Y[i] += alpha * product[i];
  }
}

// Y [m, k] += alpha op(A) X by BLAS, A [m, n] row-major (op = identity) or [n, m] (op = transpose)
template <class T>
void multiply_blas(const T* A, int lda, bool transpose, int m, int n, const T* X, T* Y, int k, T alpha) {
  if (k > 1)
    lapack::gemm('N', transpose ? 'T' : 'N', k, m, n, alpha, X, k, A, lda, T(1), Y, k);
  else if (transpose)
    lapack::gemv('N', m, n, alpha, A, lda, X, Y);
  else
    lapack::gemv('T', n, m, alpha, A, lda, X, Y);
}

// the same for a stored type S that is not T: convert tile by tile
template <class S, class T>
void multiply_converted(const S* A, int lda, bool transpose, int m, int n, const T* X, T* Y, int k, T alpha) {
  thread_local std::vector<T> tile;
  tile.resize(kTileRows * kTileCols);
  const int rows = transpose ? n : m, cols = transpose ? m : n;
  for (int r = 0; r < rows; r += kTileRows) {
    const int h = std::min(kTileRows, rows - r);
    for (int c = 0; c < cols; c += kTileCols) {
      const int w = std::min(kTileCols, cols - c);
      for (int i = 0; i < h; ++i)
        narrow::convert<S, T>(A + static_cast<std::int64_t>(r + i) * lda + c, w, tile.data() + static_cast<std::int64_t>(i) * w);
      const std::int64_t x = transpose ? r : c, y = transpose ? c : r;
      multiply_blas<T>(tile.data(), w, transpose, transpose ? w : h, transpose ? h : w, X + x * k, Y + y * k, k, alpha);
    }
  }
}

// output rows [begin, end) of Y, one block after another
template <class S, class T>
void run_task(const Batch<S, T>& b, const std::vector<std::int64_t>& blocks, std::int64_t begin, std::int64_t end) {
  for (const std::int64_t i : blocks) {
    const std::int64_t y = b.y_starts[i], first = std::max(begin, y), last = std::min(end, y + b.outputs(i));
    const int m = static_cast<int>(last - first), n = static_cast<int>(b.inputs(i)), lda = static_cast<int>(b.cols[i]);
    if (m <= 0 || n == 0) continue;
    const S* A = b.data + b.offsets[i] + (first - y) * (b.transpose ? 1 : lda);
    const T* X = b.X + b.x_starts[i] * b.k;
    T* Y = b.Y + first * b.k;
    constexpr bool same = std::is_same_v<S, T>;
    if (b.k <= narrow::kColumns && !(same && b.k == 1))
      multiply_narrow<S, T>(A, lda, b.transpose, m, n, X, Y, b.k, b.alpha);
    else if constexpr (same)
      multiply_blas<T>(A, lda, b.transpose, m, n, X, Y, b.k, b.alpha);
    else
      multiply_converted<S, T>(A, lda, b.transpose, m, n, X, Y, b.k, b.alpha);
  }
}

struct Task {
  std::int64_t group, begin, end;
};

// Blocks whose output rows overlap form a group; a task is a chunk of a group's rows, so no two tasks write one row.
template <class S, class T>
void run(const Batch<S, T>& b, std::int64_t n) {
  std::vector<std::int64_t> by_row;
  for (std::int64_t i = 0; i < n; ++i)
    if (b.outputs(i) > 0 && b.inputs(i) > 0) by_row.push_back(i);
  std::stable_sort(by_row.begin(), by_row.end(), [&](auto i, auto j) { return b.y_starts[i] < b.y_starts[j]; });
  std::vector<std::vector<std::int64_t>> groups;
  std::vector<Task> tasks;
  for (std::size_t next = 0; next < by_row.size();) {
    std::int64_t begin = b.y_starts[by_row[next]], end = begin;
    std::vector<std::int64_t> group;
    for (; next < by_row.size() && (group.empty() || b.y_starts[by_row[next]] < end); ++next) {
      group.push_back(by_row[next]);
      end = std::max(end, b.y_starts[by_row[next]] + b.outputs(by_row[next]));
    }
    std::sort(group.begin(), group.end());
    groups.push_back(std::move(group));
    for (; begin < end; begin += kChunk)
      tasks.push_back({static_cast<std::int64_t>(groups.size()) - 1, begin, std::min(begin + kChunk, end)});
  }
  double work = 0;
  for (const std::int64_t i : by_row) work += double(b.rows[i]) * double(b.cols[i]) * b.k;
  for_each_task(static_cast<std::int64_t>(tasks.size()), work,
                [&](std::int64_t t) { run_task(b, groups[tasks[t].group], tasks[t].begin, tasks[t].end); });
}

template <class S, class T>
void multiply(Array<const S, 1> data, Index rows, Index cols, Index offsets, Array<const T, 2> X, Index x_starts,
              Array<T, 2> Y, Index y_starts, bool transpose, double alpha) {
  const std::int64_t n = rows.shape(0), k = X.shape(1);
  const Batch<S, T> b{data.data(), rows.data(), cols.data(), offsets.data(), x_starts.data(), y_starts.data(), X.data(),
                      Y.data(), static_cast<int>(k), transpose, static_cast<T>(alpha)};
  if (static_cast<std::int64_t>(Y.shape(1)) != k) throw std::invalid_argument("multiply: X and Y differ in columns");
  if (std::int64_t(cols.shape(0)) < n || std::int64_t(offsets.shape(0)) < n || std::int64_t(x_starts.shape(0)) < n ||
      std::int64_t(y_starts.shape(0)) < n)
    throw std::invalid_argument("multiply: an index array is shorter than the number of blocks");
  for (std::int64_t i = 0; i < n; ++i) {
    if (b.outputs(i) == 0 || b.inputs(i) == 0) continue;
    if (b.rows[i] < 0 || b.cols[i] < 0 || b.offsets[i] < 0 || b.x_starts[i] < 0 || b.y_starts[i] < 0 ||
        b.offsets[i] + b.rows[i] * b.cols[i] > std::int64_t(data.shape(0)) ||
        b.x_starts[i] + b.inputs(i) > std::int64_t(X.shape(0)) || b.y_starts[i] + b.outputs(i) > std::int64_t(Y.shape(0)))
      throw std::invalid_argument("multiply: block " + std::to_string(i) + " lies outside A, X or Y");
  }
  if (k == 0) return;
  nb::gil_scoped_release release;
  run(b, n);
}

template <class S, class T>
void define(nb::module_& m) {
  m.def("multiply", &multiply<S, T>, nb::arg("data").noconvert(), nb::arg("rows").noconvert(), nb::arg("cols").noconvert(),
        nb::arg("offsets").noconvert(), nb::arg("X").noconvert(), nb::arg("x_starts").noconvert(), nb::arg("Y").noconvert(),
        nb::arg("y_starts").noconvert(), nb::arg("transpose"), nb::arg("alpha"));
}

}  // namespace

void bind_multiply(nb::module_& m) {
  define<float, float>(m);
  define<double, double>(m);
  define<float, double>(m);
  define<double, float>(m);
}
