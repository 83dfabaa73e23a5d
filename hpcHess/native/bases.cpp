// The interpolations P = [I T] of all nodes of a level on stacked rows: rows are gathered and scattered inside a task, node by node.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "arrays.hpp"
#include "columns.hpp"
#include "tasks.hpp"

namespace {

constexpr double kLeast = 1 << 14;  // entries of a task's nodes together, about
constexpr std::int64_t kCopied = 1 << 18;  // bytes copied by one task

template <class S, class T>
struct Bases {
  const S* data;
  const std::int64_t *s, *r, *offsets, *skeleton, *redundant;  // sizes [b], positions [Σ s], [Σ r] in the stacked columns
  int k;
};

struct Nodes {  // nodes [first, last), the first of whose skeleton and redundant rows are these
  std::int64_t first, last, s_at, r_at;
};

template <class S, class T>
std::vector<Nodes> tasks_of(const Bases<S, T>& b, std::int64_t n, double& entries) {
  std::vector<Nodes> tasks;
  std::int64_t s_at = 0, r_at = 0;
  double gathered = kLeast;
  entries = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (gathered >= kLeast) {
      tasks.push_back({i, i, s_at, r_at});
      gathered = 0;
    }
    const double own = double(b.s[i]) * double(b.r[i]) + double(b.s[i] + b.r[i]);  // and the rows that are copied
    gathered += own, entries += own;
    tasks.back().last = i + 1;
    s_at += b.s[i], r_at += b.r[i];
  }
  return tasks;
}

// f(node, its first skeleton row, its first redundant row, a scratch array [r, k])
template <class S, class T, class Visit>
void for_each_node(const Bases<S, T>& b, std::int64_t n, const Visit& visit) {
  double entries;
  const std::vector<Nodes> tasks = tasks_of(b, n, entries);
  for_each_task(std::int64_t(tasks.size()), entries * columns::effort(b.k), [&](std::int64_t t) {
    thread_local std::vector<T> scratch;
    std::int64_t s_at = tasks[t].s_at, r_at = tasks[t].r_at;
    for (std::int64_t i = tasks[t].first; i < tasks[t].last; ++i) {
      if (std::int64_t(scratch.size()) < b.r[i] * b.k) scratch.resize(b.r[i] * b.k);
      visit(i, s_at, r_at, scratch.data());
      s_at += b.s[i], r_at += b.r[i];
    }
  });
}

constexpr std::int64_t kRowsAhead = 8;       // of rows gathered from anywhere
constexpr std::size_t kLine = 64, kFetched = 512;  // bytes of a line of the caches; of a row that are fetched ahead at most

template <class T>
void copy_row(const T* from, int k, T* to) {
  for (int j = 0; j < k; ++j) to[j] = from[j];
}

// to [n, k] = X[rows]
template <class T>
void gather(const T* X, const std::int64_t* rows, std::int64_t n, int k, T* to) {
  for (std::int64_t j = 0; j < n; ++j) {
    if (j + kRowsAhead < n) {
      const char* next = reinterpret_cast<const char*>(X + rows[j + kRowsAhead] * k);
      for (std::size_t byte = 0; byte < std::min(kFetched, k * sizeof(T)); byte += kLine) __builtin_prefetch(next + byte);
    }
    copy_row(X + rows[j] * k, k, to + j * k);
  }
}
template <class T>
void add_row(const T* from, int k, T* to) {
  for (int j = 0; j < k; ++j) to[j] += from[j];
}

// Y [Σ s, k] = X_J + T X_R
template <class S, class T>
void compress(const Bases<S, T>& b, std::int64_t n, const T* X, T* Y) {
  const int k = b.k;
  for_each_node(b, n, [&](std::int64_t i, std::int64_t s_at, std::int64_t r_at, T* rest) {
    gather(X, b.skeleton + s_at, b.s[i], k, Y + s_at * k);
    gather(X, b.redundant + r_at, b.r[i], k, rest);
    columns::add_product<S, T>(b.data + b.offsets[i], b.r[i], int(b.s[i]), int(b.r[i]), rest, k, T(1), Y + s_at * k);
  });
}

