// Y[y_starts[i] :] += alpha op(A_i) X[x_starts[i] :] over a ragged batch, row-major, without atomics.
//
// A task is a range of at most 64 rows of Y with all blocks that write there, members[tasks[t][0]] … members[tasks[t][1] − 1]
// in block order (backend/cuda_plan.py): one CUDA block owns the rows, so sums do not depend on the schedule. Where x_rows
// (y_rows) is not null, row p of X (of Y) is x_rows[p] (y_rows[p]). Entries of the stored type S are converted to the
// vectors' type T as they are read.

constexpr int kTile = 64, kDepth = 16, kNarrow = 8;

struct Batch {
  const i64 *rows, *cols, *offsets, *x_starts, *y_starts, *members, *tasks, *x_rows, *y_rows;
  i64 k, transpose;
};

struct Block {  // one block inside a task: op(A) [m, n], its rows lo … hi − 1 of Y
  i64 n, lda, x, y, lo, hi, at;
};

__device__ inline Block block_of(const Batch& b, i64 member, i64 begin, i64 end) {
  const i64 i = b.members[member], m = b.transpose ? b.cols[i] : b.rows[i], y = b.y_starts[i];
  return {b.transpose ? b.rows[i] : b.cols[i], b.cols[i], b.x_starts[i], y, begin > y ? begin : y, end < y + m ? end : y + m,
          b.offsets[i]};
}

__device__ inline i64 mapped(const i64* map, i64 row) { return map ? map[row] : row; }

// 64 columns of X at blockIdx.y; 4 × 4 numbers a thread
template <class S, class T>
__device__ void multiply_tile(const S* A, const Batch& b, const T* X, T* Y, T alpha) {
  __shared__ T As[kDepth][kTile + 1];
  __shared__ T Xs[kDepth][kTile + 1];
  const i64* task = b.tasks + 4 * i64(blockIdx.x);
  const i64 begin = task[2], end = task[3], column0 = i64(blockIdx.y) * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  T sum[4][4] = {};
  for (i64 member = task[0]; member < task[1]; ++member) {
    const Block o = block_of(b, member, begin, end);
    if (o.lo >= o.hi) continue;
    for (i64 p0 = 0; p0 < o.n; p0 += kDepth) {
      for (int e = threadIdx.x; e < kDepth * kTile; e += kThreads) {
        const int p = b.transpose ? e / kTile : e % kDepth, r = b.transpose ? e % kTile : e / kDepth;
        const i64 row = begin + r, q = p0 + p;
        T entry = 0;
        if (row >= o.lo && row < o.hi && q < o.n)
          entry = T(A[o.at + (b.transpose ? q * o.lda + (row - o.y) : (row - o.y) * o.lda + q)]);
        As[p][r] = entry;
      }
      for (int e = threadIdx.x; e < kDepth * kTile; e += kThreads) {
        const int p = e / kTile, c = e % kTile;
        const i64 q = p0 + p, column = column0 + c;
        Xs[p][c] = q < o.n && column < b.k ? X[mapped(b.x_rows, o.x + q) * b.k + column] : T(0);
      }
      __syncthreads();
      for (int p = 0; p < kDepth; ++p) {
        T a[4], x[4];
        for (int j = 0; j < 4; ++j) {
          a[j] = As[p][ty + 16 * j];
          x[j] = Xs[p][tx + 16 * j];
        }
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) sum[i][j] += a[i] * x[j];
      }
      __syncthreads();
    }
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const i64 row = begin + ty + 16 * i, column = column0 + tx + 16 * j;
      if (row < end && column < b.k) Y[mapped(b.y_rows, row) * b.k + column] += alpha * sum[i][j];
    }
}

