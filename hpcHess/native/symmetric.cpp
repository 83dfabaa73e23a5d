// Y += alpha Σ (B_i to the rows of its first node, B_iᵀ to those of its second), every block read once.
//
// The blocks are cut into parts that do not depend on threads; a part runs on one thread, block after block. Rows that several parts
// write belong to the first of them, the others add into buffers of their own, which are summed in the order of the parts afterwards.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "arrays.hpp"
#include "columns.hpp"
#include "tasks.hpp"

namespace {

constexpr double kLeast = 1 << 16, kParts = 64;  // entries of a part at least; parts at most, about
constexpr std::int64_t kSlice = 128;             // rows of a slice of a block that is cut: its buffer costs what one more row does
constexpr std::int64_t kChunk = 256;             // rows summed by one task

struct Pairs {
  std::int64_t n;
  const std::int64_t *rows, *cols, *offsets, *row_at, *col_at;
  bool off(std::int64_t i) const { return row_at[i] != col_at[i]; }
  double entries(std::int64_t i) const { return double(rows[i]) * double(cols[i]); }
};

struct Piece {  // rows [first, last) of a block; outputs lie at Y + row or, where foreign, at the buffers + row + shift
  std::int64_t block, first, last, row_shift = 0, col_shift = 0;
  bool row_foreign = false, col_foreign = false;
};

struct Foreign {  // rows [begin, end) of Y in a buffer from `at`
  std::int64_t begin, end, part, at;
};

struct Plan {
  std::vector<Piece> pieces;
  std::vector<std::int64_t> parts{0};  // first piece of each part
  std::vector<std::int64_t> buffers;   // first row of each part's buffer
  std::vector<Foreign> foreign;        // by rows of Y, then by part
  double entries = 0;
  bool shared = false;  // whether parts may write the same rows
};

// Cut into parts: blocks whose outputs overlap lie together; only groups that are larger than two parts are spread over several.
void cut(const Pairs& p, Plan& plan) {
  struct Hull {
    std::int64_t begin, end, block;
  };
  std::vector<Hull> hulls;
  for (std::int64_t i = 0; i < p.n; ++i) {
    if (p.rows[i] == 0 || p.cols[i] == 0) continue;
    hulls.push_back({std::min(p.row_at[i], p.col_at[i]), std::max(p.row_at[i] + p.rows[i], p.col_at[i] + p.cols[i]), i});
    plan.entries += p.entries(i);
  }
  const auto before = [](const Hull& a, const Hull& b) { return a.begin < b.begin || (a.begin == b.begin && a.block < b.block); };
  if (!std::is_sorted(hulls.begin(), hulls.end(), before)) std::sort(hulls.begin(), hulls.end(), before);
  const double enough = std::max(kLeast, plan.entries / kParts);
  double gathered = 0;
  const auto close = [&] {
    if (plan.parts.back() < std::int64_t(plan.pieces.size())) plan.parts.push_back(std::int64_t(plan.pieces.size()));
    gathered = 0;
  };
  for (std::size_t next = 0; next < hulls.size();) {
    const std::size_t first = next;
    std::int64_t end = hulls[next].end;
    double work = 0;
    for (; next < hulls.size() && hulls[next].begin < end; ++next) {
      end = std::max(end, hulls[next].end);
      work += p.entries(hulls[next].block);
    }
    const bool large = work > 2 * enough;
    plan.shared |= large;
    if (large) close();
    for (std::size_t h = first; h < next; ++h) {
      const std::int64_t block = hulls[h].block, rows = p.rows[block];
      const std::int64_t slices = large && p.entries(block) > enough ? std::max<std::int64_t>(1, rows / kSlice) : 1;
      for (std::int64_t s = 0; s < slices; ++s) {
        plan.pieces.push_back({block, rows * s / slices, rows * (s + 1) / slices});
        gathered += p.entries(block) / double(slices);
        if (large && gathered >= enough) close();
      }
    }
    if (large || gathered >= enough) close();
  }
  close();
}

// Say for every piece where its outputs go.
void place(const Pairs& p, Plan& plan) {
  struct Touch {
    std::int64_t begin, end, part;
  };
  std::vector<Touch> touched;
  const std::int64_t parts = std::int64_t(plan.parts.size()) - 1;
  plan.buffers.assign(parts + 1, 0);
  if (!plan.shared) return;
  for (std::int64_t part = 0; part < parts; ++part)
    for (std::int64_t i = plan.parts[part]; i < plan.parts[part + 1]; ++i) {
      const Piece& piece = plan.pieces[i];
      const std::int64_t r = p.row_at[piece.block], c = p.col_at[piece.block];
      touched.push_back({r + piece.first, r + piece.last, part});
      if (p.off(piece.block)) touched.push_back({c, c + p.cols[piece.block], part});
    }
  std::sort(touched.begin(), touched.end(), [](const Touch& a, const Touch& b) {
    return a.begin < b.begin || (a.begin == b.begin && (a.part < b.part || (a.part == b.part && a.end < b.end)));
  });
  std::vector<std::vector<Foreign>> of(parts);  // what each part keeps in its buffer, by rows
  for (std::size_t next = 0; next < touched.size();) {
    const std::size_t first = next;
    std::int64_t end = touched[next].end, owner = touched[next].part;
    for (; next < touched.size() && touched[next].begin < end; ++next) {
      end = std::max(end, touched[next].end);
      owner = std::min(owner, touched[next].part);
    }
    for (std::size_t t = first; t < next; ++t) {
      auto& mine = of[touched[t].part];
      if (touched[t].part == owner) continue;
      if (!mine.empty() && touched[t].begin < mine.back().end)
        mine.back().end = std::max(mine.back().end, touched[t].end);
      else
        mine.push_back({touched[t].begin, touched[t].end, touched[t].part, 0});
    }
  }
  std::int64_t at = 0;
  for (std::int64_t part = 0; part < parts; ++part) {
    plan.buffers[part] = at;
    for (Foreign& f : of[part]) {
      f.at = at;
      at += f.end - f.begin;
    }
    const auto shift = [&](std::int64_t row, std::int64_t& by, bool& foreign) {
      const auto found = std::upper_bound(of[part].begin(), of[part].end(), row, [](auto r, const Foreign& f) { return r < f.end; });
      foreign = found != of[part].end() && found->begin <= row;
      by = foreign ? found->at - found->begin : 0;
    };
    for (std::int64_t i = plan.parts[part]; i < plan.parts[part + 1]; ++i) {
      Piece& piece = plan.pieces[i];
      shift(p.row_at[piece.block] + piece.first, piece.row_shift, piece.row_foreign);
      shift(p.col_at[piece.block], piece.col_shift, piece.col_foreign);
    }
    plan.foreign.insert(plan.foreign.end(), of[part].begin(), of[part].end());
  }
  plan.buffers[parts] = at;
  std::stable_sort(plan.foreign.begin(), plan.foreign.end(), [](const Foreign& a, const Foreign& b) { return a.begin < b.begin; });
}

template <class S, class T>
void run(const S* data, const Pairs& p, const Plan& plan, const T* X, T* Y, int k, T alpha) {
  const double work = plan.entries * columns::effort(k);
  const std::unique_ptr<T[]> buffers(new T[plan.buffers.back() * k]);
  for_each_task(std::int64_t(plan.parts.size()) - 1, work, [&](std::int64_t part) {
    std::fill(buffers.get() + plan.buffers[part] * k, buffers.get() + plan.buffers[part + 1] * k, T(0));
    for (std::int64_t i = plan.parts[part]; i < plan.parts[part + 1]; ++i) {
      const Piece& piece = plan.pieces[i];
      const std::int64_t b = piece.block, r = p.row_at[b] + piece.first, c = p.col_at[b], lda = p.cols[b];
      const S* A = data + p.offsets[b] + piece.first * lda;
      const int m = int(piece.last - piece.first), n = int(lda);
      T* y_rows = (piece.row_foreign ? buffers.get() : Y) + (r + piece.row_shift) * k;
      T* y_cols = (piece.col_foreign ? buffers.get() : Y) + (c + piece.col_shift) * k;
      if (p.off(b))
        columns::add_both<S, T>(A, lda, m, n, X + c * k, y_rows, X + r * k, y_cols, k, alpha);
      else
        columns::add_product<S, T>(A, lda, m, n, X + c * k, k, alpha, y_rows);
    }
  });
  struct Sum {
    std::size_t first, last;  // of plan.foreign
    std::int64_t begin, end;
  };
  std::vector<Sum> sums;
  for (std::size_t next = 0; next < plan.foreign.size();) {
    const std::size_t first = next;
    std::int64_t begin = plan.foreign[next].begin, end = plan.foreign[next].end;
    for (; next < plan.foreign.size() && plan.foreign[next].begin < end; ++next) end = std::max(end, plan.foreign[next].end);
    for (; begin < end; begin += kChunk) sums.push_back({first, next, begin, std::min(begin + kChunk, end)});
  }
  for_each_task(std::int64_t(sums.size()), double(plan.buffers.back()) * columns::effort(k), [&](std::int64_t s) {
    for (std::size_t i = sums[s].first; i < sums[s].last; ++i) {
      const Foreign& f = plan.foreign[i];
      const std::int64_t begin = std::max(f.begin, sums[s].begin), n = (std::min(f.end, sums[s].end) - begin) * k;
      const T* from = buffers.get() + (f.at + begin - f.begin) * k;
      T* to = Y + begin * k;
      for (std::int64_t j = 0; j < n; ++j) to[j] += from[j];
    }
  });
}

template <class S, class T>
void multiply_symmetric(Array<const S, 1> data, Index rows, Index cols, Index offsets, Array<const T, 2> X, Index row_at, Index col_at,
                        Array<T, 2> Y, double alpha) {
  const Pairs p{std::int64_t(rows.shape(0)), rows.data(), cols.data(), offsets.data(), row_at.data(), col_at.data()};
  const std::int64_t n_x = X.shape(0), n_y = Y.shape(0), k = X.shape(1);
  if (std::int64_t(Y.shape(1)) != k) throw std::invalid_argument("multiply_symmetric: X and Y differ in columns");
  if (std::int64_t(cols.shape(0)) < p.n || std::int64_t(offsets.shape(0)) < p.n || std::int64_t(row_at.shape(0)) < p.n ||
      std::int64_t(col_at.shape(0)) < p.n)
    throw std::invalid_argument("multiply_symmetric: an index array is shorter than the number of blocks");
  for (std::int64_t i = 0; i < p.n; ++i) {
    const std::int64_t last = std::max(p.row_at[i] + p.rows[i], p.col_at[i] + p.cols[i]);
    if (p.rows[i] < 0 || p.cols[i] < 0 || p.offsets[i] < 0 || p.row_at[i] < 0 || p.col_at[i] < 0 || last > std::min(n_x, n_y) ||
        p.offsets[i] + p.rows[i] * p.cols[i] > std::int64_t(data.shape(0)))
      throw std::invalid_argument("multiply_symmetric: block " + std::to_string(i) + " lies outside B, X or Y");
    if (p.entries(i) > 0 && !p.off(i) && p.rows[i] != p.cols[i])  // a node without rows begins where the next one does
      throw std::invalid_argument("multiply_symmetric: block " + std::to_string(i) + " on the diagonal is not square");
  }
  if (k == 0) return;
  nb::gil_scoped_release release;
  Plan plan;
  cut(p, plan);
  place(p, plan);
  run<S, T>(data.data(), p, plan, X.data(), Y.data(), int(k), T(alpha));
}

template <class S, class T>
void define(nb::module_& m) {
  m.def("multiply_symmetric", &multiply_symmetric<S, T>, nb::arg("data").noconvert(), nb::arg("rows").noconvert(),
        nb::arg("cols").noconvert(), nb::arg("offsets").noconvert(), nb::arg("X").noconvert(), nb::arg("row_at").noconvert(),
        nb::arg("col_at").noconvert(), nb::arg("Y").noconvert(), nb::arg("alpha"));
}

}  // namespace

void bind_symmetric(nb::module_& m) {
  define<float, float>(m);
  define<double, double>(m);
  define<float, double>(m);
  define<double, float>(m);
}
