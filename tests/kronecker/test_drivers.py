"""The drivers with sums of Kronecker products: what solves say of a matrix without direct factors."""

import numpy as np

from tests.drivers.drive import drive, ok, on_root, write_job


def test_solves_report_no_determinant_of_what_only_preconditions(comm, shared_tmp):
    job = on_root(lambda: write_job(shared_tmp))
    for terms, direct in (("auto", False), ("kfac", True)):
        F = shared_tmp / f"{terms}.h5"
        made = ok(drive("compress", job, "--output", F, "--set", 'compress.format="kronecker-sum"', "--set", f'compress.terms="{terms}"'), 3 * direct)
        assert "(exact)" in made.out
        told = ok(drive("info", F))
        assert "one term a pair" in told.out and "1 × 2" in told.out
        n = int(told.out.split("N = ")[1].split()[0])
        on_root(lambda: np.save(shared_tmp / "B.npy", np.random.default_rng(0).standard_normal((n, 2))))
        solved = ok(drive("solve", F, "--rhs", shared_tmp / "B.npy", "--output", shared_tmp / "X.npy", "--damping", "0.1*lmax"))
        assert ("log|det" in solved.out) == direct
        assert ("backward error" in solved.out) == direct
