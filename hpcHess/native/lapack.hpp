// BLAS and LAPACK (Fortran interface, 32-bit integers) overloaded on the type, column-major as they are.
#pragma once
#include <cstddef>

extern "C" {
#define HPCHESS_LAPACK(T, p)                                                                                              \
  void p##gemm_(const char*, const char*, const int*, const int*, const int*, const T*, const T*, const int*, const T*,   \
                const int*, const T*, T*, const int*, std::size_t, std::size_t);                                          \
  void p##gemv_(const char*, const int*, const int*, const T*, const T*, const int*, const T*, const int*, const T*, T*,  \
                const int*, std::size_t);                                                                                 \
  void p##trsm_(const char*, const char*, const char*, const char*, const int*, const int*, const T*, const T*,           \
                const int*, T*, const int*, std::size_t, std::size_t, std::size_t, std::size_t);                          \
  void p##laqps_(const int*, const int*, const int*, const int*, int*, T*, const int*, int*, T*, T*, T*, T*, T*, const int*);
HPCHESS_LAPACK(float, s)
HPCHESS_LAPACK(double, d)
#undef HPCHESS_LAPACK
void dsyrk_(const char*, const char*, const int*, const int*, const double*, const double*, const int*, const double*,
            double*, const int*, std::size_t, std::size_t);
void dsyr2k_(const char*, const char*, const int*, const int*, const double*, const double*, const int*, const double*,
             const int*, const double*, double*, const int*, std::size_t, std::size_t);
void dpotrf_(const char*, const int*, double*, const int*, int*, std::size_t);
void dtrtri_(const char*, const char*, const int*, double*, const int*, int*, std::size_t, std::size_t);
}

namespace lapack {

#define HPCHESS_LAPACK(T, p)                                                                                              \
  /* C = alpha op(A) op(B) + beta C */                                                                                    \
  inline void gemm(char ta, char tb, int m, int n, int k, T alpha, const T* A, int lda, const T* B, int ldb, T beta,      \
                   T* C, int ldc) {                                                                                       \
    p##gemm_(&ta, &tb, &m, &n, &k, &alpha, A, &lda, B, &ldb, &beta, C, &ldc, 1, 1);                                       \
  }                                                                                                                       \
  /* y += alpha op(A) x */                                                                                                \
  inline void gemv(char ta, int m, int n, T alpha, const T* A, int lda, const T* x, T* y) {                               \
    const int one = 1;                                                                                                    \
    const T add = 1;                                                                                                      \
    p##gemv_(&ta, &m, &n, &alpha, A, &lda, x, &one, &add, y, &one, 1);                                                    \
  }                                                                                                                       \
  /* B := op(A)⁻¹ B (side L) or B op(A)⁻¹ (side R), A triangular */                                                       \
  inline void trsm(char side, char uplo, char ta, int m, int n, const T* A, int lda, T* B, int ldb) {                     \
    const char diag = 'N';                                                                                                \
    const T one = 1;                                                                                                      \
    p##trsm_(&side, &uplo, &ta, &diag, &m, &n, &one, A, &lda, B, &ldb, 1, 1, 1, 1);                                       \
  }                                                                                                                       \
  /* one panel of the column-pivoted QR; returns the number of columns factored (≥ 1) */                                  \
  inline int laqps(int m, int n, int offset, int nb, T* A, int lda, int* jpvt, T* tau, T* vn1, T* vn2, T* auxv, T* F,     \
                   int ldf) {                                                                                             \
    int kb = 0;                                                                                                           \
    p##laqps_(&m, &n, &offset, &nb, &kb, A, &lda, jpvt, tau, vn1, vn2, auxv, F, &ldf);                                    \
    return kb;                                                                                                            \
  }
HPCHESS_LAPACK(float, s)
HPCHESS_LAPACK(double, d)
#undef HPCHESS_LAPACK

// lower triangle of C = alpha op(A) op(A)ᵀ + C
inline void syrk(char trans, int n, int k, double alpha, const double* A, int lda, double* C, int ldc) {
  const char uplo = 'L';
  const double one = 1;
  dsyrk_(&uplo, &trans, &n, &k, &alpha, A, &lda, &one, C, &ldc, 1, 1);
}
// lower triangle of C = alpha (A Bᵀ + B Aᵀ) + C
inline void syr2k(int n, int k, double alpha, const double* A, int lda, const double* B, int ldb, double* C, int ldc) {
  const char uplo = 'L', trans = 'N';
  const double one = 1;
  dsyr2k_(&uplo, &trans, &n, &k, &alpha, A, &lda, B, &ldb, &one, C, &ldc, 1, 1);
}
inline bool potrf(int n, double* A, int lda) {
  const char uplo = 'L';
  int info = 0;
  dpotrf_(&uplo, &n, A, &lda, &info, 1);
  return info == 0;
}
inline bool trtri(int n, double* A, int lda) {
  const char uplo = 'L', diag = 'N';
  int info = 0;
  dtrtri_(&uplo, &diag, &n, A, &lda, &info, 1, 1);
  return info == 0;
}

}  // namespace lapack
