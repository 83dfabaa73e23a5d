// Products of one row-major matrix with at most four columns: bound by memory, where packing as gemm does costs most.
#pragma once
#include <cstdint>

namespace narrow {

constexpr int kColumns = 4;

// Y [rows, k] = A X, X given as its transpose Xt [k, cols];  S: type of A, T: type of X and Y
template <class S, class T>
void times(const S* A, std::int64_t lda, int rows, int cols, const T* Xt, int k, T* Y);

// Yt [k, cols] += (Aᵀ X)ᵀ, X [rows, k]
template <class S, class T>
void transpose_times(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T* Yt);

// to[i] = from[i]
template <class S, class T>
void convert(const S* from, int n, T* to);

}  // namespace narrow
