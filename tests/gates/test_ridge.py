"""Online ridge regression is the weighted least squares it says it is, and its posterior that of a Gaussian model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from winnow.gates import OnlineRidge

DIM, BATCHES = 6, 9


def batches(seed: int = 0, size: int = 5) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(DIM, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(BATCHES):
        vectors = torch.randn(size, DIM, generator=generator)
        noise = 0.1 * torch.randn(size, generator=generator, dtype=torch.float64)
        found.append((vectors, vectors.double() @ truth + noise))
    return found


def by_definition(data: list[tuple[torch.Tensor, torch.Tensor]], ridge: float, forgetting: float) -> tuple:
    """Moment matrix and solution, an example at a time, each weighed by its age."""
    moment, total = ridge * np.eye(DIM), np.zeros(DIM)
    for age, (vectors, labels) in enumerate(reversed(data)):
        for vector, label in zip(vectors.double().numpy(), labels.numpy(), strict=True):
            moment += forgetting**age * np.outer(vector, vector)
            total += forgetting**age * label * vector
    return moment, np.linalg.solve(moment, total)


@pytest.mark.parametrize("forgetting", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 30.0])
def test_it_is_least_squares_with_older_examples_fading(ridge: float, forgetting: float) -> None:
    model, data = OnlineRidge(DIM, ridge, forgetting), batches()
    for number, (vectors, labels) in enumerate(data, 1):
        model.learn(vectors, labels)
        moment, expected = by_definition(data[:number], ridge, forgetting)
        np.testing.assert_allclose(model.weights.numpy(), expected, rtol=1e-9, atol=1e-12)
    probe = torch.randn(4, DIM)
    np.testing.assert_allclose(model.predict(probe).numpy(), probe.double().numpy() @ expected, rtol=1e-9, atol=1e-12)
    variance = np.einsum("ij,jk,ik->i", probe.double().numpy(), np.linalg.inv(moment), probe.double().numpy())
    np.testing.assert_allclose(model.deviation(probe).numpy(), model.noise * np.sqrt(variance), rtol=1e-9)


@pytest.mark.parametrize(("threads", "others"), [(1, ""), (2, ""), (2, "1")])
def test_it_is_the_same_on_any_number_of_threads(threads: int, others: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", others)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = OnlineRidge(DIM)
        for vectors, labels in batches():
            model.learn(vectors, labels)
        moment, expected = by_definition(batches(), 1.0, 0.98)
        np.testing.assert_allclose(model.weights.numpy(), expected, rtol=1e-9)
        normal = torch.randn(DIM, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64).numpy()
        step = np.linalg.solve(np.linalg.cholesky(moment).T, normal)[:, 0]
        drawn = model.draw(torch.Generator().manual_seed(1)).numpy()
        np.testing.assert_allclose(drawn, expected + model.noise * step, rtol=1e-9)
        state = model.state_dict()
        model.load_state_dict({**state, "moment": state["moment"] - 1e3 * torch.eye(DIM, dtype=torch.float64)})
        with pytest.raises(torch.linalg.LinAlgError, match=r"raise gate\.ridge"):
            model.predict(torch.ones(1, DIM))
    finally:
        torch.set_num_threads(before)


def test_noise_is_the_faded_error_of_predictions_made_before() -> None:
    model, data, gamma = OnlineRidge(DIM, forgetting=0.8), batches(), 0.8
    assert model.noise == 1.0
    total = count = 0.0
    for number, (vectors, labels) in enumerate(data):
        weights = by_definition(data[:number], 1.0, gamma)[1]
        errors = labels.numpy() - vectors.double().numpy() @ weights
        total, count = gamma * total + float(errors @ errors), gamma * count + len(errors)
        model.learn(vectors, labels)
    assert model.noise == pytest.approx((total / count) ** 0.5, rel=1e-9)


def test_draws_have_the_posterior_s_mean_and_covariance() -> None:
    model = OnlineRidge(DIM, ridge=0.5)
    for vectors, labels in batches():
        model.learn(vectors, labels)
    generator = torch.Generator().manual_seed(3)
    drawn = torch.stack([model.draw(generator) for _ in range(20_000)])
    expected = model.noise**2 * np.linalg.inv(by_definition(batches(), 0.5, 0.98)[0])
    spread = np.sqrt(np.diag(expected))
    assert (np.abs((drawn.mean(0) - model.weights).numpy()) < 5 * spread / 20_000**0.5).all()
    assert (np.abs(np.cov(drawn.T.numpy()) - expected) < 0.05 * np.outer(spread, spread)).all()


def test_a_state_goes_on_bit_for_bit() -> None:
    model, other, data = OnlineRidge(DIM), OnlineRidge(DIM), batches()
    for vectors, labels in data[:4]:
        model.learn(vectors, labels)
    other.load_state_dict(model.state_dict())
    for vectors, labels in data[4:]:
        model.learn(vectors, labels)
        other.learn(vectors, labels)
    assert torch.equal(model.weights, other.weights)
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    assert torch.equal(model.draw(one), other.draw(two)) and model.noise == other.noise


def test_what_makes_no_sense_is_refused() -> None:
    for bad in ({"ridge": 0.0}, {"ridge": float("inf")}, {"forgetting": 0.0}, {"forgetting": 1.5}):
        with pytest.raises(ValueError, match=rf"gate\.{next(iter(bad))} must be"):
            OnlineRidge(DIM, **bad)
    with pytest.raises(ValueError, match=r"not finite"):
        OnlineRidge(DIM).learn(torch.ones(1, DIM), torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match=r"features of dimension 6, and gate\.features gives 7"):
        OnlineRidge(DIM + 1).load_state_dict(OnlineRidge(DIM).state_dict())
