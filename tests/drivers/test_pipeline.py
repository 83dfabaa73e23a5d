"""compress → info → multiply → solve against the dense matrix of the definition, on the ranks of the test run."""

import json

import h5py
import numpy as np
import pytest

from tests.drivers.drive import dense, drive, listing, ok, on_root, relative, residuals, small_arrays, working_in, write_job


def test_compressed_within_rtol_and_said_so(case):
    """H̃ as multiply applies it to the unit vectors."""
    N = case.N
    on_root(lambda: np.save(case.folder / "I.npy", np.eye(N)))
    assert case.run.out.count("\n") == 1 and "asked 0.001: met" in case.run.out
    assert f"N = {N} parameters ({N - 12} alive)" in case.run.err and not case.run.warnings
    info = ok(drive("info", case.F, "--json", "--verify"))
    found = json.loads(info.out)
    ok(drive("multiply", case.F, "--input", case.folder / "I.npy", "--output", case.folder / "H.npy"))
    compressed = np.load(case.folder / "H.npy")
    error = relative(compressed, case.H)
    estimate = found["error_estimate"]
    assert error <= 1e-3 and estimate["high"] <= 1e-3 and found["rtol_met"] is True and found["complete"] is True
    assert estimate["probes"] >= 32 and estimate["low"] <= error <= estimate["high"]
    assert found["n_params"] == N and found["n_alive"] == N - 12 and found["format"] == "hss" and found["rtol"] == 1e-3
    assert found["norm_frobenius"] == pytest.approx(np.linalg.norm(case.H), rel=2e-3)
    assert found["lambda_max"] == pytest.approx(case.lmax, rel=2e-3)
    assert found["storage_percent"] == pytest.approx(100 * found["storage_entries"] / N**2)
    assert found["storage_bytes"] == 4 * found["storage_entries"]
    assert np.array_equal(compressed, compressed.T) or relative(compressed, compressed.T) < 1e-6
    for row in found["levels"]:
        assert set(row) >= {"level", "nodes", "rank_min", "rank_mean", "rank_max", "bytes"}
    assert sum(row["bytes"] for row in found["levels"]) == found["storage_bytes"]


def test_all_defaults_are_stored(case):
    with h5py.File(case.F, "r") as file:
        job, directory = file.attrs["job"], file.attrs["job_directory"]
    assert directory == str(case.folder)
    defaults = ("samples = 0", 'task = "classify"', 'kind = "gauss-newton"', 'format = "hss"', 'dtype = "auto"', "probes = 32")
    assert [line for line in ('activation = "tanh"', *defaults) if line not in job] == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [None, 1, 3])
def test_products(case, dtype, columns):
    """Shape and type of the vectors are kept, the wider type of matrix and vectors computes; --exact is float64."""
    V = (case.V[:, 0] if columns is None else case.V[:, :columns]).astype(dtype)
    given, compressed, exact = (case.folder / name for name in ("in.npy", "out.npy", "exact.npy"))
    on_root(lambda: np.save(given, V))
    ok(drive("multiply", case.F, "--input", given, "--output", compressed))
    ok(drive("multiply", case.F, "--input", given, "--output", exact, "--exact"))
    U, W = np.load(compressed), np.load(exact)
    assert U.shape == W.shape == V.shape and U.dtype == dtype and W.dtype == np.float64
    assert relative(W, case.H @ V.astype(np.float64)) < 1e-12
    assert relative(U, W) < 3e-3


