// Memory of the results of large products: fresh pages are cleared by the system one after another, which costs about as much as a pass over
// them, so what is given back is kept for the next result of about that size.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>

#include "arrays.hpp"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

constexpr std::size_t kPage = std::size_t(1) << 21;  // alignment: of a huge page, where the system has them
constexpr std::size_t kKept = std::size_t(256) << 20;  // bytes kept at most

struct Piece {
  std::size_t size;
  void* at;
};

class Pool {
 public:
  Piece take(std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> held(lock_);
      auto best = free_.end();
      for (auto i = free_.begin(); i != free_.end(); ++i)
        if (i->size >= bytes && i->size <= 2 * bytes && (best == free_.end() || i->size < best->size)) best = i;
      if (best != free_.end()) {
        const Piece found = *best;
        free_.erase(best);
        kept_ -= found.size;
        return found;
      }
    }
    const std::size_t unit = bytes < kPage ? std::size_t(4096) : kPage, size = (bytes + unit - 1) / unit * unit;
    void* at = std::aligned_alloc(unit, size);
    if (!at) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    if (unit == kPage) madvise(at, size, MADV_HUGEPAGE);  // a hint
#endif
    return {size, at};
  }

  // the oldest pieces go where the new one is too much
  void give(const Piece& piece) noexcept {
    const std::lock_guard<std::mutex> held(lock_);
    if (piece.size > kKept) return std::free(piece.at);
    std::size_t oldest = 0;
    while (kept_ + piece.size > kKept) {
      kept_ -= free_[oldest].size;
      std::free(free_[oldest++].at);
    }
    free_.erase(free_.begin(), free_.begin() + std::ptrdiff_t(oldest));
    try {
      free_.push_back(piece);
      kept_ += piece.size;
    } catch (...) {
      std::free(piece.at);
    }
  }

 private:
  std::mutex lock_;
  std::vector<Piece> free_;
  std::size_t kept_ = 0;
};

Pool& pool() {
  static Pool* one = new Pool;  // never destroyed: arrays may outlive the module
  return *one;
}

// uint8 [bytes], not initialized
nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>> empty(std::size_t bytes) {
  auto piece = std::make_unique<Piece>(pool().take(std::max<std::size_t>(bytes, 1)));
  auto* data = static_cast<std::uint8_t*>(piece->at);
  nb::capsule owner(piece.release(), [](void* p) noexcept {
    const std::unique_ptr<Piece> held(static_cast<Piece*>(p));
    pool().give(*held);
  });
  const std::size_t shape[1] = {bytes};
  return nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>(data, 1, shape, owner);
}

}  // namespace

void bind_memory(nb::module_& m) { m.def("empty", &empty, nb::arg("bytes")); }
