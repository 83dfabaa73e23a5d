// What all kernels share; put before each source. NVRTC, nvcc and (with tests/backend/emulation.hpp) a host compiler read the
// same text. Integers are 64 bits wide, reals that are not entries are double: no argument depends on the platform.
typedef long long i64;

constexpr int kThreads = 256;  // of every CUDA block, 8 warps
constexpr int kWarps = kThreads / 32;

template <class T>
__device__ T warp_sum(T x) {
  for (int lane = 16; lane; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}

// Σ x over the CUDA block, the same number in every thread
__device__ double block_sum(double x) {
  __shared__ double part[kWarps];
  x = warp_sum(x);
  __syncthreads();  // an earlier sum has been read
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0;
  for (int w = 0; w < kWarps; ++w) total += part[w];
  return total;
}

// max x over the CUDA block, x ≥ 0 or NaN, which wins
__device__ double block_max(double x) {
  __shared__ double part[kWarps];
  for (int lane = 16; lane; lane /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, x, lane);
    if (!(x >= other)) x = x != x ? x : other;
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
  __syncthreads();
  double largest = part[0];
  for (int w = 1; w < kWarps; ++w)
    if (!(largest >= part[w])) largest = largest != largest ? largest : part[w];
  return largest;
}
