// The kernels of columns.cpp for one instruction set: included there once for each, inside a namespace, with
//   HPCHESS_BYTES   of a vector
//   HPCHESS_MASKS   1 where AVX-512 loads and stores parts of a vector
// (no #pragma once: that is the point)

template <class T>
struct Vector;
template <>
struct Vector<double> {
  static constexpr int lanes = HPCHESS_BYTES / 8;
  typedef double type __attribute__((vector_size(HPCHESS_BYTES)));
  typedef float half __attribute__((vector_size(HPCHESS_BYTES / 2)));
};
template <>
struct Vector<float> {
  static constexpr int lanes = HPCHESS_BYTES / 4;
  typedef float type __attribute__((vector_size(HPCHESS_BYTES)));
  typedef double twice __attribute__((vector_size(2 * HPCHESS_BYTES)));
};

HPCHESS_INLINE void load(const double* p, Vector<double>::type& v) { std::memcpy(&v, p, sizeof v); }
HPCHESS_INLINE void load(const float* p, Vector<float>::type& v) { std::memcpy(&v, p, sizeof v); }
HPCHESS_INLINE void load(const float* p, Vector<double>::type& v) {
  Vector<double>::half h;
  std::memcpy(&h, p, sizeof h);
  v = __builtin_convertvector(h, Vector<double>::type);
}
HPCHESS_INLINE void load(const double* p, Vector<float>::type& v) {
  Vector<float>::twice d;
  std::memcpy(&d, p, sizeof d);
  v = __builtin_convertvector(d, Vector<float>::type);
}

// the first n lanes, 0 < n ≤ lanes, zeros behind; nothing behind them is read or written
#if HPCHESS_MASKS
HPCHESS_INLINE void load(const float* p, int n, Vector<float>::type& v) {
  v = _mm512_maskz_loadu_ps(static_cast<__mmask16>(0xffffu >> (16 - n)), p);
}
HPCHESS_INLINE void load(const double* p, int n, Vector<double>::type& v) {
  v = _mm512_maskz_loadu_pd(static_cast<__mmask8>(0xffu >> (8 - n)), p);
}
HPCHESS_INLINE void load(const float* p, int n, Vector<double>::type& v) {
  v = __builtin_convertvector(Vector<double>::half(_mm256_maskz_loadu_ps(static_cast<__mmask8>(0xffu >> (8 - n)), p)),
                              Vector<double>::type);
}
HPCHESS_INLINE void load(const double* p, int n, Vector<float>::type& v) {
  const unsigned mask = 0xffffu >> (16 - n);
  const Vector<double>::type parts[2] = {_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask & 0xff), p),
                                         _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask >> 8), n > 8 ? p + 8 : p)};
  Vector<float>::twice d;
  std::memcpy(&d, parts, sizeof d);
  v = __builtin_convertvector(d, Vector<float>::type);
}
HPCHESS_INLINE void store(float* p, int n, const Vector<float>::type& v) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(0xffffu >> (16 - n)), v);
}
HPCHESS_INLINE void store(double* p, int n, const Vector<double>::type& v) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>(0xffu >> (8 - n)), v);
}
#else
template <class S, class V>
HPCHESS_INLINE void load(const S* p, int n, V& v) {
  constexpr int lanes = sizeof(V) / sizeof(v[0]);
  if (n == lanes) return load(p, v);
  v = V{};
  for (int i = 0; i < n; ++i) v[i] = static_cast<std::remove_reference_t<decltype(v[0])>>(p[i]);
}
template <class T, class V>
HPCHESS_INLINE void store(T* p, int n, const V& v) {
  std::memcpy(p, &v, n * sizeof(T));
}
#endif

// sum of the lanes, by halves
template <class T>
HPCHESS_INLINE T total(const typename Vector<T>::type& v) {
  typedef T quarter __attribute__((vector_size(16)));
  quarter parts[HPCHESS_BYTES / 16];
  std::memcpy(parts, &v, sizeof v);
#pragma GCC unroll 4
  for (int n = HPCHESS_BYTES / 32; n > 0; n /= 2)
#pragma GCC unroll 4
    for (int i = 0; i < n; ++i) parts[i] += parts[i + n];
  T sum = parts[0][0] + parts[0][1];
  if constexpr (sizeof(T) == 4) sum += parts[0][2] + parts[0][3];
  return sum;
}

// ---- at most kNarrow columns: R rows of A at once, vectors along the rows of A ---------------------------------------------------