def test_vectors_in_hdf5(case):
    """Datasets in one file, in groups too, beside others, which stay."""
    path = case.folder / "V.h5"

    def make():
        with h5py.File(path, "w") as file:
            file["in/V"], file["other"] = case.V, [1.0]

    on_root(make)
    ok(drive("multiply", case.F, "--input", f"{path}:/in/V", "--output", f"{path}:/out/U", "--exact"))
    ok(drive("multiply", case.F, "--input", f"{path}:/in/V", "--output", f"{case.folder / 'new.h5'}:/U", "--exact"))
    ok(drive("multiply", case.F, "--input", f"{path}:/in/V", "--output", f"{path}:/out/U", "--exact"))  # again, over the first
    with h5py.File(path, "r") as file, h5py.File(case.folder / "new.h5", "r") as new:
        assert relative(file["out/U"][:], case.H @ case.V) < 1e-12 and np.array_equal(new["U"][:], file["out/U"][:])
        assert file["other"][0] == 1.0 and sorted(file) == ["in", "other", "out"]


@pytest.mark.parametrize("damping", ["0.1*lmax", "0.02"])
def test_solve(case, damping):
    """By the factors of H̃ alone, both residuals as they are."""
    X = case.folder / "X.npy"
    run = ok(drive("solve", case.F, "--rhs", case.folder / "V.npy", "--output", X, "--damping", damping))
    value = 0.1 * case.lmax if "lmax" in damping else float(damping)
    solution = np.load(X)
    A = case.H + value * np.eye(case.N)
    true = residuals(A, solution, case.V).max()
    assert solution.dtype == np.float64 and solution.shape == case.V.shape and not run.warnings
    assert run.residual("compressed") < 1e-10 and run.residual("exact") == pytest.approx(true, rel=0.1 if "lmax" in damping else 0.01)
    assert 1e-9 < true < 2e-3 * case.lmax / value  # the compression error, and no more
    sign, log_abs = np.linalg.slogdet(A)
    said = run.out.splitlines()[-1]
    assert f"sign {sign:+.0f}" in said and f"{case.N} positive, 0 negative" in said
    assert float(said.partition("= ")[2].partition(",")[0]) == pytest.approx(log_abs, rel=1e-2)


@pytest.mark.parametrize("damping, rtol", [("0.01*lmax", 1e-8), ("1e-3", 1e-12)])
def test_solve_refined_by_the_exact_operator(case, damping, rtol):
    X = case.folder / "X.npy"
    given = ("--rhs", case.folder / "V.npy", "--output", X, "--damping", damping, "--refine", "exact", "--rtol", rtol)
    run = ok(drive("solve", case.F, *given))
    lmax = json.loads(drive("info", case.F, "--json").out)["lambda_max"]
    value = 0.01 * lmax if "lmax" in damping else float(damping)
    true = residuals(case.H + value * np.eye(case.N), np.load(X), case.V).max()
    assert true <= rtol and run.residual("exact") <= rtol
    assert run.residual("compressed") > 1e-6 and "iterations" in run.out


def test_one_right_hand_side_keeps_its_shape(case):
    X = case.folder / "x.npy"
    ok(drive("solve", case.F, "--rhs", case.folder / "v.npy", "--output", X, "--damping", "0.1"))
    on_root(lambda: np.save(case.folder / "v1.npy", case.V[:, :1].astype(np.float32)))
    ok(drive("solve", case.F, "--rhs", case.folder / "v1.npy", "--output", case.folder / "x1.npy", "--damping", "0.1"))
    assert np.load(X).shape == (case.N,) and np.load(case.folder / "x1.npy").shape == (case.N, 1)
    assert relative(np.load(case.folder / "x1.npy")[:, 0], np.load(X)) < 1e-6 and np.load(case.folder / "x1.npy").dtype == np.float64


def test_zero_right_hand_sides_have_zero_solutions(case):
    """Among others, by both ways."""
    B = case.V.copy()
    B[:, 1] = 0
    on_root(lambda: np.save(case.folder / "B0.npy", B))
    for more in ((), ("--refine", "exact")):
        run = ok(drive("solve", case.F, "--rhs", case.folder / "B0.npy", "--output", case.folder / "X0.npy", "--damping", "0.1", *more))
        assert not np.load(case.folder / "X0.npy")[:, 1].any() and "nan" not in run.out


