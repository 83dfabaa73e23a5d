// target[at[i] + r · lda[i] + c] = source_i[r, c] (or its transpose's entries): copies of a ragged batch into larger matrices.

template <class S, class T>
__device__ void place(const S* source, const i64* rows, const i64* cols, const i64* offsets, const i64* at, const i64* lda, T* target,
                      i64 transpose) {
  const i64 i = blockIdx.x, n = cols[i], size = rows[i] * n;
  for (i64 e = i64(blockIdx.y) * kThreads + threadIdx.x; e < size; e += i64(gridDim.y) * kThreads) {
    const i64 r = e / n, c = e % n;
    target[at[i] + (transpose ? c * lda[i] + r : r * lda[i] + c)] = T(source[offsets[i] + e]);
  }
}

#define KERNELS(S, s, T, t)                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) place_##s##_##t(const S* source, const i64* rows, const i64* cols, \
                                                                    const i64* offsets, const i64* at, const i64* lda, \
                                                                    T* target, i64 transpose) {                       \
    place<S, T>(source, rows, cols, offsets, at, lda, target, transpose);                                             \
  }

KERNELS(float, float32, float, float32)
KERNELS(double, float64, double, float64)
KERNELS(float, float32, double, float64)
KERNELS(double, float64, float, float32)
