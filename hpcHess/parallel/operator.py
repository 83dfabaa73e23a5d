"""Products of a symmetric operator whose rows the ranks share, and the probe of its symmetry."""

import numpy as np
from mpi4py import MPI

from hpcHess.parallel.exchange import gather_rows, reduce_rows
from hpcHess.parallel.ownership import row_starts, whole_rows
from hpcHess.parallel.random import gaussian_rows
from hpcHess.runtime.errors import InputError

PRODUCT_BYTES = 1 << 28  # of a block of columns of `matmat_rows`
_PROBES, _REPEATED = 4, 2
_MESSAGE = 1 << 28  # numbers
ASYMMETRY = {np.dtype(np.float32): 1e-3, np.dtype(np.float64): 1e-8}  # ‖H − Hᵀ‖_F / ‖H‖_F that rounding may cause
REPEATED = {np.dtype(np.float32): 1e-4, np.dtype(np.float64): 1e-9}  # ‖U − U'‖_F / ‖U‖_F of two products HV that orders of summation may cause


class RowOperator:
    """The products of the operator protocol (docs/ARCHITECTURE.md) where each rank computes its parameter rows of HV.

    A subclass has `comm`, `n_params` = N, `dtype`, and `own_rows(V)`: V [N, k] whole, row-major, of the dtype → this rank's rows of HV
    (`parallel.ownership.row_starts`), [n_local, k]. Where `own_rows` is collective, so is `partial_matmat`. It knows of no samples, hence
    has no `quadrature` of them and is its own `full`.
    """

    quadrature = None

    @property
    def full(self):
        """The operator itself."""
        return self

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    @property
    def starts(self):
        """First parameter row of every rank, int64 [P + 1]."""
        return row_starts(self.n_params, self.comm.size)

    @property
    def mine(self):
        """The slice of this rank's parameter rows."""
        lo, hi = self.starts[self.comm.rank :][:2]
        return slice(int(lo), int(hi))

    def partial_matmat(self, V):
        """V [N, k] whole → [N, k], row-major: this rank's rows of HV, zero elsewhere; the sum over ranks is HV."""
        result = np.zeros(V.shape, self.dtype)
        result[self.mine] = self.own_rows(np.ascontiguousarray(V, self.dtype))
        return result

    def matmat(self, V):
        """HV for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        whole = np.ascontiguousarray(V.reshape(self.n_params, -1), self.dtype)
        return gather_rows(self.comm, self.own_rows(whole), self.starts).reshape(V.shape)

    def __matmul__(self, V):
        return self.matmat(V)

    def matmat_rows(self, V):
        """HV in parameter rows, [n_local, k] → [n_local, k]. Collective."""
        result = np.empty(V.shape, self.dtype)
        width = max(1, PRODUCT_BYTES // (self.n_params * self.dtype.itemsize))
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], self.dtype), self.starts)
            result[:, a : a + width] = self.own_rows(whole)
        return result


class SummedOperator:
    """The products of the operator protocol (docs/ARCHITECTURE.md) where each rank computes a share of HV.

    A subclass has `comm`, `n_params` = N, `dtype`, and `partial_matmat(V)`: V [N, k] whole → [N, k], row-major; the sum over ranks is HV.
    """

    @property
    def shape(self):
        """(N, N)."""
        return self.n_params, self.n_params

    @property
    def parameter_starts(self):
        """First parameter row of every rank, int64 [P + 1]."""
        return row_starts(self.n_params, self.comm.size)

    def matmat(self, V):
        """HV for V [N] or [N, k], whole on every rank, as is the result. Collective."""
        V = whole_rows(V, self.n_params)
        return self.combined(self.partial_matmat(V.reshape(self.n_params, -1))).reshape(V.shape)

    def __matmul__(self, V):
        return self.matmat(V)

    def matmat_rows(self, V):
        """HV in parameter rows (`parallel.ownership.row_starts`), [n_local, k] → [n_local, k]. Collective."""
        width = max(1, PRODUCT_BYTES // (self.n_params * self.dtype.itemsize))
        if V.shape[1] <= width:
            whole = gather_rows(self.comm, np.ascontiguousarray(V, self.dtype), self.parameter_starts)
            return reduce_rows(self.comm, self.partial_matmat(whole), self.parameter_starts)
        result = np.empty(V.shape, self.dtype)
        for a in range(0, V.shape[1], width):
            whole = gather_rows(self.comm, np.ascontiguousarray(V[:, a : a + width], self.dtype), self.parameter_starts)
            result[:, a : a + width] = reduce_rows(self.comm, self.partial_matmat(whole), self.parameter_starts)
        return result

    def combined(self, partial, operation=MPI.SUM):
        """Whole arrays combined over the ranks, in place, by messages of bounded size. Collective."""
        flat = partial.reshape(-1)
        for at in range(0, flat.size, _MESSAGE):
            self.comm.Allreduce(MPI.IN_PLACE, flat[at : at + _MESSAGE], operation)
        return partial


def check_products(comm, products, what):
    """InputError on all ranks where one has found products that are not finite. Collective."""
    if comm.allreduce(int(not np.isfinite(products).all()), MPI.MAX):
        raise InputError(f"{what} gives products that are not finite, or too large for {products.dtype}: look for NaN in it, scale it, or use float64")


def checked_dtype(dtype):
    """np.dtype of `dtype`; InputError for anything but float32 and float64."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in (np.float32, np.float64):
        raise InputError(f"dtype must be float32 or float64, not {dtype}")
    return found


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is refused in one line
def probed_rows(operator, what):
    """Rows of H that are not zero, int64 sorted, of an operator known by products alone; whether it gives the same again, and its symmetry, are tried
    on the way: a product of 8 vectors, and one of 2 of them. Collective.

    With standard normal X, Y [N, 4], E ‖Xᵀ(HY) − (HX)ᵀY‖_F² = 16 ‖H − Hᵀ‖_F² and E ‖HX‖_F² = 4 ‖H‖_F². A row is taken for zero where HX
    and HY are exactly zero, which has probability 0 else. InputError, naming `what`: products not finite; the second product off by more than
    `REPEATED` of the first (noise in the operator, or a product that depends on the other vectors); ‖H − Hᵀ‖_F / ‖H‖_F found above `ASYMMETRY`;
    both by the operator's dtype. An operator that one rank finds wrong is wrong on all.
    """
    comm = operator.comm
    XY = gaussian_rows(0, "symmetry", operator.mine.start, operator.mine.stop, range(2 * _PROBES), operator.dtype)
    products = operator.matmat_rows(np.ascontiguousarray(XY)).astype(np.float64)
    again = operator.matmat_rows(np.ascontiguousarray(XY[:, :_REPEATED])).astype(np.float64)
    off = products[:, :_REPEATED] - again
    sums = XY.T.astype(np.float64) @ products  # [8, 8]: its (X, Y) and (Y, X) corners are transposes of each other
    sums = np.concatenate([sums.ravel(), [np.vdot(off, off), np.vdot(again, again), np.vdot(products, products)]])
    comm.Allreduce(MPI.IN_PLACE, sums)
    if not np.isfinite(sums).all():
        raise InputError(f"{what} gives products that are not finite (or too large)")
    off, size = np.sqrt(sums[-3:-1])
    if off > REPEATED[operator.dtype] * size:
        single = operator.dtype == np.float64 and off < REPEATED[np.dtype(np.float32)] * size
        advice = "is it computed in single precision (dtype=numpy.float32)" if single else "dropout, batch statistics (call model.eval()), or a seed that changes"
        raise InputError(
            f"{what} is not deterministic: two products of the same vectors differ by {off:.2e}, where their norm is {size:.2e} (allowed in {operator.dtype}: "
            f"{REPEATED[operator.dtype]:g} of it); {advice}?"
        )
    norm = np.sqrt(sums[-1] / (2 * _PROBES))
    corners = sums[:-3].reshape(2 * _PROBES, -1)
    found = np.linalg.norm(corners[:_PROBES, _PROBES:] - corners[_PROBES:, :_PROBES].T) / _PROBES
    if found > ASYMMETRY[operator.dtype] * norm:
        raise InputError(
            f"{what} is not symmetric: ⟨Hx, y⟩ − ⟨x, Hy⟩ is about {found:.2e} for random x and y where ‖H‖_F ≈ {norm:.2e} "
            f"(allowed in {operator.dtype}: {ASYMMETRY[operator.dtype]:g} of it)"
        )
    alive = gather_rows(comm, np.any(products != 0, axis=1)[:, None].astype(np.uint8), operator.starts)
    return np.flatnonzero(alive).astype(np.int64)
