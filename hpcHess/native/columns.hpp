// Products of one row-major matrix with stacked rows of vectors, in place, without packing the matrix:
// at most kNarrow columns are bound by memory, more by the multipliers; each entry is read once where both directions are asked for.
#pragma once
#include <cstdint>

namespace columns {

// S: type of A [rows, cols] with `lda` entries from row to row; T: type of the vectors, k ≥ 1 of them in row-major order

// Y [rows, k] += alpha A X,  X [cols, k]
template <class S, class T>
void add_product(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T alpha, T* Y);

// Y [cols, k] += alpha Aᵀ X,  X [rows, k]
template <class S, class T>
void add_transposed(const S* A, std::int64_t lda, int rows, int cols, const T* X, int k, T alpha, T* Y);

// Y_rows [rows, k] += alpha A X_cols  and  Y_cols [cols, k] += alpha Aᵀ X_rows
template <class S, class T>
void add_both(const S* A, std::int64_t lda, int rows, int cols, const T* X_cols, T* Y_rows, const T* X_rows, T* Y_cols, int k,
              T alpha);

// multiplications that cost as much time as those of one entry with k vectors: of a few, reading the entry is what counts
inline double effort(int k) { return k < 8 ? 8.0 : k; }

}  // namespace columns
