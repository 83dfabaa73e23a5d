// Independent tasks on OpenMP threads, BLAS with one thread inside each.
#pragma once
#include <cstdint>
#include <exception>

extern "C" {
// OpenBLAS only; absent (null) in other libraries. MKL and OpenMP builds of OpenBLAS see the parallel region themselves.
void openblas_set_num_threads(int) __attribute__((weak));
int openblas_get_num_threads(void) __attribute__((weak));
}

class SerialBlas {  // a pthreads OpenBLAS would start its own threads in every task
 public:
  SerialBlas() {
    if (openblas_get_num_threads && openblas_set_num_threads) {
      before_ = openblas_get_num_threads();
      if (before_ != 1) openblas_set_num_threads(1);
    }
  }
  ~SerialBlas() {
    if (before_ > 1) openblas_set_num_threads(before_);
  }
  SerialBlas(const SerialBlas&) = delete;
  SerialBlas& operator=(const SerialBlas&) = delete;

 private:
  int before_ = 1;
};

constexpr double kWorthThreads = 1 << 20;  // multiplications below which waking threads costs more than they save

// run(i) for i in [0, n), in any order; what a task computes must not depend on the number of threads.
// `work` is the number of multiplications of all tasks together, roughly.
// The first exception is rethrown on the calling thread.
template <class Run>
void for_each_task(std::int64_t n, double work, const Run& run) {
  SerialBlas serial;
  std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic, 1) if (n > 1 && work > kWorthThreads)
  for (std::int64_t i = 0; i < n; ++i) {
    try {
      run(i);
    } catch (...) {
#pragma omp critical
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}
