// Compiled for several instruction sets at once, the processor's is picked when the module is loaded: a package built on
// one machine of a cluster runs on all. The kernels are included once for each set, not cloned: vectors in a function that is
// inlined are split for the set of the file it stands in.
#include "pivoted.hpp"

#include <cstring>

#define HPCHESS_INLINE __attribute__((always_inline)) inline

namespace pivoted {
namespace {

namespace plain {
#define HPCHESS_BYTES 16
#include "pivoted_kernels.hpp"
#undef HPCHESS_BYTES
}  // namespace plain

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#define HPCHESS_BYTES 32
#include "pivoted_kernels.hpp"
#undef HPCHESS_BYTES
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
namespace avx512 {
#define HPCHESS_BYTES 64
#include "pivoted_kernels.hpp"
#undef HPCHESS_BYTES
}  // namespace avx512
#pragma GCC pop_options

const int kSet = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                         __builtin_cpu_supports("avx512bw")
                     ? 2
                     : (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0);
#define HPCHESS_PICK(...) return kSet == 2 ? avx512::__VA_ARGS__ : kSet == 1 ? avx2::__VA_ARGS__ : plain::__VA_ARGS__
#else
#define HPCHESS_PICK(...) return plain::__VA_ARGS__
#endif

}  // namespace

#define HPCHESS_PIVOTED(T)                                                                                       \
  void reflect(T* A, std::int64_t ld, std::int64_t width, int rows, const T* v, T tau, T* squares) {             \
    HPCHESS_PICK(reflect(A, ld, width, rows, v, tau, squares));                                                  \
  }                                                                                                              \
  void column_squares(const T* A, std::int64_t ld, std::int64_t width, int rows, T* squares) {                   \
    HPCHESS_PICK(column_squares(A, ld, width, rows, squares));                                                   \
  }                                                                                                              \
  double total(const T* squares, std::int64_t n) { HPCHESS_PICK(total(squares, n)); }                            \
  std::int64_t longest(const T* squares, std::int64_t n) { HPCHESS_PICK(longest(squares, n)); }                  \
  double sum_of_squares(const T* a, std::int64_t n) { HPCHESS_PICK(sum_of_squares(a, n)); }                      \
  T largest(const T* a, std::int64_t n) { HPCHESS_PICK(largest(a, n)); }                                         \
  void transpose(const T* A, std::int64_t lda, int n, int k, T* out, std::int64_t ldo) {                         \
    HPCHESS_PICK(transpose(A, lda, n, k, out, ldo));                                                             \
  }

HPCHESS_PIVOTED(float)
HPCHESS_PIVOTED(double)

}  // namespace pivoted
