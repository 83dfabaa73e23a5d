// Y[y_starts[i] :] += alpha op(A_i) X[x_starts[i] :] over a ragged batch, row-major.
#include <algorithm>
#include <stdexcept>

#include "arrays.hpp"
#include "columns.hpp"
#include "tasks.hpp"

namespace {

constexpr std::int64_t kChunk = 256;  // output rows of one task: fixed, so that results do not depend on threads

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
    if (b.transpose)
      columns::add_transposed<S, T>(A, lda, n, m, X, b.k, b.alpha, Y);
    else
      columns::add_product<S, T>(A, lda, m, n, X, b.k, b.alpha, Y);
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
  for (const std::int64_t i : by_row) work += double(b.rows[i]) * double(b.cols[i]) * columns::effort(b.k);
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
