// What a block of an elimination needs besides matrix products: loops over rows that stay in the first cache.
#pragma once
#include <cstdint>

namespace small {

constexpr int kBase = 32;  // rows of `factor` at most

// the lower triangle of X [n, n] (row-major, leading dimension ldx) becomes L with X = LLᵀ; W [n, n] = L⁻ᵀ, zeros below its diagonal.
// False where X is not positive definite.
bool factor(double* X, std::int64_t ldx, int n, double* W, std::int64_t ldw);

// to[i] = row[from[i]]
void gather(const double* row, const std::int64_t* from, std::int64_t n, double* to);

// to[i] = from[i]
void convert(const float* from, std::int64_t n, double* to);

// max |a_i|, 0 for none
double largest(const double* a, std::int64_t n);

// sums[i] += a_i²
void add_squares(const double* a, std::int64_t n, double* sums);

// Z = D − H, D = D − 2H
void subtract(double* D, const double* H, double* Z, std::int64_t n);

}  // namespace small
