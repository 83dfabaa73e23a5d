// Interpolative elimination of definite blocks, one CUDA block a matrix, in float64: see backend/elimination.py.
//
// Row-major. log_abs is NaN where X_RR is not positive definite or D̂ would outgrow max|A| by `growth`: the caller treats
// such blocks.

constexpr int kPanel = 16;

// X = LLᵀ in place (lower triangle, leading dimension c); false where a pivot is not positive
__device__ bool cholesky(double* X, i64 r, i64 c) {
  for (i64 panel = 0; panel < r; panel += kPanel) {
    const i64 end = panel + kPanel < r ? panel + kPanel : r;
    for (i64 j = panel; j < end; ++j) {
      const double pivot = X[j * c + j];
      if (!(pivot > 0 && pivot < 1.0 / 0.0)) return false;
      __syncthreads();  // the pivot was read
      const double root = sqrt(pivot);
      for (i64 i = j + threadIdx.x; i < r; i += kThreads) X[i * c + j] = i == j ? root : X[i * c + j] / root;
      __syncthreads();
      const i64 width = end - j - 1;
      for (i64 e = threadIdx.x; e < (r - j - 1) * width; e += kThreads) {
        const i64 i = j + 1 + e / width, q = j + 1 + e % width;
        if (q <= i) X[i * c + q] -= X[i * c + j] * X[q * c + j];
      }
      __syncthreads();
    }
    const i64 left = r - end;
    for (i64 e = threadIdx.x; e < left * left; e += kThreads) {
      const i64 i = end + e / left, q = end + e % left;
      if (q > i) continue;
      double sum = 0;
      for (i64 p = panel; p < end; ++p) sum += X[i * c + p] * X[q * c + p];
      X[i * c + q] -= sum;
    }
    __syncthreads();
  }
  return true;
}

// W = L⁻ᵀ [r, r]: first L⁻¹ row by row, then its transpose in place
__device__ void inverse_transposed(const double* L, i64 r, i64 c, double* W) {
  for (i64 j = 0; j < r; ++j) {
    for (i64 p = threadIdx.x; p < r; p += kThreads) {
      double sum = p == j ? 1 : 0;
      for (i64 q = p; q < j; ++q) sum -= L[j * c + q] * W[q * r + p];
      W[j * r + p] = p <= j ? sum / L[j * c + j] : 0;
    }
    __syncthreads();
  }
  for (i64 e = threadIdx.x; e < r * r; e += kThreads) {
    const i64 i = e / r, j = e % r;
    if (j >= i) continue;
    W[j * r + i] = W[i * r + j];
    W[i * r + j] = 0;
  }
  __syncthreads();
}

// X_JR and X_RR in place of D_JR and D_RR; `half` [s, r] is workspace. Z = D_JR − ½D_JJ T: X_RR = D_RR − TᵀZ − ZᵀT, X_JR = Z
// − ½D_JJ T
template <class S>
__device__ void decouple(double* D, const S* T, i64 s, i64 r, double* half) {
  const i64 c = s + r;
  for (i64 e = threadIdx.x; e < s * r; e += kThreads) {
    const i64 i = e / r, j = e % r;
    double sum = 0;
    for (i64 p = 0; p < s; ++p) sum += D[i * c + p] * double(T[p * r + j]);
    half[e] = sum / 2;
    D[i * c + s + j] -= sum / 2;
  }
  __syncthreads();
  for (i64 e = threadIdx.x; e < r * r; e += kThreads) {
    const i64 i = e / r, j = e % r;
    double sum = 0;
    for (i64 p = 0; p < s; ++p)
      sum += double(T[p * r + i]) * D[p * c + s + j] + D[p * c + s + i] * double(T[p * r + j]);
    D[(s + i) * c + s + j] -= sum;
  }
  __syncthreads();
  for (i64 e = threadIdx.x; e < s * r; e += kThreads) D[e / r * c + s + e % r] -= half[e];
  __syncthreads();
}