def test_a_damping_below_the_error_warns_and_solves(case):
    run = ok(drive("solve", case.F, "--rhs", case.folder / "v.npy", "--output", case.folder / "x.npy", "--damping", "1e-7"))
    assert any("not trustworthy" in line and "use a damping above" in line for line in run.warnings), run.err
    assert run.residual("compressed") < 1e-6 < 0.1 < run.residual("exact")


def test_not_converged_is_status_4_with_the_file_written(case):
    X = case.folder / "X4.npy"
    given = ("--rhs", case.folder / "V.npy", "--output", X, "--damping", "1e-3", "--refine", "exact", "--rtol", "1e-12", "-ksp_max_it", "1")
    run = ok(drive("solve", case.F, *given), 4)
    assert any("not converged" in line for line in run.warnings) and not run.errors
    assert run.residual("exact") == pytest.approx(residuals(case.H + 1e-3 * np.eye(case.N), np.load(X), case.V).max(), rel=0.01)


def test_rtol_not_met_is_status_3_with_the_file_written(case):
    F = case.folder / "low.h5"
    run = ok(drive("compress", case.job, "--output", F, "--set", "compress.max_rank=4", "--set", "compress.rtol=1e-4"), 3)
    found = json.loads(ok(drive("info", F, "--json", "--verify")).out)
    assert found["rtol_met"] is False and found["complete"] is True and max(row["rank_max"] for row in found["levels"]) <= 4
    assert any("max_rank = 4" in line for line in run.warnings) and "NOT MET" in run.out
    ok(drive("multiply", F, "--input", case.folder / "I.npy", "--output", case.folder / "low.npy"))
    error = relative(np.load(case.folder / "low.npy"), case.H)
    assert 1e-4 < error and found["error_estimate"]["low"] <= error <= found["error_estimate"]["high"]


def test_factors_stored_by_compress_are_those_that_solve_uses(case):
    """The file holds them, and solving with them gives what solving without them gives; another damping works too."""
    F = case.folder / "factors.h5"
    ok(drive("compress", case.job, "--output", F, "--damping", "0.05*lmax"))
    summary = json.loads(drive("info", F, "--json").out)
    with h5py.File(F, "r") as file:
        assert file["woodbury/W"].size and file.attrs["woodbury_damping"] == summary["woodbury_damping"] == 0.05 * summary["lambda_max"]
    found = {}
    for source in (F, case.F):
        for damping in ("0.05*lmax", "0.5"):
            X = case.folder / "Xf.npy"
            run = ok(drive("solve", source, "--rhs", case.folder / "V.npy", "--output", X, "--damping", damping))
            assert run.residual("compressed") < 1e-10
            found[source, damping] = np.load(X), run.out
    for damping in ("0.05*lmax", "0.5"):
        assert relative(found[F, damping][0], found[case.F, damping][0]) < 1e-12


def test_factors_that_cannot_be_made_cost_no_compression(folder):
    """Two equal inputs and λ = 0: H̃ is singular. The file is written, without factors."""
    job = on_root(lambda: write_job(folder / "singular", n=3))
    run = ok(drive("compress", job, "--output", folder / "singular" / "F.h5", "--damping", "0", "--set", "compress.dtype=float64"))
    with h5py.File(folder / "singular" / "F.h5", "r") as file:
        assert "woodbury_damping" not in file.attrs and file.attrs["complete"]
    assert any("no factors are stored: " in line and "singular" in line for line in run.warnings), run.err


def test_a_network_of_dead_parameters(folder):
    """Inputs that are zero, no biases: H = 0, which is told; λ alone is left to solve with."""
    job = on_root(lambda: write_job(folder / "dead"))

    def kill():
        arrays = {name: array for name, array in np.load(folder / "dead" / "net.npz").items() if "weight" in name}
        np.savez(folder / "dead" / "net.npz", **arrays)
        np.save(folder / "dead" / "inputs.npy", np.zeros((60, 16)))
        np.save(folder / "dead" / "B.npy", np.ones((sum(each.size for each in arrays.values()), 2)))

    on_root(kill)
    F, X = folder / "dead" / "F.h5", folder / "dead" / "X.npy"
    assert any("H = 0" in line for line in ok(drive("compress", job, "--output", F)).warnings)
    for more in ((), ("--refine", "exact")):
        ok(drive("solve", F, "--rhs", folder / "dead" / "B.npy", "--output", X, "--damping", "0.5", *more))
        assert np.allclose(np.load(X), 2.0, rtol=1e-12)


