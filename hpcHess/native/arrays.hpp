// The arrays that cross from Python: C-contiguous host memory, never converted silently.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace nb = nanobind;

template <class T, int ndim>
using Array = nb::ndarray<T, nb::ndim<ndim>, nb::c_contig, nb::device::cpu>;
using Index = Array<const std::int64_t, 1>;

// a NumPy array [size] that owns `values`
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> owned(std::vector<T>&& values) {
  auto kept = std::make_unique<std::vector<T>>(std::move(values));
  const std::size_t shape[1] = {kept->size()};
  T* data = kept->data();
  nb::capsule owner(kept.release(), [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, 1, shape, owner);
}

// the same of plain memory, which need not be filled before
template <class T>
nb::ndarray<nb::numpy, T, nb::ndim<1>> owned(std::unique_ptr<T[]>&& values, std::size_t size) {
  const std::size_t shape[1] = {size};
  T* data = values.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<1>>(data, 1, shape, owner);
}
