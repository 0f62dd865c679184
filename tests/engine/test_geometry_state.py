"""P and the momentum term are what the real optimizer does with a gradient, read from its own state."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import build, double, ragged
from tests.reference import normal, relative, slow_matrix
from winnow.geometry import Diagonal, Identity, IdentityGeometry, RankOne, geometry_of
from winnow.scorer import Scorer
from winnow.signals import Needs

BETA1, BETA2, LATE = 0.8, 0.95, 2000
SHAPES = ((5, 3), (4,), ())


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def train(optimizer: torch.optim.Optimizer, held: list[nn.Parameter], steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in held:
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        optimizer.step()
    optimizer.zero_grad()


def update(optimizer: torch.optim.Optimizer, gradients: list[Tensor], frozen: bool = False) -> list[Tensor]:
    """What the optimizer would change, without changing it; ``frozen`` keeps Adam's second moment as it is."""
    twin = copy.deepcopy(optimizer)
    held = [parameter for group in twin.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in held]
    for parameter, gradient in zip(held, gradients, strict=True):
        parameter.grad = gradient.clone()
        state = twin.state[parameter]
        if frozen:
            square = (1 - BETA2) * gradient.square()
            assert (state["exp_avg_sq"] > square).all()
            state["exp_avg_sq"].copy_((state["exp_avg_sq"] - square) / BETA2)
    twin.step()
    return [parameter.detach() - old for parameter, old in zip(held, before, strict=True)]


ADAMS: dict[str, Any] = {
    "adamw": (torch.optim.AdamW, {"foreach": False}),
    "foreach": (torch.optim.AdamW, {"foreach": True}),
    "fused": (torch.optim.AdamW, {"fused": True}),
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}),
    "adam": (torch.optim.Adam, {}),
}


@pytest.mark.parametrize("name", ADAMS)
def test_adam_preconditioner_and_momentum_are_those_of_the_real_step(name: str) -> None:
    kind, options = ADAMS[name]
    held = parameters()
    # Groups of different options; everything has to be read from the parameter's own group.
    groups = [{"params": held[:1], "eps": 1e-2}, {"params": held[1:], "eps": 1e-4}]
    optimizer = kind(groups, lr=1e-3, betas=(BETA1, BETA2), weight_decay=0.0, **options)
    train(optimizer, held)
    for parameter in held:  # late enough that bias correction is over: the frozen moment is then exact
        optimizer.state[parameter]["step"].fill_(LATE)
    if options.get("amsgrad"):
        for parameter in held:
            optimizer.state[parameter]["max_exp_avg_sq"].mul_(1.5)
    generator = torch.Generator().manual_seed(2)
    gradients = [1e-2 * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    still = update(optimizer, [torch.zeros_like(gradient) for gradient in gradients], frozen=True)
    moved = update(optimizer, gradients, frozen=True)
    geometry = geometry_of(optimizer)
    for parameter, gradient, without, with_it in zip(held, gradients, still, moved, strict=True):
        p = geometry.preconditioner(parameter, "p", lambda: pytest.fail("the state is there"))
        expected = -1e-3 * (1 - BETA1) * p.tensor(gradient, 1.0)
        assert relative(with_it - without, expected) < 1e-9
        momentum = geometry.momentum(parameter, "p")
        assert momentum is not None
        assert relative(without, -1e-3 * p.tensor(momentum, 1.0)) < 1e-9


def test_adam_bias_correction_and_groups() -> None:
    held = parameters()
    groups = [{"params": held[:1]}, {"params": held[1:], "betas": (0.5, 0.7), "eps": 1e-2, "amsgrad": True}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), eps=1e-3)
    train(optimizer, held)
    geometry = geometry_of(optimizer)
    for parameter, (beta1, beta2, eps, key) in zip(
        held, [(0.9, 0.99, 1e-3, "exp_avg_sq"), *[(0.5, 0.7, 1e-2, "max_exp_avg_sq")] * 2], strict=True
    ):
        state = optimizer.state[parameter]
        p = geometry.preconditioner(parameter, "p", lambda: pytest.fail("the state is there"))
        ones = torch.ones_like(parameter)
        share = (1 - beta1) / (1 - beta1**4) / (0.1 / (1 - 0.9**4))  # of the gradient, relative to the first group's
        assert relative(p.tensor(ones, 1.0), share / ((state[key] / (1 - beta2**3)).sqrt() + eps)) < 1e-14
        assert relative(p.tensor(ones, 0.5), p.tensor(ones, 1.0).sqrt()) < 1e-14
        assert relative(p.tensor(ones, 2.0), p.tensor(ones, 1.0).square()) < 1e-14
        momentum = geometry.momentum(parameter, "p")
        assert momentum is not None
        assert relative(momentum, beta1 * state["exp_avg"] / (1 - beta1**4) / share) < 1e-14


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_the_identity_and_knows_its_momentum(momentum: float, nesterov: bool) -> None:
    held = parameters()
    optimizer = torch.optim.SGD(held, lr=1e-2, momentum=momentum, nesterov=nesterov)
    geometry = geometry_of(optimizer)
    assert geometry.momentum(held[0], "p") is None, "no buffer before the first step"
    train(optimizer, held)
    still = update(optimizer, [torch.zeros_like(parameter) for parameter in held])
    for parameter, change in zip(held, still, strict=True):
        assert isinstance(geometry.preconditioner(parameter, "p", lambda: pytest.fail("not needed")), Identity)
        term = geometry.momentum(parameter, "p")
        if momentum == 0:
            assert term is None and not change.any()
        else:
            assert term is not None and relative(-1e-2 * term, change) < 1e-12


