"""P of every supported optimizer is what its real step does with a gradient: Delta(g) - Delta(h) = -eta c P (g - h).

"Frozen as stated" is made true in the real step: a second moment by setting the state to what the step turns into
the frozen value, Newton-Schulz by handing the optimizer the frozen matrix from a singular value decomposition.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tests.families import build, double, ragged
from tests.reference import normal, relative, slow_matrix
from winnow import optim
from winnow.geometry import Diagonal, Identity, OneSided, RankOne, geometry_of
from winnow.geometry.muon import newton_schulz
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense, Scaled
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.factors.sum import Sum
from winnow.optim import MuonWithAdamW, wants_names
from winnow.scorer import Scorer
from winnow.selectors import Opus
from winnow.signals import Needs

SHAPES = ((5, 3), (3, 6), (4,))


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def parameters(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [nn.Parameter(normal(*shape, seed=at)) for at, shape in enumerate(shapes or SHAPES)]


def train(optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        for group in optimizer.param_groups:
            for at, held in enumerate(group["params"]):
                held.grad = normal(*held.shape, seed=100 * step + at) * normal(*held.shape, seed=7).abs()
        optimizer.step()
    optimizer.zero_grad()


Freeze = Callable[[dict[str, Any], dict[str, Any], Tensor], None]


def change(optimizer: torch.optim.Optimizer, gradients: list[Tensor], freeze: Freeze | None = None) -> list[Tensor]:
    """What the real step would change, on a copy; ``freeze`` sets a parameter's state before it."""
    twin = copy.deepcopy(optimizer)
    pairs = [(group, held) for group in twin.param_groups for held in group["params"]]
    before = [held.detach().clone() for _, held in pairs]
    for (group, held), gradient in zip(pairs, gradients, strict=True):
        held.grad = gradient.clone()
        if freeze is not None:
            freeze(group, twin.state[held], gradient)
    twin.step()
    return [held.detach() - old for (_, held), old in zip(pairs, before, strict=True)]


def no_pool() -> Tensor:
    raise AssertionError("the state is there")


def check_step(
    optimizer: torch.optim.Optimizer, freeze: Freeze | None, reference: float, scale: float = 1e-2
) -> list[Any]:
    """Delta(g) - Delta(h) against -reference P (g - h); gives the preconditioners."""
    geometry = geometry_of(optimizer)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    first, second = ([scale * normal(*p.shape, seed=seed + at) for at, p in enumerate(held)] for seed in (50, 60))
    moves = zip(held, first, second, change(optimizer, first, freeze), change(optimizer, second, freeze), strict=True)
    found = []
    for parameter, g, h, with_g, with_h in moves:
        p = geometry.preconditioner(parameter, "p", no_pool)
        assert relative(with_g - with_h, -reference * p.tensor(g - h, 1.0)) < 1e-9
        root = p.tensor(p.tensor(g, 0.5), 0.5)
        assert relative(root, p.tensor(g, 1.0)) < 1e-9
        assert relative(p.tensor(g, 2.0), p.tensor(p.tensor(g, 1.0), 1.0)) < 1e-9
        found.append(p)
    return found


