// Cholesky factor of a small block and its inverse, in registers.
#pragma once
#include <cstdint>

namespace triangle {

constexpr int kBase = 32;  // rows at most

// the lower triangle of X [n, n] (row-major, leading dimension ldx) becomes L with X = LLᵀ; W [n, n] = L⁻ᵀ, zeros below its diagonal.
// False where X is not positive definite.
bool factor(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw);

}  // namespace triangle
