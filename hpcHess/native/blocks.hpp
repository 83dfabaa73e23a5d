// Work on a ragged batch of blocks: small ones side by side, large ones one after another with all threads inside each.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "tasks.hpp"

class Team {  // for_each_task where the block has the threads for itself, else a plain loop: the same pieces in either case
 public:
  explicit Team(bool alone) : alone_(alone) {}
  // run(begin, end) over [0, n) in pieces of `size`; `work`: multiplications of all of them
  template <class Run>
  void pieces(std::int64_t n, std::int64_t size, double work, const Run& run) const {
    const std::int64_t count = (n + size - 1) / size;
    const auto piece = [&](std::int64_t i) { run(i * size, std::min(n, (i + 1) * size)); };
    if (alone_) {
      for_each_task(count, work, piece);
    } else {
      for (std::int64_t i = 0; i < count; ++i) piece(i);
    }
  }

 private:
  bool alone_;
};

constexpr double kWorthTask = 1 << 17;  // multiplications of a task: neighbours that have fewer go together

// run(i, team) for every block, work[i] multiplications each; nothing that is computed depends on the number of threads
template <class Run>
void for_each_block(const std::vector<double>& work, const Run& run) {
#ifdef _OPENMP
  const double threads = omp_get_max_threads();
#else
  const double threads = 1;
#endif
  SerialBlas serial;
  const std::int64_t n = std::int64_t(work.size());
  double total = 0, rest = 0, open = 0;
  for (const double w : work) total += w;
  const double large = std::max(total / (2 * threads), 8 * kWorthThreads);
  const auto alone = [&](std::int64_t i) { return threads > 1 && work[i] > large; };
  std::vector<std::int64_t> starts{0};
  for (std::int64_t i = 0; i < n; ++i) {
    if (alone(i)) {
      run(i, Team(true));
      continue;
    }
    rest += work[i];
    open += work[i];
    if (open >= kWorthTask) {
      starts.push_back(i + 1);
      open = 0;
    }
  }
  if (starts.back() < n) starts.push_back(n);
  for_each_task(std::int64_t(starts.size()) - 1, rest, [&](std::int64_t t) {
    for (std::int64_t i = starts[t]; i < starts[t + 1]; ++i)
      if (!alone(i)) run(i, Team(false));
  });
}