def adam_freeze(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> None:
    beta = group["betas"][1]
    state["exp_avg_sq"].copy_((state["exp_avg_sq"] - (1 - beta) * gradient.square()) / beta)
    assert (state["exp_avg_sq"] >= 0).all()


def test_adam_groups_of_different_rates_and_betas() -> None:
    """Groups with another lr or beta1 move more or less for the same gradient: P is relative to the first group's."""
    held = parameters()
    optimizer = torch.optim.AdamW(
        [
            {"params": held[:1], "lr": 1e-3, "betas": (0.8, 0.95)},
            {"params": held[1:2], "lr": 5e-3, "betas": (0.8, 0.95)},
            {"params": held[2:], "lr": 1e-3, "betas": (0.5, 0.95), "weight_decay": 0.3},
        ],
        eps=1e-3,
        weight_decay=0.0,
    )
    train(optimizer)
    for parameter in held:  # late, so that bias correction is over: the frozen moment is then exact
        optimizer.state[parameter]["step"].fill_(2000)
    found = check_step(optimizer, adam_freeze, reference=1e-3 * (1 - 0.8))
    assert all(isinstance(p, Diagonal) for p in found)
    geometry = geometry_of(optimizer)
    for parameter, still in zip(held, change(optimizer, [torch.zeros_like(p) for p in held], adam_freeze), strict=True):
        term, p = geometry.momentum(parameter, "p"), geometry.preconditioner(parameter, "p", no_pool)
        decay = -1e-3 * 0.3 * parameter.detach() if parameter is held[2] else 0
        assert term is not None  # momentum counts on the scale of the first group's whole update
        assert relative(still - decay, -1e-3 * p.tensor(term, 1.0)) < 1e-9


def test_rates_at_the_foot_of_a_warm_up_are_those_it_leads_to() -> None:
    held = parameters((3, 2), (4, 2))
    optimizer = torch.optim.SGD([{"params": held[:1], "lr": 0.1}, {"params": held[1:], "lr": 0.3}])
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0]
    geometry, ones = geometry_of(optimizer), torch.ones(4, 2, dtype=torch.float64)
    assert isinstance(geometry.preconditioner(held[0], "p", no_pool), Identity)
    assert relative(geometry.preconditioner(held[1], "p", no_pool).tensor(ones, 2.0), 9 * ones) < 1e-12
    optimizer.param_groups[1]["lr"] = 0.5  # a group at rest moves nothing; the other is the reference
    assert not geometry.preconditioner(held[0], "p", no_pool).tensor(ones[:3], 1.0).any()
    assert isinstance(geometry.preconditioner(held[1], "p", no_pool), Identity)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening"), [(0.0, False, 0.0), (0.8, False, 0.3), (0.8, True, 0.0)]
)
def test_sgd_groups(momentum: float, nesterov: bool, dampening: float) -> None:
    held = parameters()
    groups = [{"params": held[:1], "lr": 0.1, "momentum": 0.5}, {"params": held[1:], "lr": 0.2, "momentum": momentum}]
    optimizer = torch.optim.SGD(groups, nesterov=False, dampening=0.0)
    optimizer.param_groups[1].update(nesterov=nesterov, dampening=dampening)
    train(optimizer)
    check_step(optimizer, None, reference=0.1)


def adafactor_freeze(group: dict[str, Any], state: dict[str, Any], gradient: Tensor) -> None:
    share = (float(state["step"]) + 1) ** group["beta2_decay"]
    for name, axis in (("row_var", -1), ("col_var", -2), ("variance", None)):
        if name in state:
            square = gradient.square() if axis is None else gradient.square().mean(axis, keepdim=True)
            state[name].copy_((state[name] - share * square) / (1 - share))
            assert (state[name] > 0).all()


@pytest.mark.parametrize("foreach", [False, True])
def test_adafactor(foreach: bool) -> None:
    held = parameters()
    held[1].data *= 1e-4  # below eps2, the least scale of a parameter
    groups = [{"params": held[:1], "lr": 1e-2}, {"params": held[1:], "lr": 3e-2, "weight_decay": 0.1}]
    optimizer = torch.optim.Adafactor(groups, foreach=foreach, eps=(None, 1e-3), d=1e9)
    train(optimizer)
    found = check_step(optimizer, adafactor_freeze, reference=1e-2)
    assert [type(p) for p in found] == [RankOne, RankOne, Diagonal]
    for parameter in held:  # so late that 1/sqrt(t) is the smaller of the two for the second group
        optimizer.state[parameter]["step"].fill_(2000)
    check_step(optimizer, adafactor_freeze, reference=1e-2, scale=1e-3)
    assert geometry_of(optimizer).momentum(held[0], "p") is None


def test_adafactor_where_eps_holds_entries_up_and_at_the_first_step() -> None:
    held = parameters((5, 3))
    optimizer = torch.optim.Adafactor(held, lr=1e-2, eps=(1e-2, 1e-3), d=1e9)
    mean = normal(5, 3, seed=3)
    rank_one = geometry_of(optimizer).preconditioner(held[0], "p", lambda: mean)
    assert isinstance(rank_one, RankOne), "no state yet: the moments of the pool's mean gradient"
    # Adafactor's own first step takes the moments of its own gradient.
    assert relative(change(optimizer, [mean])[0], -1e-2 * rank_one.tensor(mean, 1.0)) < 1e-9
    identity = geometry_of(optimizer, first_step="identity").preconditioner(held[0], "p", no_pool)
    assert isinstance(identity, Identity)
    train(optimizer)
    optimizer.param_groups[0]["eps"] = (1e-1, 1e-3)
    optimizer.state[held[0]]["row_var"][2] = 1e-5  # a row that sees next to no gradient
    (p,) = check_step(optimizer, adafactor_freeze, reference=1e-2, scale=1e-5)
    assert isinstance(p, Diagonal), "no longer of rank one"