def test_squared_error_and_autoencode(folder):
    """Both kinds of targets, networks without biases in the last layer."""
    job = on_root(lambda: write_job(folder / "squares", activation="sigmoid", loss="squared-error", widths=(9, 7, 9), n=40))
    arrays, x, _ = small_arrays((9, 7, 9), 40, "squared-error")

    def adapt():
        del arrays["2.bias"]
        np.savez(folder / "squares" / "net.npz", **arrays)
        text = job.read_text().replace('targets = "targets.npy"', 'task = "autoencode"').replace('loss = "squared-error"\n', "")
        (folder / "squares" / "auto.toml").write_text(text)
        np.save(folder / "squares" / "I.npy", np.eye(sum(each.size for each in arrays.values())))
        return dense(arrays, x, "sigmoid", "squared-error")

    H = on_root(adapt)
    with working_in(folder / "squares"):  # relative paths, from another directory than the project's
        for name in ("job.toml", "auto.toml"):
            with working_in(".."):
                ok(drive("compress", f"squares/{name}", "--output", "squares/F.h5", "--set", "compress.rtol=1e-6"))
            ok(drive("multiply", "F.h5", "--input", "I.npy", "--output", "H.npy"))
            ok(drive("multiply", "F.h5", "--input", "I.npy", "--output", "E.npy", "--exact"))
            assert relative(np.load("H.npy"), H) <= 1e-6 and np.load("H.npy").dtype == np.float64
            assert relative(np.load("E.npy"), H) < 1e-13


def test_a_fitted_network_is_stored_and_used(folder):
    """From the digits; exact products and refinement come from the network in the file, which says what it is."""
    where = folder / "fit"

    def make():
        where.mkdir()
        (where / "job.toml").write_text(
            '[network.fit]\nhidden = [5]\nepochs = 5\n[data]\ndataset = "digits"\nsamples = 60\n[compress]\nrtol = 1e-2\nleaf_size = 32\n'
        )

    on_root(make)
    F = where / "F.h5"
    ok(drive("compress", where / "job.toml", "--output", F))
    with h5py.File(F, "r") as file:
        shapes = json.loads(file.attrs["network"])["shapes"]
        arrays = {name: file[f"network/{name}"][:].reshape(shape) for name, shape in shapes.items()}
    assert {name: tuple(array.shape) for name, array in arrays.items()} == {
        "0.weight": (5, 64), "0.bias": (5,), "2.weight": (10, 5), "2.bias": (10,)
    }  # fmt: skip

    def oracle():
        from sklearn.datasets import load_digits

        x = load_digits().data[:60] / 16
        H = dense(arrays, x, "relu")
        V = np.random.default_rng(1).standard_normal((len(H), 2))
        np.save(where / "V.npy", V)
        return H, V

    H, V = on_root(oracle)
    ok(drive("multiply", F, "--input", where / "V.npy", "--output", where / "U.npy", "--exact"))
    assert relative(np.load(where / "U.npy"), H @ V) < 1e-6  # digits are stored in float32 or float64
    given = ("--rhs", where / "V.npy", "--output", where / "X.npy", "--damping", "0.1", "--refine", "exact")
    ok(drive("solve", F, *given))
    assert residuals(H + 0.1 * np.eye(len(H)), np.load(where / "X.npy"), V).max() < 2e-8
    on_root(lambda: (where / "job.toml").unlink())  # the job is in the file
    on_root(lambda: F.rename(folder / "moved.h5") and None)
    ok(drive("multiply", folder / "moved.h5", "--input", where / "V.npy", "--output", where / "U2.npy", "--exact"))
    assert np.array_equal(np.load(where / "U.npy"), np.load(where / "U2.npy"))


