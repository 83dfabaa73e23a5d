// Standard normal numbers by counter: Philox4x32-10 (Salmon and others, SC 2011) and Box–Muller, in float32.
//
// Entry (i, j) of the matrix with key (k0, k1) is number j mod 4 of the four that the counter (i mod 2³², i / 2³², j / 4, 0) gives:
// any rows and columns, in any order, by any thread. The logarithm and the sines are polynomials (Cephes: within 2 units in the last place),
// so that the compiler makes vectors of the lanes; the reference is backend/normal.py.
#include <cmath>

#include "arrays.hpp"
#include "tasks.hpp"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__)
#define HPCHESS_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define HPCHESS_CLONES
#endif
#define HPCHESS_INLINE __attribute__((always_inline)) inline

namespace {

constexpr int kLanes = 64;  // rows at a time: more than a compiler would unroll
constexpr std::int64_t kRows = 256;  // of a task

HPCHESS_INLINE float log_of(float x) {  // x > 0, normal
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x) - 0x3f3504f3;  // √½: the mantissa lies in [√½, √2)
  const float e = static_cast<float>(static_cast<std::int32_t>(bits) >> 23);
  const float m = __builtin_bit_cast(float, (bits & 0x007fffff) + 0x3f3504f3) - 1.0f, z = m * m;
  float p = 7.0376836292e-2f;
  p = p * m - 1.1514610310e-1f;
  p = p * m + 1.1676998740e-1f;
  p = p * m - 1.2420140846e-1f;
  p = p * m + 1.4249322787e-1f;
  p = p * m - 1.6668057665e-1f;
  p = p * m + 2.0000714765e-1f;
  p = p * m - 2.4999993993e-1f;
  p = p * m + 3.3333331174e-1f;
  return m + (m * z * p - 2.12194440e-4f * e - 0.5f * z) + 0.693359375f * e;
}

// (√(−2 ln u) cos πa, √(−2 ln u) sin πa), u = (⌊x / 2⁸⌋ + 1) / 2²⁴, a = y / 2³¹ as a signed number
HPCHESS_INLINE void box_muller(std::uint32_t x, std::uint32_t y, float& first, float& second) {
  const float u = static_cast<float>(static_cast<std::int32_t>(x >> 8) + 1) * 0x1p-24f;
  const std::int32_t turn = static_cast<std::int32_t>(y);
  const std::int32_t quarter = ((turn >> 29) + 1) >> 1;  // of a turn's fourths, the nearest: −2 … 2
  const std::int32_t rest = static_cast<std::int32_t>(y - (static_cast<std::uint32_t>(quarter) << 30));
  const float t = static_cast<float>(rest) * (3.14159265358979f * 0x1p-31f), z = t * t;  // |t| ≤ π/4
  const float s = t + t * z * ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f);
  const float c = 1.0f - 0.5f * z + z * z * ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f);
  const float r = __builtin_sqrtf(-2.0f * log_of(u));
  const bool odd = quarter & 1;
  const float cosine = odd ? s : c, sine = odd ? c : s;
  first = ((quarter + 1) & 2 ? -r : r) * cosine;
  second = (quarter & 2 ? -r : r) * sine;
}

struct Key {
  std::uint32_t first, second;
};

// numbers[4][kLanes] of kLanes rows
HPCHESS_INLINE void draw(const std::int64_t* rows, std::uint32_t group, Key key, float (*numbers)[kLanes]) {
  std::uint32_t x[4][kLanes];
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) {
    std::uint32_t c0 = static_cast<std::uint32_t>(rows[i]), c1 = static_cast<std::uint32_t>(static_cast<std::uint64_t>(rows[i]) >> 32);
    std::uint32_t c2 = group, c3 = 0;
#pragma GCC unroll 10
    for (std::uint32_t round = 0; round < 10; ++round) {
      const std::uint64_t a = std::uint64_t(0xD2511F53) * c0, b = std::uint64_t(0xCD9E8D57) * c2;
      c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ (key.first + round * 0x9E3779B9u);
      c1 = static_cast<std::uint32_t>(b);
      c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ (key.second + round * 0xBB67AE85u);
      c3 = static_cast<std::uint32_t>(a);
    }
    x[0][i] = c0, x[1][i] = c1, x[2][i] = c2, x[3][i] = c3;
  }
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) box_muller(x[0][i], x[1][i], numbers[0][i], numbers[1][i]);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) box_muller(x[2][i], x[3][i], numbers[2][i], numbers[3][i]);
}

// rows [n ≤ kRows], columns first … first + k − 1 → out [n, k]
HPCHESS_CLONES void fill(const std::int64_t* rows, int n, std::int64_t first, std::int64_t k, Key key, float* out) {
  float numbers[4][kLanes];
  std::int64_t padded[kLanes];
  for (int at = 0; at < n; at += kLanes) {
    const int lanes = n - at < kLanes ? n - at : kLanes;
    for (int i = 0; i < kLanes; ++i) padded[i] = rows[at + (i < lanes ? i : 0)];
    for (std::int64_t group = first / 4; group * 4 < first + k; ++group) {
      draw(padded, static_cast<std::uint32_t>(group), key, numbers);
      const std::int64_t lo = group * 4 - first;
      for (int i = 0; i < lanes; ++i) {
        float* row = out + (at + i) * k;
        if (lo >= 0 && lo + 4 <= k) {
          for (int j = 0; j < 4; ++j) row[lo + j] = numbers[j][i];
        } else {
          for (int j = 0; j < 4; ++j)
            if (lo + j >= 0 && lo + j < k) row[lo + j] = numbers[j][i];
        }
      }
    }
  }
}

void normal_rows(std::uint32_t k0, std::uint32_t k1, Index rows, std::int64_t first, Array<float, 2> out) {
  const std::int64_t n = std::int64_t(rows.shape(0)), k = std::int64_t(out.shape(1));
  if (std::int64_t(out.shape(0)) != n || first < 0 || first + k > std::int64_t(1) << 34) throw std::invalid_argument("normal_rows: shapes or columns");
  const std::int64_t* r = rows.data();
  float* result = out.data();
  nb::gil_scoped_release release;
  for_each_task((n + kRows - 1) / kRows, 8.0 * double(n) * double(k), [&](std::int64_t task) {
    const std::int64_t lo = task * kRows, count = n - lo < kRows ? n - lo : kRows;
    fill(r + lo, static_cast<int>(count), first, k, Key{k0, k1}, result + lo * k);
  });
}

}  // namespace

void bind_normal(nb::module_& m) {
  m.def("normal_rows", &normal_rows, nb::arg("k0"), nb::arg("k1"), nb::arg("rows").noconvert(), nb::arg("first"), nb::arg("out").noconvert());
}
