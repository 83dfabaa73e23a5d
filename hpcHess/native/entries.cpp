// Entries of Gram-type matrices, a batch of blocks at once (the contract: backend/entries.py).
//
// A block is cut into tiles of at most kSide rows and columns. Of each the input rows are packed once per piece of the samples; for every
// pair of neurons κ scales the smaller group of rows, and inner products over the samples are added (`dots`) in float64 over pieces.
// κ is read where it is stored, else made from the factors for 4 × 4 pairs of neurons at a time; small tiles of the same neurons, one
// after another, share it.
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <new>
#include <utility>

#include "arrays.hpp"
#include "dots.hpp"
#include "tasks.hpp"

namespace {

constexpr int kSide = 256;                     // rows of a tile
constexpr std::int64_t kGroup = 1 << 16;       // entries of the tiles that pass over the samples together
template <class T>
constexpr int kPiece = 4096 / int(sizeof(T));  // samples of a piece: what is summed in the samples' type

template <class T>
class Buffer {  // aligned to 64 bytes
 public:
  explicit Buffer(std::size_t size) : data_(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 127) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return data_; }

 private:
  T* data_;
};

template <class T>
struct Factors {
  const T *X, *slopes, *stored, *M, *output, *rest, *roots, *gram;
  std::vector<const T*> C;  // by layer, null where not stored
  const std::int64_t *place, *layer_starts;
  std::int64_t n, n_stored, n_neurons, n_hidden, separable;
  int rank;

  int layer_of(std::int64_t p) const { return int(std::upper_bound(layer_starts, layer_starts + C.size(), p) - layer_starts) - 1; }
  // C e_p [rank, n], or null where it is not stored
  const T* factor(std::int64_t p) const {
    const int layer = layer_of(p);
    return C[layer] ? C[layer] + (p - layer_starts[layer]) * rank * n : nullptr;
  }
};

struct Sides {
  const std::int64_t *neuron, *row, *place, *starts;
};

struct Tile {
  std::int64_t block, i, j;  // first rows of both sides in the flat arrays
  int rows, cols;
  bool same, separable;
};

struct Group {  // the rows of one neuron; packed from row `at`, with those of another neuron where the inputs are the same
  int first, count, at;
  std::int64_t neuron;
};

std::vector<Group> groups(const std::int64_t* neuron, int size) {
  std::vector<Group> result;
  for (int at = 0; at < size; ++at) {
    if (!at || neuron[at] != neuron[at - 1]) result.push_back({at, 0, 0, neuron[at]});
    ++result.back().count;
  }
  return result;
}

template <class T>
class Worker {
 public:
  Worker(const Factors<T>& factors, const Sides& I, const Sides& J, int ld)
      : f_(factors), I_(I), J_(J), ld_(ld), A_(std::size_t(kSide) * ld), B_(std::size_t(kSide) * ld), S_(std::size_t(kSide) * ld),
        K_(std::size_t(dots::kFew * dots::kFew) * ld) {}

  // H_t [rows, cols] += the piece's sums of `count` tiles with the same neurons (`alike`); of tiles on the diagonal j ≥ i alone
  void add(const Tile* tiles, int count, std::int64_t lo, int m, double* const* H) {
    const Tile& tile = tiles[0];
    if (tile.separable) {
      T *A = A_.get(), *B = tile.same ? A : B_.get();
      std::vector<Group> P{{0, tile.rows, 0, 0}}, Q{{0, tile.cols, 0, 0}};
      pack(I_.neuron + tile.i, I_.row + tile.i, P, lo, m, true, A);
      if (!tile.same) pack(J_.neuron + tile.j, J_.row + tile.j, Q, lo, m, true, B);
      return dots_.products(A, tile.rows, B, tile.cols, ld_, m, tile.same, H[0], tile.cols);
    }
    std::vector<std::vector<Group>> P, Q;
    int packed_A = 0, packed_B = 0;
    T* B = tile.same ? A_.get() : B_.get();
    for (int t = 0; t < count; ++t) {
      P.push_back(groups(I_.neuron + tiles[t].i, tile.rows));
      packed_A = pack(I_.neuron + tiles[t].i, I_.row + tiles[t].i, P[t], lo, m, !f_.stored, A_.get(), packed_A);
      Q.push_back(tile.same ? P[t] : groups(J_.neuron + tiles[t].j, tile.cols));
      if (!tile.same) packed_B = pack(J_.neuron + tiles[t].j, J_.row + tiles[t].j, Q[t], lo, m, !f_.stored, B, packed_B);
    }
    for (std::size_t p = 0; p < P[0].size(); p += dots::kFew)
      for (std::size_t q = tile.same ? p : 0; q < Q[0].size(); q += dots::kFew) {
        const int a = int(std::min<std::size_t>(dots::kFew, P[0].size() - p)), b = int(std::min<std::size_t>(dots::kFew, Q[0].size() - q));
        const T* kappa[dots::kFew * dots::kFew];
        find(&P[0][p], a, &Q[0][q], b, lo, m, tile.same && p == q, kappa);
        for (int i = 0; i < a; ++i)
          for (int j = tile.same && p == q ? i : 0; j < b; ++j)
            for (int t = 0; kappa[i * b + j] && t < count; ++t)
              pair(kappa[i * b + j], P[t][p + i], Q[t][q + j], tile.same && p + i == q + j, B, m, H[t], tile.cols);
      }
  }