@pytest.mark.parametrize("first_step", ["pool", "identity"])
def test_first_step_before_the_state_exists(first_step: Any) -> None:
    """``pool``: v_hat is the square of the valid pool's mean gradient; ``identity``: P = I. Nothing is divided by 0."""
    model = build("llama")
    optimizer = torch.optim.AdamW(model.parameters(), eps=1e-4)
    scorer = Scorer(model, optimizer, first_step=first_step)
    pool, target = ragged([7, 5, 6], [2, 5, 3]), ragged([6, 4], seed=1)
    names = list(scorer.parameters)
    g, tau = slow_matrix(model, pool, names), slow_matrix(model, target, names).mean(0)
    p = 1 / (g[[0, 2]].mean(0).abs() + 1e-4) if first_step == "pool" else torch.ones_like(tau)
    signals = scorer(pool, target, Needs(alignment=1, gram=1, momentum=True))
    assert signals.gram is not None and relative(signals.gram, (g * p) @ g.T) < 1e-9
    assert signals.alignment is not None and relative(signals.alignment, (g * p) @ tau) < 1e-9


def test_whole_update_is_matched_with_momentum() -> None:
    """b_i - beta1 g_i^T P m, m bias-corrected by the coming step (docs/METHOD.md)."""
    model = build("llama")
    held = list(model.parameters())
    optimizer = torch.optim.AdamW(held, lr=1e-3, betas=(BETA1, BETA2), eps=1e-3)
    train(optimizer, held)
    scorer = Scorer(model, optimizer)
    pool, target = ragged([7, 5, 6]), ragged([6, 4], seed=1)
    names = list(scorer.parameters)
    state = [optimizer.state[scorer.parameters[name]] for name in names]
    m = torch.cat([entry["exp_avg"].flatten() for entry in state]) / (1 - BETA1**4)
    v = torch.cat([entry["exp_avg_sq"].flatten() for entry in state]) / (1 - BETA2**3)
    g, tau = slow_matrix(model, pool, names), slow_matrix(model, target, names).mean(0)
    alignment = scorer(pool, target, Needs(alignment=1, momentum=True)).alignment
    assert alignment is not None
    assert relative(alignment, (g / (v.sqrt() + 1e-3)) @ (tau - BETA1 * m)) < 1e-9


@pytest.mark.parametrize("kind", ["adamw", "sgd", "momentum"])
def test_first_order_prediction(kind: str) -> None:
    """L_V(theta + D(sum w g)) - L_V(theta + D(0)) -> -lr c_t b^T w: the real step of the real optimizer."""
    model = build("llama")
    pool, target = ragged([7, 5, 6]), ragged([6, 4], seed=1)
    held = list(model.parameters())
    scale = 1e-6
    if kind == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(held, lr=scale, betas=(BETA1, BETA2), eps=1e-3)
        train(optimizer, held)
        for parameter in held:
            optimizer.state[parameter]["step"].fill_(LATE)
            optimizer.state[parameter]["exp_avg_sq"].add_(20.0)
        factor = scale * (1 - BETA1)
    else:
        optimizer = torch.optim.SGD(held, lr=scale, momentum=0.9 if kind == "momentum" else 0.0)
        train(optimizer, held)
        factor = scale
    scorer = Scorer(model, optimizer)
    names = [name for name, _ in model.named_parameters()]
    assert names == list(scorer.parameters)
    b = scorer(pool, target, Needs(alignment=1)).alignment
    assert b is not None
    weight = torch.tensor([0.7, 0.0, 1.9], dtype=torch.float64)
    gradient = (weight @ slow_matrix(model, pool, names)).split([parameter.numel() for parameter in held])
    shaped = [piece.view(parameter.shape) for piece, parameter in zip(gradient, held, strict=True)]
    with_it = update(optimizer, shaped, frozen=kind == "adamw")
    without = update(optimizer, [torch.zeros_like(piece) for piece in shaped], frozen=kind == "adamw")

    def target_loss(change: list[Tensor]) -> Tensor:
        with torch.no_grad():
            for parameter, delta in zip(held, change, strict=True):
                parameter += delta
            losses = Scorer(model.eval(), optimizer)(target, None, Needs(losses=True)).losses
            for parameter, delta in zip(held, change, strict=True):
                parameter -= delta
        assert losses is not None
        return losses.mean()

    difference = target_loss(with_it) - target_loss(without)
    predicted = -factor * (b @ weight)
    assert abs(float(predicted)) > 1e-9
    assert relative(difference[None], predicted[None]) < 1e-3


