// The kernels of pivoted.cpp for one instruction set: included there once for each, inside a namespace, with HPCHESS_BYTES of a vector
// (no #pragma once: that is the point).

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int n = HPCHESS_BYTES / 4;
  typedef float type __attribute__((vector_size(HPCHESS_BYTES)));
  typedef double twice __attribute__((vector_size(2 * HPCHESS_BYTES)));
};
template <>
struct Lanes<double> {
  static constexpr int n = HPCHESS_BYTES / 8;
  typedef double type __attribute__((vector_size(HPCHESS_BYTES)));
  typedef double twice __attribute__((vector_size(HPCHESS_BYTES)));
};

template <class V, class T>
HPCHESS_INLINE void load(const T* p, V& v) {
  std::memcpy(&v, p, sizeof v);
}
template <class V, class T>
HPCHESS_INLINE void store(const V& v, T* p) {
  std::memcpy(p, &v, sizeof v);
}

// G lines of every row; U rows at a time in the scalar products, for the latency of their sums
template <int G, int U, class T>
HPCHESS_INLINE void reflect_lines(T* A, std::int64_t ld, int rows, const T* v, T tau, T* squares) {
  using V = typename Lanes<T>::type;
  constexpr int lanes = Lanes<T>::n;
  V w[G], part[U * G], a;
#pragma GCC unroll 8
  for (int i = 0; i < U * G; ++i) part[i] = V{};
  int i = 0;
  for (; i + U <= rows; i += U) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        load(A + (i + u) * ld + g * lanes, a);
        part[u * G + g] += v[i + u] * a;
      }
    }
  }
  for (; i < rows; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      load(A + i * ld + g * lanes, a);
      part[g] += v[i] * a;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    w[g] = part[g];
#pragma GCC unroll 8
    for (int u = 1; u < U; ++u) w[g] += part[u * G + g];
    w[g] *= tau;
    load(A + g * lanes, a);
    a -= w[g];
    store(a, A + g * lanes);
  }
  V square[2 * G];
#pragma GCC unroll 8
  for (int g = 0; g < 2 * G; ++g) square[g] = V{};
  i = 1;
  for (; i + 2 <= rows; i += 2) {
#pragma GCC unroll 8
    for (int u = 0; u < 2; ++u) {
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) {
        load(A + (i + u) * ld + g * lanes, a);
        a -= v[i + u] * w[g];
        store(a, A + (i + u) * ld + g * lanes);
        square[u * G + g] += a * a;
      }
    }
  }
  for (; i < rows; ++i) {
#pragma GCC unroll 8
    for (int g = 0; g < G; ++g) {
      load(A + i * ld + g * lanes, a);
      a -= v[i] * w[g];
      store(a, A + i * ld + g * lanes);
      square[g] += a * a;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) store(square[g] + square[G + g], squares + g * lanes);
}

template <class T>
void reflect(T* A, std::int64_t ld, std::int64_t width, int rows, const T* v, T tau, T* squares) {
  constexpr int lanes = Lanes<T>::n;
  std::int64_t c = 0;
  for (; c + 4 * lanes <= width; c += 4 * lanes) reflect_lines<4, 2>(A + c, ld, rows, v, tau, squares + c);
  for (; c + 2 * lanes <= width; c += 2 * lanes) reflect_lines<2, 4>(A + c, ld, rows, v, tau, squares + c);
  for (; c < width; c += lanes) reflect_lines<1, 8>(A + c, ld, rows, v, tau, squares + c);
}

template <class T>
void column_squares(const T* A, std::int64_t ld, std::int64_t width, int rows, T* squares) {
  using V = typename Lanes<T>::type;
  constexpr int lanes = Lanes<T>::n;
  for (std::int64_t c = 0; c < width; c += lanes) {
    V sum = V{}, a;
    for (int i = 0; i < rows; ++i) {
      load(A + i * ld + c, a);
      sum += a * a;
    }
    store(sum, squares + c);
  }
}

template <class T>
double sum_of_squares(const T* a, std::int64_t n) {
  using V = typename Lanes<T>::type;
  using D = typename Lanes<T>::twice;
  constexpr int lanes = Lanes<T>::n;
  D sum[2] = {D{}, D{}};
  std::int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
#pragma GCC unroll 2
    for (int u = 0; u < 2; ++u) {
      V x;
      load(a + i + u * lanes, x);
      const D d = __builtin_convertvector(x, D);
      sum[u] += d * d;
    }
  }
  double result = 0;
  const D both = sum[0] + sum[1];
  for (int l = 0; l < lanes; ++l) result += both[l];
  for (; i < n; ++i) result += double(a[i]) * double(a[i]);
  return result;
}

template <class T>
double total(const T* s, std::int64_t n) {
  double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  std::int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int l = 0; l < 8; ++l) sum[l] += s[i + l] > 0 ? double(s[i + l]) : 0.0;
  for (; i < n; ++i) sum[0] += s[i] > 0 ? double(s[i]) : 0.0;
  return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

template <class T>
std::int64_t longest(const T* s, std::int64_t n) {
  using V = typename Lanes<T>::type;
  constexpr int lanes = Lanes<T>::n;
  T result = s[0];
  std::int64_t i = 0;
  if (n >= lanes) {
    V most, x;
    load(s, most);
    for (; i + lanes <= n; i += lanes) {
      load(s + i, x);
      most = x > most ? x : most;
    }
    for (int l = 0; l < lanes; ++l) result = most[l] > result ? most[l] : result;
  }
  for (; i < n; ++i) result = s[i] > result ? s[i] : result;
  std::int64_t at = 0;
  while (s[at] != result) ++at;
  return at;
}

template <class T>
T largest(const T* a, std::int64_t n) {
  using V = typename Lanes<T>::type;
  constexpr int lanes = Lanes<T>::n;
  V most = V{}, spoilt = V{};
  T result = 0, bad = 0;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    V x;
    load(a + i, x);
    spoilt += x * T(0);
    x = x < T(0) ? -x : x;
    most = x > most ? x : most;
  }
  for (int l = 0; l < lanes; ++l) {
    result = most[l] > result ? most[l] : result;
    bad += spoilt[l];
  }
  for (; i < n; ++i) {
    const T size = a[i] < 0 ? -a[i] : a[i];
    result = size > result ? size : result;
    bad += a[i] * T(0);
  }
  return bad == 0 ? result : T(NAN);
}

template <class T>
void transpose(const T* A, std::int64_t lda, int n, int k, T* out, std::int64_t ldo) {
  constexpr int tile = Lanes<T>::n;
  for (int c0 = 0; c0 < n; c0 += tile) {
    const int width = n - c0 < tile ? n - c0 : tile;
    if (width == tile) {
      for (int i = 0; i < k; ++i)
        for (int c = 0; c < tile; ++c) out[i * ldo + c0 + c] = A[(c0 + c) * lda + i];
    } else {
      for (int i = 0; i < k; ++i)
        for (int c = 0; c < width; ++c) out[i * ldo + c0 + c] = A[(c0 + c) * lda + i];
    }
  }
}