// Blocks [s + r]² of A at a_at, order at c_at, T [s, r] and K at t_at, W [r, r] at w_at, schur [s, s] at s_at; D as A is
// workspace
template <class S>
__device__ void eliminate_definite(const double* A, const i64* orders, const S* all_T, const i64* kept, const i64* eliminated,
                                   const i64* c_at, const i64* a_at, const i64* t_at, const i64* w_at, const i64* s_at, double* all_D,
                                   double* all_W, double* all_K, double* all_schur, double* log_abs, double growth) {
  const i64 b = blockIdx.x, s = kept[b], r = eliminated[b], c = s + r, *order = orders + c_at[b];
  const double* from = A + a_at[b];
  double *D = all_D + a_at[b], *W = all_W + w_at[b], *K = all_K + t_at[b], *schur = all_schur + s_at[b];
  double size = 0;
  for (i64 e = threadIdx.x; e < c * c; e += kThreads) {
    D[e] = from[order[e / c] * c + order[e % c]];
    size = fabs(D[e]) > size ? fabs(D[e]) : size;
  }
  size = block_max(size);
  __syncthreads();
  if (s && r) decouple<S>(D, all_T + t_at[b], s, r, K);
  double* X = D + s * c + s;
  const double refused = nan("");
  if (!cholesky(X, r, c)) {
    if (threadIdx.x == 0) log_abs[b] = refused;
    return;
  }
  inverse_transposed(X, r, c, W);
  for (i64 e = threadIdx.x; e < s * r; e += kThreads) {
    const i64 i = e / r, j = e % r;
    double sum = 0;
    for (i64 p = 0; p <= j; ++p) sum += D[i * c + s + p] * W[p * r + j];
    K[e] = sum;
  }
  __syncthreads();
  double largest = 0, logarithms = 0;
  for (i64 i = threadIdx.x; i < s; i += kThreads) {
    double update = 0;
    for (i64 p = 0; p < r; ++p) update += K[i * r + p] * K[i * r + p];
    if (!(largest >= update)) largest = largest != largest ? largest : update;
  }
  largest = block_max(largest);
  for (i64 e = threadIdx.x; e < s * s; e += kThreads) {
    const i64 i = e / s, j = e % s;
    double sum = 0;
    for (i64 p = 0; p < r; ++p) sum += K[i * r + p] * K[j * r + p];
    schur[e] = D[i * c + j] - sum;
  }
  for (i64 j = threadIdx.x; j < r; j += kThreads) logarithms += 2 * log(X[j * c + j]);
  logarithms = block_sum(logarithms);
  if (threadIdx.x == 0) log_abs[b] = largest <= growth * size || s == 0 ? logarithms : refused;
}

// largest[i] = max_j ‖W_i e_j‖² of blocks [rows, cols] (0 for none)
extern "C" __global__ void __launch_bounds__(256) column_squares(const double* W, const i64* rows, const i64* cols, const i64* offsets,
                                                                 double* largest) {
  const i64 b = blockIdx.x;
  double found = 0;
  for (i64 j = threadIdx.x; j < cols[b]; j += kThreads) {
    double sum = 0;
    for (i64 i = 0; i < rows[b]; ++i) sum += W[offsets[b] + i * cols[b] + j] * W[offsets[b] + i * cols[b] + j];
    if (!(found >= sum)) found = found != found ? found : sum;
  }
  found = block_max(found);
  if (threadIdx.x == 0) largest[b] = found;
}

#define KERNELS(S, s)                                                                                                           \
  extern "C" __global__ void __launch_bounds__(256) eliminate_definite_##s(                                                     \
      const double* A, const i64* order, const S* T, const i64* kept, const i64* eliminated, const i64* c_at, const i64* a_at, \
      const i64* t_at, const i64* w_at, const i64* s_at, double* D, double* W, double* K, double* schur, double* log_abs,       \
      double growth) {                                                                                                          \
    eliminate_definite<S>(A, order, T, kept, eliminated, c_at, a_at, t_at, w_at, s_at, D, W, K, schur, log_abs, growth);        \
  }

KERNELS(float, float32)
KERNELS(double, float64)