def test_wrapped_optimizers_are_unwrapped() -> None:
    held = parameters()
    optimizer = torch.optim.AdamW(held)
    train(optimizer, held)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    assert isinstance(geometry_of(wrapped).preconditioner(held[0], "p", lambda: held[0]), Diagonal)


def test_unknown_optimizer_is_refused_in_words() -> None:
    held = parameters()
    with pytest.raises(ValueError, match=r"RMSprop.*AdamW.*scoring\.geometry=identity"):
        geometry_of(torch.optim.RMSprop(held))
    assert isinstance(
        geometry_of(torch.optim.RMSprop(held), "identity").preconditioner(held[0], "", lambda: held[0]), Identity
    )
    with pytest.raises(ValueError, match=r"scoring\.geometry"):
        geometry_of(torch.optim.AdamW(held), "adam")
    with pytest.raises(ValueError, match=r"scoring\.first_step.*'zero'"):
        geometry_of(torch.optim.AdamW(held), first_step="zero")


def test_a_geometry_of_ones_own_is_taken_as_it_is() -> None:
    own = IdentityGeometry()
    assert geometry_of(torch.optim.AdamW(parameters()), own) is own


def test_only_a_small_p_is_ready_ahead() -> None:
    """Adafactor's of matrices that have a state; not Adam's, which is as large as the model."""
    matrix, vector = torch.nn.Parameter(normal(6, 4)), torch.nn.Parameter(normal(4, seed=1))
    named = {"matrix": matrix, "vector": vector}
    optimizer = torch.optim.Adafactor([matrix, vector], lr=1e-2)
    geometry = geometry_of(optimizer)
    assert not geometry.ready(named), "the first step takes the pool's gradient"
    train(optimizer, [matrix, vector])
    found = geometry.ready(named)
    assert set(found) == {"matrix"} and isinstance(found["matrix"], RankOne)
    alone = geometry.preconditioner(matrix, "matrix", matrix.detach)
    assert torch.equal(found["matrix"].tensor(matrix, 1.0), alone.tensor(matrix, 1.0))
    adam = torch.optim.AdamW([matrix, vector])
    train(adam, [matrix, vector])
    assert not geometry_of(adam).ready(named)


def test_p_ready_ahead_is_that_of_each_alone() -> None:
    """Of groups, precisions and shapes in any order; a P that ``eps1`` keeps from rank one is not ready."""
    shapes = [(6, 4), (3, 5), (4,), (4, 4), (2, 3, 4), (7, 2)]
    held = [nn.Parameter(normal(*shape, seed=seed)) for seed, shape in enumerate(shapes)]
    held[3].data = held[3].data.half()
    groups = [{"params": held[::2], "lr": 1e-2}, {"params": held[1::2], "lr": 3e-3, "eps": (1e-3, 2.0)}]
    optimizer = torch.optim.Adafactor(groups)
    for parameter in held:
        parameter.grad = normal(*parameter.shape, seed=9).to(parameter.dtype)
    optimizer.step()
    optimizer.state[held[5]]["row_var"][0] = 0
    geometry, named = geometry_of(optimizer), {f"p{at}": parameter for at, parameter in enumerate(held)}
    found = geometry.ready(dict(reversed(named.items())))
    assert set(found) == {"p0", "p1", "p3"}
    assert isinstance(geometry.preconditioner(held[5], "p5", held[5].detach), Diagonal)
    for name, preconditioner in found.items():
        alone = geometry.preconditioner(named[name], name, named[name].detach)
        assert isinstance(preconditioner, RankOne) and isinstance(alone, RankOne)
        assert torch.equal(preconditioner.row, alone.row) and torch.equal(preconditioner.column, alone.column)


def test_parameters_out_of_the_optimizer_are_named() -> None:
    model = build("llama")
    optimizer = torch.optim.AdamW(model.lm_head.parameters())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"is not in the optimizer.*scoring\.layers"):
        Scorer(model, optimizer)(ragged([5]), ragged([4]), Needs(alignment=1))
    assert Scorer(model, optimizer, layers="lm_head")(ragged([5]), ragged([4]), Needs(alignment=1)).valid.all()
    with pytest.raises(ValueError, match="maximize"):
        geometry_of(torch.optim.AdamW(model.parameters(), maximize=True)).momentum(next(model.parameters()), "p")