  // whether κ of one tile serves another one too, and `count` tiles have room
  bool alike(const Tile& a, const Tile& b, int count) const {
    return !a.separable && !b.separable && a.same == b.same && a.rows == b.rows && a.cols == b.cols && count * std::max(a.rows, a.cols) <= kSide &&
           std::equal(I_.neuron + a.i, I_.neuron + a.i + a.rows, I_.neuron + b.i) &&
           std::equal(J_.neuron + a.j, J_.neuron + a.j + a.cols, J_.neuron + b.j);
  }

 private:
  // rows of X, times g of neurons with shared factors where `scaled`, padded by zeros
  // from row `packed` of `out` on; returns the first row after
  int pack(const std::int64_t* neuron, const std::int64_t* row, std::vector<Group>& sides, std::int64_t lo, int m, bool scaled, T* out,
           int packed = 0) {
    for (std::size_t k = 0; k < sides.size(); ++k) {
      Group& g = sides[k];
      const bool with_slope = scaled && neuron[g.first + g.count - 1] >= f_.separable;
      if (k && !with_slope && g.count == sides[k - 1].count && std::equal(row + g.first, row + g.first + g.count, row + sides[k - 1].first)) {
        g.at = sides[k - 1].at;
        continue;
      }
      g.at = packed;
      for (int i = g.first; i < g.first + g.count; ++i, ++packed) {
        const T* x = f_.X + row[i] * f_.n + lo;
        T* to = out + packed * ld_;
        if (with_slope && neuron[i] >= f_.separable && neuron[i] < f_.n_hidden) {
          const T* slope = f_.slopes + neuron[i] * f_.n + lo;
          for (int s = 0; s < m; ++s) to[s] = x[s] * slope[s];
        } else {
          std::copy(x, x + m, to);
        }
        std::fill(to + m, to + ld_, T(0));
      }
    }
    return packed;
  }

  // κ [m] of a × b pairs of neurons, null where it is zero
  void find(const Group* P, int a, const Group* Q, int b, std::int64_t lo, int m, bool upper, const T** kappa) {
    if (f_.stored) {
      for (int i = 0; i < a; ++i)
        for (int j = 0; j < b; ++j) {
          const auto p = f_.place[P[i].neuron], q = f_.place[Q[j].neuron];
          kappa[i * b + j] = f_.stored + (std::min(p, q) * f_.n_stored + std::max(p, q)) * f_.n + lo;
        }
      return;
    }
    const T *C[dots::kFew], *D[dots::kFew];
    bool all = true;
    for (int i = 0; i < a; ++i) all = (C[i] = f_.factor(P[i].neuron)) && all;
    for (int j = 0; j < b; ++j) all = (D[j] = f_.factor(Q[j].neuron)) && all;
    for (int i = 0; i < a; ++i) C[i] = C[i] ? C[i] + lo : nullptr;
    for (int j = 0; j < b; ++j) D[j] = D[j] ? D[j] + lo : nullptr;
    for (int at = 0; at < a * b; ++at) kappa[at] = K_.get() + std::int64_t(at) * ld_;
    if (all) return dots_.cross(C, a, D, b, f_.rank, f_.n, m, K_.get(), std::int64_t(ld_));
    for (int i = 0; i < a; ++i)
      for (int j = upper ? i : 0; j < b; ++j) {
        T* out = K_.get() + std::int64_t(i * b + j) * ld_;
        if (C[i] && D[j]) {
          dots_.cross(C + i, 1, D + j, 1, f_.rank, f_.n, m, out, std::int64_t(ld_));
        } else if (!one(C[i], P[i].neuron, D[j], Q[j].neuron, lo, m, out)) {
          kappa[i * b + j] = nullptr;
        }
      }
  }