def slow_newton_schulz(frozen: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The matrix that Newton-Schulz multiplies by, from a singular value decomposition."""
    left, values, right = torch.linalg.svd(frozen, full_matrices=True)
    norm = max(float(frozen.norm()), eps)
    a, b, c = coefficients
    out = values / norm
    for _ in range(steps):
        out = a * out + b * out**3 + c * out**5
    basis = right.T if frozen.shape[0] > frozen.shape[1] else left
    return basis @ torch.diag(out / values) @ basis.T


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", [None, "match_rms_adamw"])
def test_muon(nesterov: bool, adjust: str | None) -> None:
    held = parameters((5, 3), (3, 6))
    optimizer = torch.optim.Muon(held, lr=2e-2, momentum=0.9, nesterov=nesterov, adjust_lr_fn=adjust, weight_decay=0.2)
    train(optimizer)
    share = 0.81 if nesterov else 0.9
    frozen = {tuple(parameter.shape): share * optimizer.state[parameter]["momentum_buffer"] for parameter in held}

    def linear(update: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
        matrix = slow_newton_schulz(frozen[tuple(update.shape)], coefficients, steps, eps)
        return update @ matrix if update.shape[0] > update.shape[1] else matrix @ update

    reference = 2e-2 * (1 - share)
    with mock.patch("torch.optim._muon._zeropower_via_newtonschulz", linear):
        assert all(isinstance(p, OneSided) for p in check_step(optimizer, None, reference))
    # The rule as it is, but in float64 for torch's bfloat16: where the gradient is zero nothing is frozen.
    with mock.patch.object(Tensor, "bfloat16", lambda tensor: tensor.clone()):
        still = change(optimizer, [torch.zeros_like(parameter) for parameter in held])
    geometry = geometry_of(optimizer)
    for parameter, moved in zip(held, still, strict=True):
        term, p = geometry.momentum(parameter, "p"), geometry.preconditioner(parameter, "p", no_pool)
        assert term is not None
        assert relative(moved, -2e-2 * (0.2 * parameter.detach() + p.tensor(term, 1.0))) < 1e-9


def test_muon_at_the_first_step_and_with_odd_coefficients() -> None:
    held = parameters((3, 5))
    optimizer = torch.optim.Muon(held, lr=2e-2, weight_decay=0.0)
    mean = normal(3, 5, seed=3)
    p = geometry_of(optimizer).preconditioner(held[0], "p", lambda: mean)
    with mock.patch.object(Tensor, "bfloat16", lambda tensor: tensor.clone()):
        moved = change(optimizer, [mean])[0]
    assert relative(moved, -2e-2 * (1 - 0.95**2) * p.tensor(mean, 1.0)) < 1e-9
    identity = geometry_of(optimizer, first_step="identity").preconditioner(held[0], "p", no_pool)
    assert isinstance(identity, Identity)
    negative = torch.optim.Muon(held, ns_coefficients=(-1.0, 0.0, 0.0), ns_steps=1)
    with pytest.raises(ValueError, match=r"ns_coefficients.*scoring\.geometry=identity"):
        geometry_of(negative).preconditioner(held[0], "p", lambda: mean)


def pair(held: list[nn.Parameter]) -> MuonWithAdamW:
    names = ("layers.0.weight", "embed.weight", "norm.weight")
    return MuonWithAdamW(
        list(zip(names, held, strict=True)), lr=2e-2, momentum=0.9, adamw_lr=1e-3, adamw_betas=(0.8, 0.95),
        adamw_eps=1e-3, adamw_weight_decay=0.1,
    )  # fmt: skip


def test_muon_with_adamw_is_both_and_its_geometry_relates_their_steps() -> None:
    held = parameters()
    optimizer, twins = pair(held), [nn.Parameter(parameter.detach().clone()) for parameter in held]
    muon = torch.optim.Muon(twins[:1], lr=2e-2, momentum=0.9, weight_decay=0.0)
    adam = torch.optim.AdamW(twins[1:], lr=1e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1)
    for inner in (muon, adam):
        train(inner)
    train(optimizer)
    assert [group["rule"] for group in optimizer.param_groups] == ["muon", "adamw"]
    start = parameters()[0]
    # On a CPU ours iterates in full precision, torch's in bfloat16.
    assert relative((held[0] - start).detach(), (twins[0] - start).detach()) < 3e-2
    for got, expected in zip(held[1:], twins[1:], strict=True):
        assert torch.equal(got, expected)
    geometry = geometry_of(optimizer)
    alone = [geometry_of(muon).preconditioner(twins[0], "p", no_pool)]
    alone += [geometry_of(adam).preconditioner(twin, "p", no_pool) for twin in twins[1:]]
    step_of_adam = 1e-3 * (1 - 0.8) / (1 - 0.8**4)
    for at, (parameter, p) in enumerate(zip(held, alone, strict=True)):
        g = normal(*parameter.shape, seed=9)
        relation = 1 if at == 0 else step_of_adam / (2e-2 * (1 - 0.9**2))
        assert (
            relative(geometry.preconditioner(parameter, "p", no_pool).tensor(g, 1.0), relation * p.tensor(g, 1.0))
            < 1e-12
        )


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_the_iteration_on_a_cpu_is_the_polynomial_that_the_geometry_freezes(shape: tuple[int, int]) -> None:
    x, options = normal(*shape, seed=3), ((3.4445, -4.775, 2.0315), 5, 1e-7)
    values, vectors = newton_schulz(x, *options)
    a = vectors * values @ vectors.T
    assert relative(optim._newton_schulz(x, *options), x @ a if shape[0] > shape[1] else a @ x) < 1e-9


def test_muon_with_adamw_resumes_exactly() -> None:
    def go(optimizer: torch.optim.Optimizer, seeds: range) -> None:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        for seed in seeds:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = normal(*parameter.shape, seed=seed)
            optimizer.step()
        schedule.step()

    whole, halves = parameters(), parameters()
    first = pair(whole)
    go(first, range(2))
    state = copy.deepcopy(first.state_dict())
    for old, new in zip(whole, halves, strict=True):
        new.data.copy_(old)
    second = pair(halves)
    second.load_state_dict(state)
    for optimizer in (first, second, copy.deepcopy(second)):
        go(optimizer, range(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    with pytest.raises(ValueError, match="named_parameters"):
        MuonWithAdamW(parameters())  # type: ignore[arg-type]
    assert wants_names(MuonWithAdamW) and not wants_names(torch.optim.AdamW)


def test_lion_is_refused_with_the_reason() -> None:
    kind = type("Lion", (torch.optim.Optimizer,), {})
    optimizer = kind(parameters(), {"lr": 1e-4})
    with pytest.raises(ValueError, match=r"sign.*derivative.*optimizer=adamw.*scoring\.geometry=identity"):
        geometry_of(optimizer)
    assert geometry_of(optimizer, "identity").momentum(parameters()[0], "p") is None


def test_adamw_of_bitsandbytes() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    held = [nn.Parameter(normal(80, 60).float()), nn.Parameter(normal(5).float())]
    optimizer = bitsandbytes.optim.AdamW8bit(held, lr=1e-3, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.0)
    for step in range(3):
        for parameter in held:
            parameter.grad = normal(*parameter.shape, seed=step).float()
        optimizer.step()
    state = optimizer.state[held[0]]
    assert state["state2"].dtype == torch.uint8 and optimizer.state[held[1]]["state2"].dtype == torch.float32
    geometry = geometry_of(optimizer)
    for parameter, tolerance in zip(held, (1e-6, 1e-6), strict=True):
        state = optimizer.state[parameter]
        v, m = state["state2"], state["state1"]
        if v.dtype == torch.uint8:
            unpack = bitsandbytes.functional.dequantize_blockwise
            v = unpack(v, absmax=state["absmax2"], code=state["qmap2"], blocksize=256)
            m = unpack(m, absmax=state["absmax1"], code=state["qmap1"], blocksize=256)
        p = geometry.preconditioner(parameter, "p", no_pool)
        expected = 1 / ((v / (1 - 0.95**3)).sqrt() + 1e-3)
        assert relative(p.tensor(torch.ones_like(parameter), 1.0), expected) < tolerance
        term = geometry.momentum(parameter, "p")
        assert term is not None and relative(term, 0.8 * m / (1 - 0.8**4)) < tolerance


def factors() -> dict[str, Factor]:
    left, right = normal(3, 4, 5), normal(3, 4, 2, seed=1)
    scatter = Scatter(torch.tensor([[0, 4, 4, 1], [2, 2, 2, 2], [3, 0, 1, 4]]), normal(3, 4, 2, seed=2), 5)
    outer, dense = OuterProduct(left, right), Dense(normal(3, 5, 2, seed=3))
    scaled = Scaled(OuterProduct(left, right), normal(5, 2, seed=4))
    return {"outer": outer, "scatter": scatter, "dense": dense, "scaled": scaled, "sum": Sum([outer, scatter, dense])}


@pytest.mark.parametrize("name", ["outer", "scatter", "dense", "scaled", "sum"])
def test_maps_of_factors_are_those_of_their_gradients(name: str) -> None:
    factor = factors()[name]
    g = factor.rows(slice(None))
    row, column = normal(5, seed=6), normal(2, seed=7)
    a, b = normal(5, 5, seed=8), normal(2, 2, seed=9)
    a, b = a + a.T, b + b.T
    for got, expected in [
        (factor.times(-1.5), -1.5 * g),
        (factor.scale_sides(row, column), row[:, None] * g * column),
        (factor.multiply_left(a), a @ g),
        (factor.multiply_right(b), g @ b),
    ]:
        assert relative(got.rows(slice(None)), expected) < 1e-12
        assert relative(got.inner(torch.ones_like(g[0])), expected.flatten(1).sum(1)) < 1e-12
    if name == "outer":
        assert isinstance(factor.scale_sides(row, column), OuterProduct)
        assert isinstance(factor.multiply_left(a), OuterProduct)


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_products_of_a_model_against_slow_gradients(kind: str) -> None:
    """K and b of every power, tied embedding included, with P put together entry by entry."""
    model = build("qwen3")
    if kind == "adafactor":
        optimizer: torch.optim.Optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-2)
    else:
        optimizer = MuonWithAdamW(model.named_parameters(), adamw="norm", adamw_eps=1e-3)
    train(optimizer)
    scorer = Scorer(model, optimizer, layers="embed|layers.0.(self_attn|input)", chunk_elements=300)
    names = list(scorer.parameters)
    assert "model.embed_tokens.weight" in names
    pool, target = ragged([7, 5, 6], [2, 3, 3]), ragged([6, 4], seed=1)
    g, t = slow_matrix(model, pool, names), slow_matrix(model, target, names).mean(0)
    held = dict(model.named_parameters())
    blocks = []
    for name in names:
        p = geometry_of(optimizer).preconditioner(held[name], name, no_pool)
        eye = torch.eye(held[name].numel(), dtype=torch.float64)
        blocks.append(torch.stack([p.tensor(row.view(held[name].shape), 1.0).flatten() for row in eye]))
    matrix = torch.block_diag(*blocks)
    assert relative(matrix, matrix.T) < 1e-12
    for power in (1, 2):
        signals = scorer(pool, target, Needs(alignment=power, gram=power, norms=2))
        raised = torch.linalg.matrix_power(matrix, power)
        assert signals.gram is not None and relative(signals.gram, g @ raised @ g.T) < 1e-9
        assert signals.alignment is not None and relative(signals.alignment, g @ raised @ t) < 1e-9
        assert signals.norms is not None and relative(signals.norms, (g @ matrix).norm(dim=1)) < 1e-9
    sketched = scorer(pool, target, Opus(sketch=2**22).needs)  # so wide that no two coordinates meet
    assert sketched.gram is not None and relative(sketched.gram, g @ matrix @ matrix @ g.T) < 1e-9
    assert sketched.alignment is not None and relative(sketched.alignment, g @ matrix @ t) < 1e-9
