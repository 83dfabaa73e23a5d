// Which of the compiled tiles this processor can run.
#include "dots.hpp"

namespace dots {

#define HPCHESS_SET_OF(set)                \
  namespace set {                          \
  const Kernels<float>& single();          \
  const Kernels<double>& twice();          \
  }
HPCHESS_SET_OF(plain)
#ifdef HPCHESS_SETS
HPCHESS_SET_OF(avx2)
HPCHESS_SET_OF(avx512)
namespace {
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"); }
}  // namespace
template <>
const Kernels<float>& kernels() { return has_avx512() ? avx512::single() : has_avx2() ? avx2::single() : plain::single(); }
template <>
const Kernels<double>& kernels() { return has_avx512() ? avx512::twice() : has_avx2() ? avx2::twice() : plain::twice(); }
#else
template <>
const Kernels<float>& kernels() { return plain::single(); }
template <>
const Kernels<double>& kernels() { return plain::twice(); }
#endif

}  // namespace dots
