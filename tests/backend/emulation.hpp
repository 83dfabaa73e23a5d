// CUDA's execution model on one host thread, enough for hpcHess/backend/cuda: put before a source, g++ compiles it.
//
// The threads of a CUDA block are fibers that give way at barriers alone. `emulate` runs a grid block by block, the threads
// of a block in ascending or descending order between barriers: results of a kernel that lacks a __syncthreads differ between
// the two.
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

using std::fabs;
using std::log;
using std::nan;
using std::sqrt;

struct dim3 {
  unsigned x, y, z;
};
dim3 threadIdx, blockIdx, blockDim, gridDim;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

namespace emulation {

constexpr std::size_t kStack = 64 << 10, kMost = 1024;

struct Barrier {
  unsigned count = 0, generation = 0;
};

struct Fiber {  // made once, it runs one thread of every CUDA block
  jmp_buf at;
  bool made = false, finished = true;
};

Fiber fibers[kMost];
char* stacks = static_cast<char*>(std::malloc(kMost * kStack));
std::vector<Barrier> warps;
Barrier block;
jmp_buf scheduler;
ucontext_t back;
std::function<void()>* body;
unsigned current, arrivals, alive;
unsigned long long exchanged[2][kMost];  // used in turn: one barrier a shuffle is enough
unsigned char turn[kMost];

void give_way() {
  if (!_setjmp(fibers[current].at)) _longjmp(scheduler, 1);
}

void wait_at(Barrier& barrier, unsigned members) {
  ++arrivals;
  const unsigned generation = barrier.generation;
  if (++barrier.count == members) {
    barrier.count = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) give_way();
}

void run_fiber() {
  for (;;) {
    (*body)();
    fibers[current].finished = true;
    give_way();
  }
}

void resume(unsigned thread) {
  current = thread;
  threadIdx = {thread, 0, 0};
  if (_setjmp(scheduler)) return;
  if (fibers[thread].made) _longjmp(fibers[thread].at, 1);
  fibers[thread].made = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + thread * kStack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = &back;
  makecontext(&context, run_fiber, 0);
  setcontext(&context);
}

// 0, or 1 where threads wait at a barrier that the others never reach
int run_block(bool descending) {
  const unsigned threads = blockDim.x;
  for (unsigned thread = 0; thread < threads; ++thread) {
    if (!fibers[thread].finished) fibers[thread].made = false;  // left at a barrier that was never reached
    fibers[thread].finished = false;
    turn[thread] = 0;
  }
  block = Barrier{};
  warps.assign((threads + 31) / 32, Barrier{});
  for (alive = threads; alive;) {
    const unsigned before = arrivals, alive_before = alive;
    for (unsigned step = 0; step < threads; ++step) {
      const unsigned thread = descending ? threads - 1 - step : step;
      if (fibers[thread].finished) continue;
      resume(thread);
      if (fibers[thread].finished) --alive;
    }
    if (arrivals == before && alive == alive_before) return 1;
  }
  return 0;
}

int run(const long long* grid, long long threads, bool descending, std::function<void()> kernel) {
  if (threads < 1 || threads > static_cast<long long>(kMost)) return 2;
  body = &kernel;
  blockDim = {unsigned(threads), 1, 1};
  gridDim = {unsigned(grid[0]), unsigned(grid[1]), unsigned(grid[2])};
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        if (run_block(descending)) return 1;
      }
  return 0;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_at(emulation::block, blockDim.x); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  static_assert(sizeof(T) <= 8, "a shuffle moves 8 bytes at most");
  const unsigned thread = emulation::current;
  auto& exchanged = emulation::exchanged[emulation::turn[thread] ^= 1];
  std::memcpy(&exchanged[thread], &value, sizeof(T));
  emulation::wait_at(emulation::warps[thread / 32], 32);
  T result;
  std::memcpy(&result, &exchanged[thread ^ unsigned(lanes)], sizeof(T));
  return result;
}
