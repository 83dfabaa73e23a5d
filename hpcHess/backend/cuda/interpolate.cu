// Column-pivoted Householder QR (Businger & Golub 1965) of S_i = R_iᵀ to a tolerance, one CUDA block a matrix: see
// backend/interpolate.py.
//
// A column of S is a row of R, contiguous, a warp at a time; norms of what is left are computed afresh in float64 in the pass
// that applies a reflection, so nothing is downdated.

__device__ inline double corrected_tail(double tail, i64 r, i64 m, i64 k, double n) {
  if (r == m) return 0;
  if (double(r) >= n) return 1.0 / 0.0;
  return tail > 0 ? tail / sqrt(double(k)) / (1 - double(r) / n) : 0;
}

// R [Σ m, k] becomes the factors (rows in place), order [Σ m] the pivots first; squares [Σ m] is workspace
template <class T>
__device__ void pivoted_qr(T* all, const i64* starts, i64 k, const double* tolerances, const i64* limits, const double* samples,
                           i64* orders, double* all_squares, i64* ranks, double* residuals) {
  __shared__ double best_of[kWarps];
  __shared__ i64 where_of[kWarps];
  const i64 b = blockIdx.x, m = starts[b + 1] - starts[b], limit = limits[b];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T* R = all + starts[b] * k;
  i64* order = orders + starts[b];
  double *squares = all_squares + starts[b], scale = 0, residual = 0;
  for (i64 e = threadIdx.x; e < m * k; e += kThreads) {
    const double size = fabs(double(R[e]));
    if (!(scale >= size)) scale = scale != scale ? scale : size;
  }
  scale = block_max(scale);
  for (i64 j = threadIdx.x; j < m; j += kThreads) order[j] = j;
  if (!(scale > 0 && scale < 1.0 / 0.0)) {  // nothing, or NaN or Inf
    if (threadIdx.x == 0) {
      ranks[b] = 0;
      residuals[b] = scale == 0 ? corrected_tail(0, 0, m, k, samples[b]) : scale - scale;
    }
    return;
  }
  for (i64 e = threadIdx.x; e < m * k; e += kThreads) R[e] = T(R[e] / T(scale));
  __syncthreads();
  for (i64 j = warp; j < m; j += kWarps) {
    double square = 0;
    for (i64 p = lane; p < k; p += 32) square += double(R[j * k + p]) * double(R[j * k + p]);
    square = warp_sum(square);
    if (lane == 0) squares[j] = square;
  }
  __syncthreads();
  i64 r = 0;
  for (;; ++r) {
    // what is left, and the largest of it (the first of equals)
    double tail = 0, best = -1;
    i64 where = m;
    for (i64 j = r + threadIdx.x; j < m; j += kThreads) {
      tail += squares[j];
      if (squares[j] > best) {
        best = squares[j];
        where = j;
      }
    }
    tail = block_sum(tail);
    residual = corrected_tail(scale * sqrt(tail), r, m, k, samples[b]);
    if (residual <= tolerances[b] || r == limit) break;
    for (int other = 16; other; other /= 2) {
      const double value = __shfl_xor_sync(0xffffffffu, best, other);
      const i64 at = __shfl_xor_sync(0xffffffffu, where, other);
      if (value > best || (value == best && at < where)) {
        best = value;
        where = at;
      }
    }
    if (lane == 0) {
      best_of[warp] = best;
      where_of[warp] = where;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w)
      if (best_of[w] > best || (best_of[w] == best && where_of[w] < where)) {
        best = best_of[w];
        where = where_of[w];
      }
    if (threadIdx.x == 0) {
      const i64 pivot = order[where];
      order[where] = order[r];
      order[r] = pivot;
      squares[where] = squares[r];
    }
    __syncthreads();
    // reflection v = x − βe: β = −sign(x₀)‖x‖, ‖v‖² = 2‖x‖(‖x‖ + |x₀|)
    T* x = R + order[r] * k;
    double square = 0;
    for (i64 p = r + threadIdx.x; p < k; p += kThreads) square += double(x[p]) * double(x[p]);
    const double norm = sqrt(block_sum(square)), x0 = double(x[r]);
    const T beta = T(x0 < 0 ? norm : -norm), v0 = T(x0) - beta;
    const T twice = norm > 0 ? T(1 / (norm * (norm + fabs(x0)))) : T(0);
    __syncthreads();  // x[r] was read
    if (threadIdx.x == 0) x[r] = v0;
    __syncthreads();
    for (i64 j = r + 1 + warp; j < m; j += kWarps) {
      T* y = R + order[j] * k;
      T inner = 0;
      for (i64 p = r + lane; p < k; p += 32) inner += x[p] * y[p];
      inner = warp_sum(inner) * twice;
      double left = 0;
      for (i64 p = r + lane; p < k; p += 32) {
        const T value = y[p] - inner * x[p];
        y[p] = value;
        if (p > r) left += double(value) * double(value);
      }
      left = warp_sum(left);
      if (lane == 0) squares[j] = left;
    }
    __syncthreads();
    if (threadIdx.x == 0) x[r] = beta;
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    ranks[b] = r;
    residuals[b] = residual;
  }
}

// T_i = R₁₁⁻¹R₁₂ [r, m − r] at offsets[i], columns in the order of order[r :], a thread a column
template <class T>
__device__ void interpolation(const T* all, const i64* starts, i64 k, const i64* orders, const i64* ranks, const i64* offsets, T* result) {
  const i64 b = blockIdx.x, r = ranks[b], width = starts[b + 1] - starts[b] - r;
  const T* R = all + starts[b] * k;
  const i64* order = orders + starts[b];
  T* X = result + offsets[b];
  for (i64 c = threadIdx.x; c < width; c += kThreads) {
    const T* y = R + order[r + c] * k;
    for (i64 i = r - 1; i >= 0; --i) {
      T sum = y[i];
      for (i64 j = i + 1; j < r; ++j) sum -= R[order[j] * k + i] * X[j * width + c];
      X[i * width + c] = sum / R[order[i] * k + i];
    }
  }
}

#define KERNELS(T, t)                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256) pivoted_qr_##t(                                                             \
      T* R, const i64* starts, i64 k, const double* tolerances, const i64* limits, const double* samples, i64* orders,          \
      double* squares, i64* ranks, double* residuals) {                                                                         \
    pivoted_qr<T>(R, starts, k, tolerances, limits, samples, orders, squares, ranks, residuals);                                \
  }                                                                                                                             \
  extern "C" __global__ void __launch_bounds__(256) interpolation_##t(                                                          \
      const T* R, const i64* starts, i64 k, const i64* orders, const i64* ranks, const i64* offsets, T* result) {               \
    interpolation<T>(R, starts, k, orders, ranks, offsets, result);                                                             \
  }

KERNELS(float, float32)
KERNELS(double, float64)