@pytest.mark.parametrize("name", ["net.safetensors", "net.h5"])
def test_weights_of_other_formats_are_the_same_network(name, case, folder):
    """Equal factor files, and equal hashes of the network."""

    def make():
        arrays = dict(np.load(case.folder / "net.npz"))
        if name.endswith(".h5"):
            with h5py.File(case.folder / name, "w") as file:
                for key, array in arrays.items():
                    file[key] = array
        else:
            from safetensors.numpy import save_file

            save_file(arrays, case.folder / name)

    on_root(make)
    F = case.folder / "other.h5"
    ok(drive("compress", case.job, "--output", F, "--set", f"network.weights={name}"))
    with h5py.File(F, "r") as file, h5py.File(case.F, "r") as first:
        assert all(np.array_equal(file[key], first[key]) for key in ("tree/permutation", "near/values", "far/values"))
        hashes = [json.loads(each.attrs["provenance"])["network_hash"] for each in (file, first)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64


@pytest.mark.parametrize("fault", ["weights gone", "data gone", "weights changed", "data changed"])
def test_without_network_or_data_only_exact_work_refuses(case, folder, fault):
    """The factor file moved elsewhere, its job's files gone or changed."""
    where = folder / fault
    job = on_root(lambda: write_job(where))
    ok(drive("compress", job, "--output", folder / "moved F.h5"))

    def spoil():
        path = where / ("net.npz" if "weights" in fault else "inputs.npy")
        if "gone" in fault:
            path.unlink()
        elif "weights" in fault:
            arrays = dict(np.load(path))
            arrays["0.bias"] = arrays["0.bias"] + 1e-9
            np.savez(path, **arrays)
        else:
            np.save(path, np.load(path) * (1 + 1e-9))

    on_root(spoil)
    F, V = folder / "moved F.h5", case.folder / "V.npy"
    run = ok(drive("solve", F, "--rhs", V, "--output", where / "X.npy", "--damping", "0.1"))
    reason = "no such file" if "gone" in fault else "changed"
    assert "exact residual: not available (" in run.out and reason in run.out and run.residual("compressed") < 1e-10
    ok(drive("multiply", F, "--input", V, "--output", where / "U.npy"))
    before = listing(where)
    for name, *given in (("multiply", "--input", V, "--exact"), ("solve", "--rhs", V, "--damping", "0.1", "--refine", "exact")):
        run = ok(drive(name, F, *given, "--output", where / "refused.npy"), 2)
        assert len(run.errors) == 1 and reason in run.errors[0]
    assert listing(where) == before


def test_damping_below_the_error_is_refined_with_a_safer_preconditioner(case):
    """λ far below ‖H̃ − H‖₂: (H̃ + μI)⁻¹ with μ above it still preconditions, and the exact residual is met."""
    b, x = case.folder / "tiny-b.npy", case.folder / "tiny-x.npy"
    on_root(lambda: np.save(b, case.V[:, :2]))
    run = ok(drive("solve", case.F, "--rhs", b, "--output", x, "--damping", repr(1e-5 * case.lmax), "--refine", "exact"))
    assert "preconditioner: factors of H̃ + μI" in run.err and "not trustworthy" not in run.err
    assert residuals(case.H + 1e-5 * case.lmax * np.eye(case.N), np.load(x), case.V[:, :2]).max() <= 1.1e-8
    assert "log|det" not in run.out, "the factors are not those of λ"


@pytest.mark.parametrize(("driver", "source", "more"), [("multiply", "--input", ()), ("solve", "--rhs", ("--damping", "0.1"))])
def test_vectors_do_not_replace_their_source_nor_overflow(case, driver, source, more):
    given = case.folder / f"{driver}-huge.npy"
    on_root(lambda: np.save(given, np.full(case.N, 1.7e308)))
    run = drive(driver, case.F, source, given, "--output", given, *more)
    assert run.status == 2 and "would replace" in run.err
    with np.errstate(all="ignore"):
        run = drive(driver, case.F, source, given, "--output", case.folder / "never.npy", *more)
    assert run.status == 2 and "overflows" in run.err and not (case.folder / "never.npy").exists()


def test_rtol_needs_refine(case):
    run = drive("solve", case.F, "--rhs", "x.npy", "--output", "y.npy", "--damping", "0.1", "--rtol", "1e-3")
    assert run.status == 2 and "--refine exact" in run.err


@pytest.mark.parametrize("solver", ["ulv", "woodbury"])
def test_the_job_s_solver_is_stored_and_used(case, solver):
    """By the file's job, unless --solver names another one."""
    F, X = case.folder / f"{solver}.h5", case.folder / "Xs.npy"
    ok(drive("compress", case.job, "--output", F, "--damping", "0.05*lmax", "--set", f"compress.solver={solver}"))
    summary = json.loads(drive("info", F, "--json").out)
    assert summary["woodbury_solver"] == summary["solver"] == solver and summary["woodbury_backward_error"] < 1e-9
    assert f"{solver} factors for damping" in drive("info", F).out
    given = ("--rhs", case.folder / "V.npy", "--output", X, "--damping", "0.05*lmax")
    for more, expected in (((), solver), (("--solver", "elimination"), "elimination"), (("--solver", solver), solver)):
        run = ok(drive("solve", F, *given, *more))
        assert f"solver: {expected}, backward error" in run.out and run.residual("compressed") < 1e-9
    run = ok(drive("solve", F, *given, "--refine", "exact"))
    assert f"preconditioned by {solver}, backward error" in run.out and run.residual("exact") <= 1e-8


def test_fmm_from_end_to_end(case):
    """Compressed, told of, solved with by PETSc, to either residual; the preconditioner and its factors are in the file."""
    F, X = case.folder / "fmm.h5", case.folder / "Xf.npy"
    more = ("compress.format=fmm", "compress.budget=0.4", "compress.n_neighbors=8", "compress.leaf_size=12")
    ok(drive("compress", case.job, "--output", F, "--damping", "0.05*lmax", *(word for key in more for word in ("--set", key))))
    summary, told = json.loads(drive("info", F, "--json").out), drive("info", F).out
    assert summary["format"] == "fmm" and summary["preconditioner_percent"] > 0 and summary["woodbury_damping"] >= 0.05 * summary["lambda_max"]
    reached = f"(error {summary['preconditioner']['error_estimate']['value']:.2g} of ‖H‖_F)"
    assert f"preconditioned by an HSS matrix {reached}" in told and "elimination factors for damping" in told
    value = 0.05 * summary["lambda_max"]
    given = ("--rhs", case.folder / "V.npy", "--output", X, "--damping", "0.05*lmax")
    run = ok(drive("solve", F, *given))
    assert f"iterations of CG, preconditioned by elimination of a coarser HSS matrix {reached}" in run.out and run.residual("compressed") <= 1e-10
    assert "log|det" not in run.out
    run = ok(drive("solve", F, *given, "--refine", "exact", "--rtol", "1e-9", "--solver", "ulv"))
    assert residuals(case.H + value * np.eye(case.N), np.load(X), case.V).max() <= 1e-9 and "preconditioned by ulv" in run.out
    assert ok(drive("solve", F, *given, "--rtol", "1e-3")).residual("compressed") > 1e-10
    run = ok(drive("solve", F, *given, "-ksp_max_it", "1"), 4)
    assert any("not converged" in line for line in run.warnings)
    ok(drive("multiply", F, "--input", case.folder / "I.npy", "--output", case.folder / "Uf.npy"))
    assert relative(np.load(case.folder / "Uf.npy"), case.H) <= 1e-3