  // κ of one pair where at most one factor is stored; false where it is zero
  bool one(const T* C, std::int64_t p, const T* D, std::int64_t q, std::int64_t lo, int m, T* out) {
    if (D) std::swap(C, D), std::swap(p, q);
    if (!f_.output) {  // ⟨C e_p, M e_q⟩, g_q is in the row packed
      dots_.combine(C, f_.M + (q - f_.separable) * f_.rank, f_.rank, f_.n, m, out);
      return true;
    }
    const auto last = f_.layer_starts[f_.C.size() - 1];
    if (C) {
      const T *root = f_.roots + (q - last) * f_.n + lo, *column = C + (q - last) * f_.n;
      for (int s = 0; s < m; ++s) out[s] = root[s] * column[s];
      return true;
    }
    const T *o = f_.output + (p - last) * f_.n + lo, *other = f_.output + (q - last) * f_.n + lo, *rest = f_.rest + (p - last) * f_.n + lo;
    if (p != q && !f_.rest) return false;
    for (int s = 0; s < m; ++s) out[s] = p != q ? -o[s] * other[s] : f_.rest ? o[s] * rest[s] : o[s];
    return true;
  }

  void pair(const T* kappa, const Group& p, const Group& q, bool own, const T* columns, int m, double* H, std::int64_t ldh) {
    const T *A = A_.get() + std::int64_t(p.at) * ld_, *B = columns + std::int64_t(q.at) * ld_;
    H += p.first * ldh + q.first;
    if (p.count <= dots::kFew && q.count <= dots::kFew) {
      dots_.weighted(kappa, A, p.count, B, q.count, ld_, m, H, ldh);
    } else if (p.count <= q.count) {
      dots_.scale(kappa, A, p.count, ld_, m, S_.get());
      dots_.products(S_.get(), p.count, B, q.count, ld_, m, own, H, ldh);
    } else {
      dots_.scale(kappa, B, q.count, ld_, m, S_.get());
      dots_.products(A, p.count, S_.get(), q.count, ld_, m, false, H, ldh);
    }
  }

  const dots::Kernels<T>& dots_ = dots::kernels<T>();
  const Factors<T>& f_;
  const Sides &I_, &J_;
  const std::int64_t ld_;
  Buffer<T> A_, B_, S_, K_;
};

// first rows of pieces of at most kSide that do not cross from neurons below `separable` to those above
std::vector<std::int64_t> cuts(const Sides& side, std::int64_t b, std::int64_t separable) {
  const auto first = side.starts[b], end = side.starts[b + 1];
  const auto middle = std::lower_bound(side.neuron + first, side.neuron + end, separable) - side.neuron;
  std::vector<std::int64_t> result{first};
  for (const auto& [a, z] : {std::pair{first, std::int64_t(middle)}, std::pair{std::int64_t(middle), end}}) {
    const auto pieces = (z - a + kSide - 1) / kSide;
    for (std::int64_t k = 1; k <= pieces; ++k) result.push_back(a + (z - a) * k / pieces);
  }
  return result;
}

std::vector<Tile> tiles(const Sides& I, const Sides& J, const std::uint8_t* same, std::int64_t blocks, std::int64_t separable) {
  std::vector<Tile> result;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const auto rows = cuts(I, b, separable), columns = cuts(J, b, separable);  // alike where both sides are the same
    for (std::size_t r = 0; r + 1 < rows.size(); ++r)
      for (std::size_t c = same[b] ? r : 0; c + 1 < columns.size(); ++c)
        result.push_back({b, rows[r], columns[c], int(rows[r + 1] - rows[r]), int(columns[c + 1] - columns[c]), same[b] && r == c,
                          I.neuron[rows[r]] >= separable && J.neuron[columns[c]] >= separable});
  }
  return result;
}

// H of the block at the given places, of a symmetric one both halves
template <class T, class R>
void place(const Factors<T>& f, const Sides& I, const Sides& J, const Tile& tile, bool mirrored, const double* sums, double scale, R* H,
           std::int64_t cols) {
  const auto n_shared = f.n_neurons - f.separable;
  for (int i = 0; i < tile.rows; ++i) {
    const auto row = I.place[tile.i + i], p = I.neuron[tile.i + i];
    for (int j = tile.same ? i : 0; j < tile.cols; ++j) {
      const auto column = J.place[tile.j + j], q = J.neuron[tile.j + j];
      double value = sums[std::int64_t(i) * tile.cols + j] * scale;
      if (tile.separable) value *= double(f.gram[(p - f.separable) * n_shared + q - f.separable]);
      H[row * cols + column] = R(value);
      if (mirrored) H[column * cols + row] = R(value);
    }
  }
}