// one vector of columns: sums += A x and y += Aᵀ w for R rows
template <int R, int K, bool forward, bool backward, bool whole, class S, class T>
HPCHESS_INLINE void narrow_step(const S* A, std::int64_t lda, std::int64_t ahead, int n, const T* Xt, T* Yt, std::int64_t ldt,
                                const T* weights, typename Vector<T>::type* sum) {
  using V = typename Vector<T>::type;
  V x[K], y[K], a;
#pragma GCC unroll 4
  for (int j = 0; j < K; ++j) {
    if (forward) whole ? load(Xt + j * ldt, x[j]) : load(Xt + j * ldt, n, x[j]);
    if (backward) whole ? load(Yt + j * ldt, y[j]) : load(Yt + j * ldt, n, y[j]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i) {
    __builtin_prefetch(A + i * lda + ahead);
    whole ? load(A + i * lda, a) : load(A + i * lda, n, a);
#pragma GCC unroll 4
    for (int j = 0; j < K; ++j) {
      if (forward) sum[i * K + j] += a * x[j];
      if (backward) y[j] += a * weights[i * K + j];
    }
  }
#pragma GCC unroll 4
  for (int j = 0; backward && j < K; ++j) {
    if (whole)
      std::memcpy(Yt + j * ldt, &y[j], sizeof(V));
    else
      store(Yt + j * ldt, n, y[j]);
  }
}

// R rows: Y [R, K] += alpha A X, Yt [K, cols] += alpha (Aᵀ W)ᵀ
template <int R, int K, bool forward, bool backward, class S, class T>
HPCHESS_INLINE void narrow_rows(const S* A, std::int64_t lda, std::int64_t ahead, int cols, const T* Xt, T* Y, const T* W, T* Yt,
                                T alpha) {
  constexpr int lanes = Vector<T>::lanes;
  typename Vector<T>::type sum[R * K];
  T weights[R * K];
#pragma GCC unroll 16
  for (int i = 0; i < R * K; ++i) {
    if (forward) sum[i] = typename Vector<T>::type{};
    if (backward) weights[i] = alpha * W[i];
  }
  int c = 0;
  for (; c + lanes <= cols; c += lanes)
    narrow_step<R, K, forward, backward, true>(A + c, lda, ahead, lanes, Xt + c, Yt + c, cols, weights, sum);
  if (c < cols) narrow_step<R, K, forward, backward, false>(A + c, lda, ahead, cols - c, Xt + c, Yt + c, cols, weights, sum);
#pragma GCC unroll 16
  for (int i = 0; forward && i < R * K; ++i) Y[i] += alpha * total<T>(sum[i]);
}

template <int K, bool forward, bool backward, class S, class T>
HPCHESS_INLINE void narrow(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, T* Y, const T* W, T* Yt, T alpha) {
  constexpr int R = K < 3 ? 4 : 2;
  std::int64_t ahead = R * lda;  // the rows after these, or still later ones: blocks lie one after another, so past a block's end too
  while (ahead * std::int64_t(sizeof(S)) < kAhead) ahead += R * lda;
  int r = 0;
  for (; r + R <= rows; r += R)
    narrow_rows<R, K, forward, backward>(A + r * lda, lda, ahead, cols, Xt, Y + r * K, W + r * K, Yt, alpha);
  for (; r < rows; ++r) narrow_rows<1, K, forward, backward>(A + r * lda, lda, ahead, cols, Xt, Y + r * K, W + r * K, Yt, alpha);
}

template <bool forward, bool backward, class S, class T>
void narrow_columns(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, T* Y, const T* W, T* Yt, int k, T alpha) {
  if (k == 1) narrow<1, forward, backward>(A, lda, rows, cols, Xt, Y, W, Yt, alpha);
  if (k == 2) narrow<2, forward, backward>(A, lda, rows, cols, Xt, Y, W, Yt, alpha);
  if (k == 3) narrow<3, forward, backward>(A, lda, rows, cols, Xt, Y, W, Yt, alpha);
  if (k == 4) narrow<4, forward, backward>(A, lda, rows, cols, Xt, Y, W, Yt, alpha);
}

// ---- more columns: R outputs × V vectors in registers, entries of A broadcast -------------------------------------------------------

constexpr int kVectors = HPCHESS_BYTES == 64 ? 4 : 2;  // of a panel of columns: with R outputs they fill the registers
constexpr int kReuse = 32 << 10;                        // bytes of a panel of X that stays in the first cache

// Y[i, :] += alpha Σ_{j < n} a_ij X[j, :] for R outputs i and V vectors of columns, the last of `last` lanes;
// a_ij = A[j, i] where transposed, else A[i, j]
template <int R, int V, bool transposed, class T>
HPCHESS_INLINE void tile(const T* A, std::int64_t lda, int n, const T* X, std::int64_t k, T alpha, T* Y, int last) {
  using Vec = typename Vector<T>::type;
  constexpr int lanes = Vector<T>::lanes;
  Vec sum[R * V];
#pragma GCC unroll 32
  for (int i = 0; i < R * V; ++i) sum[i] = Vec{};
  for (int j = 0; j < n; ++j, X += k, A += transposed ? lda : 1) {
    Vec x[V];
#pragma GCC unroll 4
    for (int v = 0; v < V - 1; ++v) load(X + v * lanes, x[v]);
    load(X + (V - 1) * lanes, last, x[V - 1]);
    if (transposed) {
      __builtin_prefetch(A + kLine / sizeof(T), 0, 2);  // the columns after these
    } else if (j % (kLine / sizeof(T)) == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) __builtin_prefetch(A + (R + i) * lda, 0, 2);  // the rows after these
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const T a = A[transposed ? i : i * lda];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[i * V + v] += x[v] * a;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      Vec y;
      T* at = Y + i * k + v * lanes;
      if (v < V - 1) {
        load(at, y);
        y += sum[i * V + v] * alpha;
        std::memcpy(at, &y, sizeof y);
      } else {
        load(at, last, y);
        y += sum[i * V + v] * alpha;
        store(at, last, y);
      }
    }
  }
}