// Y_J += X, Y_R += Tᵀ X for Y [Σ (s + r), k], or = where not `add`
template <class S, class T>
void expand(const Bases<S, T>& b, std::int64_t n, const T* X, T* Y, bool add) {
  const int k = b.k;
  for_each_node(b, n, [&](std::int64_t i, std::int64_t s_at, std::int64_t r_at, T* rest) {
    std::fill(rest, rest + b.r[i] * k, T(0));
    columns::add_transposed<S, T>(b.data + b.offsets[i], b.r[i], int(b.s[i]), int(b.r[i]), X + s_at * k, k, T(1), rest);
    for (std::int64_t j = 0; j < b.s[i]; ++j) (add ? add_row<T> : copy_row<T>)(X + (s_at + j) * k, k, Y + b.skeleton[s_at + j] * k);
    for (std::int64_t j = 0; j < b.r[i]; ++j) (add ? add_row<T> : copy_row<T>)(rest + j * k, k, Y + b.redundant[r_at + j] * k);
  });
}

// Y[rows of i] = D_i X[rows of i] for square blocks, one after another
template <class S, class T>
void multiply_at(Array<const S, 1> data, Index sizes, Index rows, Array<const T, 2> X, Array<T, 2> Y) {
  const std::int64_t n = sizes.shape(0), n_rows = std::min(X.shape(0), Y.shape(0)), k = X.shape(1), *at = rows.data();
  if (X.shape(1) != Y.shape(1)) throw std::invalid_argument("multiply_at: the rows differ in columns");
  struct Part {
    std::int64_t first, last, offset, row;
  };
  std::vector<Part> parts;
  std::int64_t offset = 0, row = 0;
  double gathered = kLeast;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t size = sizes.data()[i];
    if (size < 0) throw std::invalid_argument("multiply_at: a negative size");
    if (gathered >= kLeast) {
      parts.push_back({i, i, offset, row});
      gathered = 0;
    }
    parts.back().last = i + 1;
    gathered += double(size) * double(size + 1), offset += size * size, row += size;
  }
  if (offset != std::int64_t(data.shape(0)) || row != std::int64_t(rows.shape(0)))
    throw std::invalid_argument("multiply_at: sizes of the blocks do not match");
  for (std::int64_t j = 0; j < row; ++j)
    if (at[j] < 0 || at[j] >= n_rows) throw std::invalid_argument("multiply_at: a row lies outside");
  if (k == 0) return;
  nb::gil_scoped_release release;
  for_each_task(std::int64_t(parts.size()), double(offset) * columns::effort(int(k)), [&](std::int64_t t) {
    thread_local std::vector<T> scratch;
    std::int64_t from = parts[t].offset, first = parts[t].row;
    for (std::int64_t i = parts[t].first; i < parts[t].last; ++i) {
      const std::int64_t size = sizes.data()[i];
      if (std::int64_t(scratch.size()) < 2 * size * k) scratch.resize(2 * size * k);
      T *x = scratch.data(), *y = x + size * k;
      gather(X.data(), at + first, size, int(k), x);
      std::fill(y, y + size * k, T(0));
      columns::add_product<S, T>(data.data() + from, size, int(size), int(size), x, int(k), T(1), y);
      for (std::int64_t j = 0; j < size; ++j) copy_row(y + j * k, int(k), Y.data() + at[first + j] * k);
      from += size * size, first += size;
    }
  });
}

template <class S, class T>
Bases<S, T> checked(const Array<const S, 1>& data, const Index& s, const Index& r, const Index& offsets, const Index& skeleton,
                    const Index& redundant, std::int64_t n_skeleton, std::int64_t n_columns, std::int64_t k) {
  const std::int64_t n = s.shape(0);
  if (std::int64_t(r.shape(0)) < n || std::int64_t(offsets.shape(0)) < n)
    throw std::invalid_argument("compress_rows, expand_rows: an index array is shorter than the number of nodes");
  std::int64_t all_s = 0, all_r = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t at = offsets.data()[i], rows = s.data()[i], cols = r.data()[i];
    if (rows < 0 || cols < 0 || at < 0 || at + rows * cols > std::int64_t(data.shape(0)))
      throw std::invalid_argument("compress_rows, expand_rows: block " + std::to_string(i) + " lies outside T");
    all_s += rows, all_r += cols;
  }
  if (all_s != n_skeleton || all_s != std::int64_t(skeleton.shape(0)) || all_r != std::int64_t(redundant.shape(0)))
    throw std::invalid_argument("compress_rows, expand_rows: the rows of the skeletons are not as many as those of T");
  for (const Index* rows : {&skeleton, &redundant})
    for (std::size_t i = 0; i < rows->shape(0); ++i)
      if (rows->data()[i] < 0 || rows->data()[i] >= n_columns)
        throw std::invalid_argument("compress_rows, expand_rows: a row lies outside the columns");
  return {data.data(), s.data(), r.data(), offsets.data(), skeleton.data(), redundant.data(), int(k)};
}

