// Elementwise passes of a sweep through a network, multivectors over the samples [d, k, m] with the samples contiguous: row e of vector j
// begins at e · u0 + j · u1.

template <class T>
__device__ void scale_samples(const T* U, i64 u0, i64 u1, const T* s, i64 s0, T* out, i64 o0, i64 o1, i64 k, i64 m) {
  const i64 p = blockIdx.x;
  for (i64 e = i64(blockIdx.y) * kThreads + threadIdx.x; e < k * m; e += i64(gridDim.y) * kThreads) {
    const i64 j = e / m, i = e % m;
    out[p * o0 + j * o1 + i] = U[p * u0 + j * u1 + i] * s[p * s0 + i];
  }
}

// u ← p ∘ (u − Σ_e p_e u_e), u less its number of the sample's largest p before: nothing cancels then
template <class T>
__device__ void softmax_hessian(T* U, i64 u0, i64 u1, const T* p, i64 p0, i64 d, i64 k, i64 m) {
  for (i64 e = i64(blockIdx.x) * kThreads + threadIdx.x; e < k * m; e += i64(gridDim.x) * kThreads) {
    const i64 j = e / m, i = e % m;
    T* u = U + j * u1 + i;
    i64 top = 0;
    for (i64 c = 1; c < d; ++c)
      if (p[c * p0 + i] > p[top * p0 + i]) top = c;
    const T likeliest = u[top * u0];
    T mean = 0;
    for (i64 c = 0; c < d; ++c) mean += p[c * p0 + i] * (u[c * u0] - likeliest);
    for (i64 c = 0; c < d; ++c) u[c * u0] = p[c * p0 + i] * ((u[c * u0] - likeliest) - mean);
  }
}

#define KERNELS(T, t)                                                                                                       \
  extern "C" __global__ void __launch_bounds__(256) scale_samples_##t(const T* U, i64 u0, i64 u1, const T* s, i64 s0, T* out, \
                                                                      i64 o0, i64 o1, i64 k, i64 m) {                       \
    scale_samples<T>(U, u0, u1, s, s0, out, o0, o1, k, m);                                                                  \
  }                                                                                                                         \
  extern "C" __global__ void __launch_bounds__(256) softmax_hessian_##t(T* U, i64 u0, i64 u1, const T* p, i64 p0, i64 d,    \
                                                                        i64 k, i64 m) {                                     \
    softmax_hessian<T>(U, u0, u1, p, p0, d, k, m);                                                                          \
  }

KERNELS(float, float32)
KERNELS(double, float64)