// all `outputs`, R at a time, then half as many
template <int R, int V, bool transposed, class T>
HPCHESS_INLINE void tiles(const T* A, std::int64_t lda, int outputs, int n, const T* X, std::int64_t k, T alpha, T* Y, int last) {
  const std::int64_t step = transposed ? 1 : lda;
  int i = 0;
  for (; i + R <= outputs; i += R) tile<R, V, transposed>(A + i * step, lda, n, X, k, alpha, Y + i * k, last);
  if constexpr (R > 1)
    if (i < outputs) tiles<R / 2, V, transposed>(A + i * step, lda, outputs - i, n, X, k, alpha, Y + i * k, last);
}

template <int V, bool transposed, class T>
void panel(const T* A, std::int64_t lda, int outputs, int n, const T* X, std::int64_t k, T alpha, T* Y, int last) {
  constexpr int R = HPCHESS_BYTES == 64 ? (V == 4 ? 6 : V == 3 ? 8 : 12) : (V == 2 ? 6 : 8), most = kReuse / (V * HPCHESS_BYTES);
  for (int j = 0; j < n; j += most)
    tiles<R, V, transposed>(A + j * (transposed ? lda : 1), lda, outputs, n - j < most ? n - j : most, X + j * k, k, alpha, Y, last);
}

// Y [outputs, k] += alpha op(A) X, X [n, k]
template <bool transposed, class T>
void wide(const T* A, std::int64_t lda, int outputs, int n, const T* X, std::int64_t k, T alpha, T* Y) {
  constexpr int lanes = Vector<T>::lanes;
  for (std::int64_t c = 0; c < k; c += kVectors * lanes) {
    const int width = static_cast<int>(k - c < kVectors * lanes ? k - c : kVectors * lanes), vectors = (width + lanes - 1) / lanes;
    const int last = width - (vectors - 1) * lanes;
    if (vectors == 1) panel<1, transposed>(A, lda, outputs, n, X + c, k, alpha, Y + c, last);
    if (vectors == 2) panel<2, transposed>(A, lda, outputs, n, X + c, k, alpha, Y + c, last);
    if constexpr (kVectors == 4) {
      if (vectors == 3) panel<3, transposed>(A, lda, outputs, n, X + c, k, alpha, Y + c, last);
      if (vectors == 4) panel<4, transposed>(A, lda, outputs, n, X + c, k, alpha, Y + c, last);
    }
  }
}

// to [rows, cols] = A
template <class S, class T>
void convert(const S* A, std::int64_t lda, int rows, int cols, T* to) {
  constexpr int lanes = Vector<T>::lanes;
  for (int r = 0; r < rows; ++r, A += lda, to += cols) {
    typename Vector<T>::type v;
    int c = 0;
    for (; c + lanes <= cols; c += lanes) {
      load(A + c, v);
      std::memcpy(to + c, &v, sizeof v);
    }
    for (; c < cols; ++c) to[c] = static_cast<T>(A[c]);
  }
}

// the directions that have their outputs (Y, Yt); one at least
template <class S, class T>
void narrow_both(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, T* Y, const T* W, T* Yt, int k, T alpha) {
  if (Y && Yt)
    narrow_columns<true, true>(A, lda, rows, cols, Xt, Y, W, Yt, k, alpha);
  else if (Y)
    narrow_columns<true, false>(A, lda, rows, cols, Xt, Y, Y, Y, k, alpha);
  else
    narrow_columns<false, true>(A, lda, rows, cols, W, Yt, W, Yt, k, alpha);
}