template <class T, class R>
void evaluate(const Factors<T>& f, const Sides& I, const Sides& J, const std::uint8_t* same, std::int64_t blocks, double scale, R* H,
              const std::int64_t* offsets) {
  const auto all = tiles(I, J, same, blocks, f.separable);
  std::vector<std::size_t> starts{0};
  double total = 0;
  std::int64_t size = 0;
  for (std::size_t t = 0; t < all.size(); ++t) {
    const auto entries = std::int64_t(all[t].rows) * all[t].cols;
    if (size && size + entries > kGroup) starts.push_back(t), size = 0;
    size += entries;
    total += double(entries) * double(f.n);
  }
  if (!all.empty()) starts.push_back(all.size());
  const std::int64_t pieces = std::max<std::int64_t>(1, (f.n + kPiece<T> - 1) / kPiece<T>);
  const int longest = int((f.n + pieces - 1) / pieces), lanes = dots::kLanes<T>, ld = (longest + lanes - 1) / lanes * lanes;
  for_each_task(std::int64_t(starts.size()) - 1, total, [&](std::int64_t at) {
    Worker<T> worker(f, I, J, ld);
    const auto first = starts[at], end = starts[at + 1];
    std::vector<std::int64_t> sums_at{0};
    for (auto t = first; t < end; ++t) sums_at.push_back(sums_at.back() + std::int64_t(all[t].rows) * all[t].cols);
    std::vector<double> sums(std::size_t(sums_at.back()));
    for (std::int64_t k = 0; k < pieces; ++k) {
      const auto lo = f.n * k / pieces, hi = f.n * (k + 1) / pieces;
      for (auto t = first; t < end;) {
        std::vector<double*> targets;
        const auto run = t;
        do targets.push_back(sums.data() + sums_at[t++ - first]);
        while (t < end && worker.alike(all[run], all[t], int(t - run) + 1));
        worker.add(&all[run], int(targets.size()), lo, int(hi - lo), targets.data());
      }
    }
    for (auto t = first; t < end; ++t) {
      const auto b = all[t].block;
      place(f, I, J, all[t], same[b], sums.data() + sums_at[t - first], scale, H + offsets[b], J.starts[b + 1] - J.starts[b]);
    }
  });
}

// whether a block's rows and columns are the same, in the same order
bool alike(const Sides& I, const Sides& J, std::int64_t b) {
  const auto i = I.starts[b], j = J.starts[b], size = I.starts[b + 1] - i;
  auto equal = [&](const std::int64_t* left, const std::int64_t* right) { return std::equal(left + i, left + i + size, right + j); };
  return size == J.starts[b + 1] - j && equal(I.neuron, J.neuron) && equal(I.row, J.row) && equal(I.place, J.place);
}

template <class T>
const T* data_of(const Array<const T, 2>& a) { return a.size() ? a.data() : nullptr; }

template <class T, class R>
void gram_entries(Array<const T, 2> X, Array<const T, 2> slopes, Array<const T, 3> stored, Index place, std::vector<Array<const T, 3>> C,
                  Array<const T, 2> M, Array<const T, 2> output, Array<const T, 2> rest, Array<const T, 2> roots, Array<const T, 2> gram,
                  Index layer_starts, std::int64_t separable, Index neuron_I, Index row_I, Index place_I, Index starts_I, Index neuron_J,
                  Index row_J, Index place_J, Index starts_J, double scale, Array<R, 1> H, Index offsets) {
  Factors<T> f{X.data(), data_of(slopes), stored.size() ? stored.data() : nullptr, data_of(M), data_of(output), data_of(rest), data_of(roots),
               data_of(gram), {}, place.data(), layer_starts.data(), std::int64_t(X.shape(1)), std::int64_t(stored.shape(1)),
               layer_starts.data()[C.size()], layer_starts.data()[C.size() - 1], separable, 0};
  for (const auto& each : C) {
    f.C.push_back(each.size() ? each.data() : nullptr);
    if (each.size()) f.rank = int(each.shape(1));
  }
  if (!f.rank) f.rank = int(M.shape(1));
  const Sides I{neuron_I.data(), row_I.data(), place_I.data(), starts_I.data()}, J{neuron_J.data(), row_J.data(), place_J.data(), starts_J.data()};
  nb::gil_scoped_release released;
  std::vector<std::uint8_t> same(std::size_t(starts_I.shape(0)) - 1);
  for (std::size_t b = 0; b < same.size(); ++b) same[b] = alike(I, J, std::int64_t(b));
  evaluate(f, I, J, same.data(), std::int64_t(same.size()), scale, H.data(), offsets.data());
}

template <class T, class R, std::size_t... i>
void define(nb::module_& m, std::index_sequence<i...>) {
  m.def("gram_entries", &gram_entries<T, R>, (void(i), nb::arg().noconvert())...);
}

}  // namespace

void bind_entries(nb::module_& m) {
  const std::make_index_sequence<23> arguments;
  define<float, float>(m, arguments);
  define<float, double>(m, arguments);
  define<double, double>(m, arguments);
  define<double, float>(m, arguments);
}
