"""Ridge regression in closed form over a stream of labelled vectors, the older ones fading."""

from __future__ import annotations

import os
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class OnlineRidge:
    """Sufficient statistics of a ridge regression with forgetting, and its Gaussian posterior.

    A <- gamma A + sum phi phi^T + (1 - gamma) lambda I and a <- gamma a + sum y phi, from A = lambda I and a = 0, so
    that A is lambda I plus the faded sum, whatever gamma is; w = A^-1 a, with covariance sigma^2 A^-1. sigma^2 is the
    faded mean of squared errors of predictions made before their labels were seen. All in float64.

    Args:
        dim: of the vectors.
        ridge: lambda > 0; what shrinks w, in units of squared length of the vectors.
        forgetting: gamma in (0, 1]; 1 forgets nothing.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, dim: int, ridge: float = 1.0, forgetting: float = 0.98) -> None:
        if not 0 < ridge < float("inf"):
            raise ValueError(f"gate.ridge must be a finite number > 0, got {ridge}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"gate.forgetting must be in (0, 1], got {forgetting}")
        self.dim, self.ridge, self.forgetting = dim, ridge, forgetting
        self._moment = ridge * torch.eye(dim, dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._errors = [0.0, 0.0]  # faded sum of squared errors, and how many
        self._factor: Tensor | None = None
        self._weights = torch.zeros(dim, dtype=torch.float64)

    @property
    def weights(self) -> Float[Tensor, " dim"]:
        """w, the posterior mean; zero before anything was learned."""
        self._solve()
        return self._weights

    @property
    def noise(self) -> float:
        """sigma, the standard deviation of labels about their predictions; 1 before any error is known."""
        total, count = self._errors
        return float((total / count) ** 0.5) if count else 1.0

    def learn(self, vectors: Float[Tensor, "examples dim"], labels: Float[Tensor, " examples"]) -> None:
        """Take in labelled vectors; older ones fade once per call.

        Args:
            vectors: phi.
            labels: y, finite.

        Raises:
            ValueError: a label is not finite.
        """
        if not bool(labels.isfinite().all()):
            raise ValueError("a label is not finite: leave such candidates out")
        vectors, labels = vectors.double(), labels.double()
        errors = labels - vectors @ self.weights
        gamma, (total, count) = self.forgetting, self._errors
        self._errors = [gamma * total + float(errors.square().sum()), gamma * count + len(errors)]
        self._moment.addmm_(vectors.T, vectors, beta=gamma)
        self._moment.diagonal().add_((1 - gamma) * self.ridge)
        self._sum.addmv_(vectors.T, labels, beta=gamma)
        self._factor = None

    def predict(self, vectors: Float[Tensor, "examples dim"]) -> Float[Tensor, " examples"]:
        """phi^T w.

        Args:
            vectors: phi.

        Returns:
            Predictions in float64.
        """
        return vectors.double() @ self.weights

    def draw(self, generator: torch.Generator) -> Float[Tensor, " dim"]:
        """Weights drawn from the posterior N(w, sigma^2 A^-1).

        Args:
            generator: on the CPU.

        Returns:
            One draw.
        """
        factor = self._solve()
        normal = torch.randn(self.dim, 1, generator=generator, dtype=torch.float64)
        # A = L L^T, so L^-T z has covariance A^-1.
        return self.weights + self.noise * torch.linalg.solve_triangular(factor.mT, normal, upper=True).squeeze(1)

    def deviation(self, vectors: Float[Tensor, "examples dim"]) -> Float[Tensor, " examples"]:
        """Sigma sqrt(phi^T A^-1 phi), the posterior's standard deviation of each prediction.

        Args:
            vectors: phi.

        Returns:
            In float64.
        """
        whitened = torch.linalg.solve_triangular(self._solve(), vectors.double().T, upper=False)
        return self.noise * whitened.norm(dim=0)

    def state_dict(self) -> dict[str, Any]:
        """The statistics.

        Returns:
            Tensors.
        """
        return {"moment": self._moment, "sum": self._sum, "errors": torch.tensor(self._errors, dtype=torch.float64)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved statistics.

        Args:
            state: what ``state_dict`` gave.

        Raises:
            ValueError: they are of vectors of another length.
        """
        if state["sum"].shape != (self.dim,):
            raise ValueError(
                f"the gate's state is of features of dimension {len(state['sum'])}, and gate.features gives {self.dim}"
            )
        self._moment, self._sum = state["moment"].clone(), state["sum"].clone()
        self._errors, self._factor = state["errors"].tolist(), None

    def _solve(self) -> Tensor:
        """Factor A and solve for w, once after every change."""
        if self._factor is None:
            self._factor, self._weights = _factored(self._moment, self._sum)
        return self._factor


def _factored(moment: Float[Tensor, "dim dim"], right: Float[Tensor, " dim"]) -> tuple[Tensor, Tensor]:
    """L of A = L L^T, and A^-1 a.

    SciPy's LAPACK on one thread is faster than torch's on two; its own threads, which :mod:`winnow.train` turns off,
    would wait for processors on which torch's are still spinning.

    Raises:
        torch.linalg.LinAlgError: A is not positive definite.
    """
    alone = torch.get_num_threads() == 1 or os.environ.get("OPENBLAS_NUM_THREADS") == "1"
    if alone:
        from scipy.linalg import blas, lapack  # slow to load, and not needed without a gate

        # A is symmetric, so that its rows are the columns read there; above the diagonal of L, A is left as it was.
        lower, wrong = lapack.dpotrf(moment.numpy().T, lower=1, clean=0)
        factor = torch.from_numpy(lower)
    else:
        factor, wrong = torch.linalg.cholesky_ex(moment)
    if int(wrong):
        raise torch.linalg.LinAlgError("the gate's moments are not positive definite: raise gate.ridge")
    if alone:
        # Half the time of dpotrs, which is made for many right-hand sides.
        halfway = blas.dtrsv(lower, right.numpy(), lower=1)
        return factor, torch.from_numpy(blas.dtrsv(lower, halfway, lower=1, trans=1))
    return factor, torch.cholesky_solve(right.unsqueeze(1), factor).squeeze(1)