template <class S, class T>
void compress_rows(Array<const S, 1> data, Index s, Index r, Index offsets, Index skeleton, Index redundant, Array<const T, 2> X,
                   Array<T, 2> Y) {
  const auto b = checked<S, T>(data, s, r, offsets, skeleton, redundant, Y.shape(0), X.shape(0), X.shape(1));
  if (X.shape(1) != Y.shape(1)) throw std::invalid_argument("compress_rows: the rows differ in columns");
  const std::int64_t n = s.shape(0);
  nb::gil_scoped_release release;
  compress(b, n, X.data(), Y.data());
}

template <class S, class T>
void expand_rows(Array<const S, 1> data, Index s, Index r, Index offsets, Index skeleton, Index redundant, Array<const T, 2> X,
                 Array<T, 2> Y, bool add) {
  const auto b = checked<S, T>(data, s, r, offsets, skeleton, redundant, X.shape(0), Y.shape(0), X.shape(1));
  if (X.shape(1) != Y.shape(1)) throw std::invalid_argument("expand_rows: the rows differ in columns");
  const std::int64_t n = s.shape(0);
  nb::gil_scoped_release release;
  expand(b, n, X.data(), Y.data(), add);
}

template <class S, class T>
void define(nb::module_& m) {
  m.def("compress_rows", &compress_rows<S, T>, nb::arg("data").noconvert(), nb::arg("s").noconvert(), nb::arg("r").noconvert(),
        nb::arg("offsets").noconvert(), nb::arg("skeleton").noconvert(), nb::arg("redundant").noconvert(), nb::arg("X").noconvert(),
        nb::arg("Y").noconvert());
  m.def("expand_rows", &expand_rows<S, T>, nb::arg("data").noconvert(), nb::arg("s").noconvert(), nb::arg("r").noconvert(),
        nb::arg("offsets").noconvert(), nb::arg("skeleton").noconvert(), nb::arg("redundant").noconvert(), nb::arg("X").noconvert(),
        nb::arg("Y").noconvert(), nb::arg("add"));
  m.def("multiply_at", &multiply_at<S, T>, nb::arg("data").noconvert(), nb::arg("sizes").noconvert(), nb::arg("rows").noconvert(),
        nb::arg("X").noconvert(), nb::arg("Y").noconvert());
}

// to[i] = from[index[i]], rows of bytes
void take_rows(Array<const std::uint8_t, 2> from, Index index, Array<std::uint8_t, 2> to) {
  const std::int64_t n = index.shape(0), width = from.shape(1), n_from = from.shape(0), chunk = std::max<std::int64_t>(1, kCopied / (width + 1));
  if (std::int64_t(to.shape(0)) != n || std::int64_t(to.shape(1)) != width)
    throw std::invalid_argument("take_rows: the result is not of the right shape");
  const std::int64_t* rows = index.data();
  for (std::int64_t i = 0; i < n; ++i)
    if (rows[i] < 0 || rows[i] >= n_from) throw std::invalid_argument("take_rows: row " + std::to_string(rows[i]) + " does not exist");
  nb::gil_scoped_release release;
  const std::uint8_t* source = from.data();
  std::uint8_t* target = to.data();
  for_each_task((n + chunk - 1) / chunk, double(n) * double(width + 8), [&](std::int64_t t) {
    const std::int64_t last = std::min(n, (t + 1) * chunk);
    for (std::int64_t i = t * chunk; i < last; ++i) {
      const std::uint8_t* row = source + rows[i] * width;
      if (width == 4)
        std::memcpy(target + i * 4, row, 4);
      else if (width == 8)
        std::memcpy(target + i * 8, row, 8);
      else
        std::memcpy(target + i * width, row, width);
    }
  });
}

}  // namespace

void bind_bases(nb::module_& m) {
  m.def("take_rows", &take_rows, nb::arg("rows").noconvert(), nb::arg("index").noconvert(), nb::arg("result").noconvert());
  define<float, float>(m);
  define<double, double>(m);
  define<float, double>(m);
  define<double, float>(m);
}
