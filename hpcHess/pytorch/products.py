"""Products of a rank's share of H with many vectors, in tiles of samples and vectors of bounded memory."""

import torch
from torch.func import grad, jvp, vjp, vmap

from hpcHess.runtime.errors import InputError

TILE_BYTES = 1 << 25  # of a tile's intermediates on a CPU: what its caches hold is computed fastest
_VECTORS = 8  # of a tile at least, where there are so many: they share the forward sweep
_SWEEPS = {"hessian": 4}  # intermediates of a vector, of those that a reverse sweep keeps; others: 2
_COPIES = 4  # of a tile's vectors [c, N]


class Products:
    """Σ_i w_i H_i V over this rank's samples for a `module.Function` f and its inputs, targets and weights (tensors of m rows each).

    loss      `losses.Loss`
    kind      gauss-newton: JᵀQJ; fisher: the same of −log p; opg: JᵀδδᵀJ; mc-fisher: the same of −log p for each of the labels drawn,
              targets [m, draws, …]; hessian: the derivative of Jᵀδ
    n_outputs d, numbers that the module gives for a sample
    memory    bytes that a tile may take

    Forward differentiation of all vectors of a tile at once (Jv), the loss, a reverse sweep of all of them. Where a module's operations know no
    forward differentiation or no batches of vectors (functions with a backward of their own), `reverse` is True: vector by vector by two
    reverse sweeps (Jv as the derivative of Jᵀu with respect to u).
    """

    def __init__(self, function, loss, kind, inputs, targets, weights, n_outputs, memory):
        self.function, self.loss, self.kind, self.memory = function, loss, kind, memory
        self.inputs, self.targets, self.weights = inputs, targets, weights
        self.reverse = False
        kept, size = function.bytes_a_sample(inputs[:1].to(function.device)), function.dtype.itemsize
        draws = targets.shape[1] if kind == "mc-fisher" else 0
        self.sample_bytes = 2 * kept + draws * n_outputs * size  # of a tile's sample, its δ included
        self.sweep_bytes = _SWEEPS.get(kind, 2) * kept + draws * size  # of a tile's sample and vector
        self.vector_bytes = _COPIES * sum(function.sizes) * size
        self.tile(1)

    def tile(self, k):
        """(samples, vectors) of a tile for k vectors; InputError where one of each takes more than the memory."""
        least = self._bytes(1, 1)
        if least > self.memory:
            raise InputError(f"memory = {self.memory:,} bytes are not enough for one sample and one vector of this module: they take about {least:,}")
        sample, sweep = self.sample_bytes, self.sweep_bytes
        room = self.memory if self.function.device.type != "cpu" else max(min(self.memory, TILE_BYTES), sample + sweep)
        vectors = max(1, min(k, _VECTORS, (self.memory - sample) // (sweep + self.vector_bytes), room // sweep))
        left = min(room, self.memory - vectors * self.vector_bytes)
        samples = max(1, min(len(self.inputs), left // (sample + vectors * sweep)))
        while vectors < k and self._bytes(samples, 2 * vectors) <= self.memory and samples * 2 * vectors * sweep <= room:
            vectors *= 2
        return samples, min(vectors, k)

    def _bytes(self, samples, vectors):
        """About what a tile takes."""
        return samples * (self.sample_bytes + vectors * self.sweep_bytes) + vectors * self.vector_bytes

    def matmat(self, V, most=None):
        """V [k, N] → [k, N], a new tensor of the host; `most`: of the first so many samples alone. Not collective."""
        function, result = self.function, torch.zeros_like(V)
        samples, vectors = self.tile(len(V))
        end = len(self.inputs) if most is None else most
        with function.running():
            for i in range(0, end, samples):
                rows = slice(i, min(end, i + samples))
                X, y, w = (None if each is None else each[rows].to(function.device) for each in (self.inputs, self.targets, self.weights))
                product = (self._by_reverse if self.reverse else self._by_batches)(X, y, w)
                for j in range(0, len(V), vectors):
                    parts = product(function.split(V[j : j + vectors].to(function.device)))
                    for name, a, b in zip(function.names, function.starts[:-1], function.starts[1:], strict=True):
                        result[j : j + vectors, a:b] += parts[name].reshape(-1, b - a).to(result.device)
                del product  # what it keeps, before the next tile
        return result

    def _by_batches(self, X, y, w):
        """{name: [c, *shape]} → the same, the share of a batch."""
        f, theta = lambda theta: self.function(theta, X), self.function.theta
        if self.kind == "hessian":

            def gradient(theta):
                z, back = vjp(f, theta)
                return back(self._delta(z, y, w))[0]

            return vmap(lambda v: jvp(gradient, (theta,), (v,))[1])
        z, back = vjp(f, theta)
        middle = self._middle(z, y, w)
        forward = vmap(lambda v: jvp(f, (theta,), (v,))[1])
        return lambda V: vmap(lambda u: back(u)[0])(middle(forward(V)))

    def _by_reverse(self, X, y, w):
        """The same by reverse sweeps alone."""
        names = self.function.names
        theta = {name: each.clone().requires_grad_() for name, each in self.function.theta.items()}
        leaves, z = list(theta.values()), self.function(theta, X)
        keep = {"retain_graph": True, "materialize_grads": True}
        if self.kind == "hessian":
            first = torch.autograd.grad(z, leaves, self._delta(z, y, w), create_graph=True, materialize_grads=True)
            sweep = lambda v: torch.autograd.grad(first, leaves, v, **keep)  # noqa: E731
        else:
            middle, u = self._middle(z.detach(), y, w), torch.zeros_like(z, requires_grad=True)
            back = torch.autograd.grad(z, leaves, u, create_graph=True, materialize_grads=True)
            sweep = lambda v: torch.autograd.grad(z, leaves, middle(torch.autograd.grad(back, u, v, **keep)[0][None])[0], **keep)  # noqa: E731

        def product(V):
            each = [sweep([V[name][c] for name in names]) for c in range(len(V[names[0]]))]
            return {name: torch.stack([found[at].detach() for found in each]) for at, name in enumerate(names)}

        return product

    def _delta(self, z, y, w):
        """w_i ∂f/∂z_i, as z."""
        return _scaled(grad(self.loss.total)(z, y), w)

    def _middle(self, z, y, w):
        """U → w_i Q_i u_i, or w_i δ_i δ_iᵀ u_i, for vectors u [c, …], each as z."""
        if self.kind in ("gauss-newton", "fisher"):
            total = self.loss.total if self.kind == "gauss-newton" else self.loss.likelihood
            pull = vjp(lambda z: grad(total)(z, y), z)[1]  # Q is symmetric
            return vmap(lambda u: _scaled(pull(u)[0], w))
        if self.kind == "opg":
            D = grad(self.loss.total)(z, y).reshape(len(z), 1, -1)  # [m, draws, d]
        else:
            D = z.new_empty(len(z), y.shape[1], z[0].numel())
            for s in range(y.shape[1]):
                D[:, s] = grad(self.loss.likelihood)(z, y[:, s]).reshape(len(z), -1)
        share = (w / D.shape[1])[:, None]

        def middle(U):
            inner = torch.einsum("msd,cmd->cms", D, U.reshape(*U.shape[:2], -1))  # matrix products, in which D is not copied
            return torch.einsum("msd,cms->cmd", D, share * inner).reshape(U.shape)

        return middle


def _scaled(rows, w):
    return rows * w.reshape(-1, *[1] * (rows.ndim - 1))