// k ≤ 8 and op(A) = A: a warp a row, its lanes along the row
template <class S, class T>
__device__ void multiply_narrow(const S* A, const Batch& b, const T* X, T* Y, T alpha) {
  const i64* task = b.tasks + 4 * i64(blockIdx.x);
  const int lane = threadIdx.x % 32;
  for (i64 row = task[2] + threadIdx.x / 32; row < task[3]; row += kWarps) {
    T sum[kNarrow] = {};
    for (i64 member = task[0]; member < task[1]; ++member) {
      const Block o = block_of(b, member, row, row + 1);
      if (o.lo >= o.hi) continue;
      for (i64 q = lane; q < o.n; q += 32) {
        const T a = T(A[o.at + (row - o.y) * o.lda + q]);
        const T* x = X + mapped(b.x_rows, o.x + q) * b.k;
        for (int c = 0; c < kNarrow; ++c)
          if (c < b.k) sum[c] += a * x[c];
      }
    }
    for (int c = 0; c < kNarrow; ++c)
      if (c < b.k) {
        const T total = warp_sum(sum[c]);
        if (lane == 0) Y[mapped(b.y_rows, row) * b.k + c] += alpha * total;
      }
  }
}

// k ≤ 8 and op(A) = Aᵀ: threads along 64 columns of A, four strips of its rows
template <class S, class T>
__device__ void multiply_narrow_transposed(const S* A, const Batch& b, const T* X, T* Y, T alpha) {
  __shared__ T part[kThreads][kNarrow];
  const i64* task = b.tasks + 4 * i64(blockIdx.x);
  const i64 row = task[2] + threadIdx.x % kTile;
  T sum[kNarrow] = {};
  for (i64 member = task[0]; member < task[1] && row < task[3]; ++member) {
    const Block o = block_of(b, member, row, row + 1);
    if (o.lo >= o.hi) continue;
    for (i64 q = threadIdx.x / kTile; q < o.n; q += kThreads / kTile) {
      const T a = T(A[o.at + q * o.lda + (row - o.y)]);
      const T* x = X + mapped(b.x_rows, o.x + q) * b.k;
      for (int c = 0; c < kNarrow; ++c)
        if (c < b.k) sum[c] += a * x[c];
    }
  }
  for (int c = 0; c < kNarrow; ++c) part[threadIdx.x][c] = sum[c];
  __syncthreads();
  if (threadIdx.x < kTile && row < task[3])
    for (int c = 0; c < kNarrow; ++c)
      if (c < b.k) {
        T total = 0;
        for (int strip = 0; strip < kThreads / kTile; ++strip) total += part[threadIdx.x + strip * kTile][c];
        Y[mapped(b.y_rows, row) * b.k + c] += alpha * total;
      }
}

#define KERNELS(S, s, T, t)                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) multiply_tile_##s##_##t(                                                   \
      const S* A, const i64* rows, const i64* cols, const i64* offsets, const i64* x_starts, const i64* y_starts,              \
      const i64* members, const i64* tasks, const i64* x_rows, const i64* y_rows, const T* X, T* Y, i64 k, i64 transpose,      \
      double alpha) {                                                                                                          \
    const Batch b{rows, cols, offsets, x_starts, y_starts, members, tasks, x_rows, y_rows, k, transpose};                      \
    multiply_tile<S, T>(A, b, X, Y, T(alpha));                                                                                 \
  }                                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256) multiply_narrow_##s##_##t(                                                 \
      const S* A, const i64* rows, const i64* cols, const i64* offsets, const i64* x_starts, const i64* y_starts,              \
      const i64* members, const i64* tasks, const i64* x_rows, const i64* y_rows, const T* X, T* Y, i64 k, i64 transpose,      \
      double alpha) {                                                                                                          \
    const Batch b{rows, cols, offsets, x_starts, y_starts, members, tasks, x_rows, y_rows, k, transpose};                      \
    if (transpose)                                                                                                             \
      multiply_narrow_transposed<S, T>(A, b, X, Y, T(alpha));                                                                  \
    else                                                                                                                       \
      multiply_narrow<S, T>(A, b, X, Y, T(alpha));                                                                             \
  }

KERNELS(float, float32, float, float32)
KERNELS(double, float64, double, float64)
KERNELS(float, float32, double, float64)
KERNELS(double, float64, float, float32)
