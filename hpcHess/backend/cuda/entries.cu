// Entries of Gram-type matrices, a batch of blocks at once: see backend/entries.py for the formulas.
//
// A task is a tile of at most 32 × 32 entries: (block, first and end row, first and end column in the flat sides, the block's
// offset and columns in H). Its inputs of 32 samples lie in shared memory; for every neuron of the rows κ with the columns'
// neurons is made once, a warp a pair with its lanes along the samples. Sums over 32 samples are in the samples' type, sums
// of those in float64.

constexpr int kSide = 32;

template <class T>
struct Factors {
  const T *X, *slopes, *stored, *M, *gram, *output, *rest, *roots;
  const i64 *place, *layer_starts, *C;  // addresses of the layers' C, 0 where not stored
  i64 n, rank, layers, n_stored, separable;

  __device__ i64 last() const { return layer_starts[layers - 1]; }
  __device__ T slope(i64 p, i64 i) const { return p < last() ? slopes[p * n + i] : T(1); }
  __device__ const T* factor(i64 p) const {  // C e_p [rank, n], or null
    i64 layer = 0;
    while (p >= layer_starts[layer + 1]) ++layer;
    const T* C_layer = reinterpret_cast<const T*>(C[layer]);
    return C_layer ? C_layer + (p - layer_starts[layer]) * rank * n : nullptr;
  }

  __device__ T kappa(i64 p, i64 q, i64 i) const {
    if (p >= separable && q >= separable)
      return slope(p, i) * slope(q, i) * gram[(p - separable) * (layer_starts[layers] - separable) + q - separable];
    if (stored) {
      const i64 a = place[p], b = place[q];
      return stored[((a < b ? a : b) * n_stored + (a < b ? b : a)) * n + i];
    }
    const T *mine = factor(p), *other = factor(q);
    T sum = 0;
    if (mine && other) {
      for (i64 e = 0; e < rank; ++e) sum += mine[e * n + i] * other[e * n + i];
      return sum;
    }
    if (!mine && !other) {  // both in the last layer
      const T o = output[(p - last()) * n + i];
      if (p != q) return rest ? -o * output[(q - last()) * n + i] : T(0);
      return rest ? o * rest[(p - last()) * n + i] : o;
    }
    const T* one = mine ? mine : other;
    const i64 bare = mine ? q : p;
    if (output) return roots[(bare - last()) * n + i] * one[(bare - last()) * n + i];
    for (i64 e = 0; e < rank; ++e) sum += M[(bare - separable) * rank + e] * one[e * n + i];
    return sum * slope(bare, i);
  }
};

template <class S, class T>
__device__ void gram_entries(const Factors<T>& f, const i64* neuron_I, const i64* row_I, const i64* place_I, const i64* neuron_J,
                             const i64* row_J, const i64* place_J, const i64* tasks, double scale, S* H) {
  __shared__ T X_I[kSide][kSide + 1];
  __shared__ T X_J[kSide][kSide + 1];
  __shared__ T kappa[kSide][kSide + 1];
  __shared__ double sums[kSide][kSide];
  __shared__ int first_I[kSide + 1], first_J[kSide + 1], of_J[kSide], groups[2];
  const i64* task = tasks + 6 * i64(blockIdx.x);
  const i64 i0 = task[0], j0 = task[2];
  const int rows = int(task[1] - i0), cols = int(task[3] - j0), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    int count = 0;
    for (int r = 0; r < rows; ++r)
      if (r == 0 || neuron_I[i0 + r] != neuron_I[i0 + r - 1]) first_I[count++] = r;
    first_I[count] = rows;
    groups[0] = count;
    count = 0;
    for (int c = 0; c < cols; ++c) {
      if (c == 0 || neuron_J[j0 + c] != neuron_J[j0 + c - 1]) first_J[count++] = c;
      of_J[c] = count - 1;
    }
    groups[1] = count;
  }
  for (int e = threadIdx.x; e < kSide * kSide; e += kThreads) sums[e / kSide][e % kSide] = 0;
  for (i64 sample0 = 0; sample0 < f.n; sample0 += 32) {
    const i64 i = sample0 + lane;
    for (int r = warp; r < kSide; r += kWarps) {
      X_I[r][lane] = r < rows && i < f.n ? f.X[row_I[i0 + r] * f.n + i] : T(0);
      X_J[r][lane] = r < cols && i < f.n ? f.X[row_J[j0 + r] * f.n + i] : T(0);
    }
    __syncthreads();
    for (int a = 0; a < groups[0]; ++a) {
      const int first = first_I[a], height = first_I[a + 1] - first;
      for (int c = warp; c < groups[1]; c += kWarps)
        kappa[c][lane] = i < f.n ? f.kappa(neuron_I[i0 + first], neuron_J[j0 + first_J[c]], i) : T(0);
      __syncthreads();
      for (int e = threadIdx.x; e < height * cols; e += kThreads) {
        const int r = first + e / cols, c = e % cols;
        T sum = 0;
        for (int s = 0; s < 32; ++s) sum += X_I[r][s] * kappa[of_J[c]][s] * X_J[c][s];
        sums[r][c] += double(sum);
      }
      __syncthreads();
    }
  }
  for (int e = threadIdx.x; e < rows * cols; e += kThreads) {
    const int r = e / cols, c = e % cols;
    H[task[4] + place_I[i0 + r] * task[5] + place_J[j0 + c]] = S(sums[r][c] * scale);
  }
}

#define KERNELS(S, s, T, t)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) gram_entries_##s##_##t(                                                     \
      const T* X, const T* slopes, const T* stored, const T* M, const T* gram, const T* output, const T* rest, const T* roots,  \
      const i64* place, const i64* layer_starts, const i64* C, i64 n, i64 rank, i64 layers, i64 n_stored, i64 separable,        \
      const i64* neuron_I, const i64* row_I, const i64* place_I, const i64* neuron_J, const i64* row_J, const i64* place_J,     \
      const i64* tasks, double scale, S* H) {                                                                                   \
    const Factors<T> f{X, slopes, stored, M, gram, output, rest, roots, place, layer_starts, C, n, rank, layers, n_stored, separable}; \
    gram_entries<S, T>(f, neuron_I, row_I, place_I, neuron_J, row_J, place_J, tasks, scale, H);                                 \
  }

KERNELS(float, float32, float, float32)
KERNELS(double, float64, double, float64)
KERNELS(float, float32, double, float64)
KERNELS(double, float64, float, float32)
