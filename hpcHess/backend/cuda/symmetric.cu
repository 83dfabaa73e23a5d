// Both products of symmetric pairs, B_i X[col_at[i] :] and B_iᵀ X[row_at[i] :], with every block read once, for k ≤ 4 columns.
//
// A task is (block, first row, last row, row of the workspace for B X, row for its share of BᵀX or −1): at most 64 rows of a
// block. Shares are summed by add_rows in a fixed order, so there are no atomics.

constexpr int kFew = 4, kRows = 64;

template <class S, class T>
__device__ void symmetric_parts(const S* A, const i64* cols, const i64* offsets, const i64* row_at, const i64* col_at, const i64* tasks,
                                const T* X, T* W, i64 k) {
  __shared__ T part[kWarps][32][kFew];
  const i64* task = tasks + 5 * i64(blockIdx.x);
  const i64 i = task[0], first = task[1], last = task[2], n = cols[i], x_rows = row_at[i], x_cols = col_at[i];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  T sums[kRows / kWarps][kFew] = {};
  for (i64 column0 = 0; column0 < n; column0 += 32) {
    const i64 column = column0 + lane;
    T down[kFew] = {}, x[kFew] = {};
    for (int c = 0; c < kFew; ++c)
      if (c < k && column < n) x[c] = X[(x_cols + column) * k + c];
    for (int j = 0; j < kRows / kWarps; ++j) {
      const i64 row = first + warp + j * kWarps;
      if (row >= last || column >= n) continue;
      const T a = T(A[offsets[i] + row * n + column]);
      for (int c = 0; c < kFew; ++c)
        if (c < k) {
          sums[j][c] += a * x[c];
          down[c] += a * X[(x_rows + row) * k + c];
        }
    }
    if (task[4] < 0) continue;  // a diagonal pair
    for (int c = 0; c < kFew; ++c) part[warp][lane][c] = down[c];
    __syncthreads();
    if (threadIdx.x < 32 && column < n)
      for (int c = 0; c < kFew; ++c)
        if (c < k) {
          T total = 0;
          for (int w = 0; w < kWarps; ++w) total += part[w][lane][c];
          W[(task[4] + column) * k + c] = total;
        }
    __syncthreads();
  }
  for (int j = 0; j < kRows / kWarps; ++j) {
    const i64 row = first + warp + j * kWarps;
    for (int c = 0; c < kFew; ++c)
      if (c < k) {
        const T total = warp_sum(sums[j][c]);
        if (lane == 0 && row < last) W[(task[3] + row - first) * k + c] = total;
      }
  }
}

// Y[rows[i]] += alpha Σ W[sources[j]], j = starts[i] … starts[i + 1] − 1
template <class T>
__device__ void add_rows(const T* W, const i64* rows, const i64* starts, const i64* sources, i64 n, T* Y, i64 k, T alpha) {
  const i64 at = i64(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= n * k) return;
  const i64 i = at / k, c = at % k;
  T sum = 0;
  for (i64 j = starts[i]; j < starts[i + 1]; ++j) sum += W[sources[j] * k + c];
  Y[rows[i] * k + c] += alpha * sum;
}

#define KERNELS(S, s, T, t)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) symmetric_parts_##s##_##t(                                                  \
      const S* A, const i64* cols, const i64* offsets, const i64* row_at, const i64* col_at, const i64* tasks, const T* X, T* W,\
      i64 k) {                                                                                                                  \
    symmetric_parts<S, T>(A, cols, offsets, row_at, col_at, tasks, X, W, k);                                                    \
  }
#define ADD_ROWS(T, t)                                                                                                          \
  extern "C" __global__ void __launch_bounds__(256) add_rows_##t(const T* W, const i64* rows, const i64* starts,               \
                                                                 const i64* sources, i64 n, T* Y, i64 k, double alpha) {       \
    add_rows<T>(W, rows, starts, sources, n, Y, k, T(alpha));                                                                   \
  }

KERNELS(float, float32, float, float32)
KERNELS(double, float64, double, float64)
KERNELS(float, float32, double, float64)
KERNELS(double, float64, float, float32)
ADD_ROWS(float, float32)
ADD_ROWS(double, float64)
