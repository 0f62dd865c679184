"""The capture works with modules and modes it has no rule for, and refuses in words what it cannot split."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import VOCAB, build, double, ragged
from tests.reference import diagonal, relative, slow_matrix, warmed_up
from winnow.gradients.capture import Capture
from winnow.gradients.factors.base import Factor
from winnow.gradients.verify import GradientMismatch
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.signals import Needs

ALL = Needs(alignment=1, gram=1)


class Toy(nn.Module):
    """Embedding, one middle layer, output: an HF-like model around whatever layer is to be tested."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 6)
        self.middle = middle
        self.head = nn.Linear(6, VOCAB)

    def forward(self, input_ids: Tensor, attention_mask: Any = None, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.middle(self.embed(input_ids))))


def toy(middle: nn.Module) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Toy(middle).double()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter)
    return model


class Mixing(nn.Module):
    """Two parameters of its own, one of them a scalar, a keyword argument, and a functional bias."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.weight = nn.Parameter(torch.zeros(6, 6))

    def forward(self, x: Tensor, *, power: int = 2) -> Tensor:
        return torch.tanh(x @ self.weight) ** power * self.scale


class Opaque(torch.autograd.Function):
    """A custom function without vmap support."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grads[0] * weight, (grads[0] * x).flatten(0, -2).sum(0)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return Opaque.apply(x, self.weight)


class Twice(nn.Module):
    """One layer called twice, and one whose output is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.unused = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.inner(torch.tanh(self.inner(x)))


class Flattened(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.middle(x.flatten(0, 1)).view(x.shape)


class Routed(nn.Module):
    """Every other token goes through an expert, as in a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        routed = torch.arange(0, len(tokens), 2)
        return tokens.index_copy(0, routed, self.expert(tokens[routed])).view(x.shape)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.linear.weight


MIDDLES: dict[str, Any] = {
    "layer_norm": lambda: nn.LayerNorm(6),
    "rms_norm": lambda: nn.RMSNorm(6),
    "own_parameters": Mixing,
    "custom_function": Custom,
    "called_twice": Twice,
    "flattened_linear": lambda: Flattened(nn.Linear(6, 6)),
    "flattened_norm": lambda: Flattened(nn.RMSNorm(6)),
    "flattened_custom": lambda: Flattened(Custom()),
}


@pytest.mark.parametrize("middle", MIDDLES)
def test_any_module(middle: str) -> None:
    model = toy(MIDDLES[middle]())
    pool, target = ragged([7, 5, 4]), ragged([6, 4], seed=1)
    optimizer = warmed_up(model)
    scorer = Scorer(model, optimizer, chunk_elements=64)
    reference = toy(MIDDLES[middle]())
    reference.load_state_dict(model.state_dict())
    names = list(scorer.parameters)
    p = diagonal(optimizer, model, names)
    if "custom" in middle:  # torch.func cannot differentiate it either: an ordinary backward per example
        g = torch.stack([one_backward(model, pool, row, names) for row in range(3)])
        tau = torch.stack([one_backward(model, target, row, names) for row in range(2)]).mean(0)
    else:
        g, tau = slow_matrix(model, pool, names), slow_matrix(model, target, names).mean(0)
    signals = scorer(pool, target, ALL)
    assert signals.gram is not None and relative(signals.gram, (g * p) @ g.T) < 1e-9
    assert signals.alignment is not None and relative(signals.alignment, (g * p) @ tau) < 1e-9


def one_backward(model: nn.Module, batch: dict[str, Tensor], row: int, names: list[str]) -> Tensor:
    logits = model(input_ids=batch["input_ids"][row : row + 1]).logits[0, :-1]
    loss = nn.functional.cross_entropy(logits, batch["labels"][row, 1:])
    held = dict(model.named_parameters())
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, [held[name] for name in names])])


def test_routed_tokens_are_left_out_of_the_geometry_and_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    model = toy(Routed())
    pool, target, optimizer = ragged([7, 5, 4]), ragged([6], seed=1), warmed_up(model)
    scorer = Scorer(model, optimizer, target_ema=0.5)
    with caplog.at_level("WARNING", logger="winnow.scorer"):
        for _ in range(2):
            got = scorer(pool, target, ALL)
    assert len(caplog.records) == 1 and "middle.expert" in caplog.text and "out of the geometry" in caplog.text
    without = Scorer(model, optimizer, layers="embed|head", target_ema=0.5)
    assert list(scorer.parameters) == list(without.parameters)
    assert torch.equal(without(pool, target, ALL).gram, got.gram)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"middle\.expert.*scoring\.layers"):
        Scorer(model, optimizer, layers="expert")(pool, target, ALL)


def test_a_parameter_used_outside_its_module_is_found() -> None:
    model = toy(Functional())
    scorer = Scorer(model, warmed_up(model))
    with pytest.raises(GradientMismatch, match=r"middle\.linear\.weight.*scoring\.layers"):
        scorer(ragged([7, 5, 4]), ragged([6], seed=1), ALL)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True], ids=["non_reentrant", "reentrant"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradient_checkpointing_gives_the_same_and_stays_active(lora: bool, reentrant: bool) -> None:
    with double():
        model = build("llama", lora)  # lora_dropout: those modules alone leave training mode
        scorer = Scorer(model, warmed_up(model))
        pool, target = ragged([7, 5, 4]), ragged([6, 4], seed=1)
        plain = scorer(pool, target, ALL)
        model.activation_checkpointing_enable({"use_reentrant": reentrant})  # type: ignore[operator]
        layers = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
        functions = [layer._gradient_checkpointing_func for layer in layers]
        calls = []
        base: Any = model.get_base_model() if lora else model  # type: ignore[operator]
        handle = base.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        again = scorer(pool, target, ALL)
        handle.remove()
    assert len(calls) == 2, "the block runs again in the backward"
    assert layers and [layer._gradient_checkpointing_func for layer in layers] == functions
    assert plain.gram is not None and again.gram is not None
    assert torch.equal(plain.gram, again.gram)
    assert torch.equal(plain.alignment, again.alignment)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch.compile's own look at inputs
@pytest.mark.parametrize("how", ["wrapped", "in_place", "blocks"])
def test_a_compiled_model_has_the_same_scores_and_trains_compiled(how: str) -> None:
    model = build("llama").float()
    pool, target = ragged([7, 5, 4]), ragged([6, 4], seed=1)
    optimizer = warmed_up(model)
    plain = Scorer(model, optimizer)(pool, target, ALL)
    made, runs = [], []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(graph)

        def run(*args: Any) -> Any:
            runs.append(1)
            return graph(*args)

        return run

    compiled: Any = model
    if how == "wrapped":
        compiled = torch.compile(model, backend=backend)
    elif how == "in_place":
        model.compile(backend=backend)
    else:
        for layer in model.model.layers:  # type: ignore[union-attr,operator]
            layer.compile(backend=backend)
    compiled(**pool)
    before = len(made), len(runs)
    assert before[1] > 0, "training runs compiled code"
    signals = Scorer(compiled, optimizer, update="auto")(pool, target, ALL)
    assert len(runs) == before[1], "scoring does not"
    assert torch.equal(signals.gram, plain.gram)  # type: ignore[arg-type]
    assert torch.equal(signals.alignment, plain.alignment)  # type: ignore[arg-type]
    compiled(**pool)
    assert (len(made), len(runs)) == (before[0], 2 * before[1]), "and training goes on as before, not compiled anew"


@pytest.mark.parametrize("hold", [False, True])
def test_held_gradients_come_when_the_backward_is_through(hold: bool) -> None:
    """The same ones in the same order, without a graph and outside the caller's autocast; of a tied weight once."""
    model, batch = build("gpt2").eval(), ragged([5, 3])
    parameters = dict(model.named_parameters())
    given: dict[str, Tensor] = {}
    at_the_bottom: list[int] = []

    def add(name: str, factor: Factor) -> None:
        assert name not in given and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        given[name] = factor.combine(torch.ones(len(factor)).double())

    def mark(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        output.register_hook(lambda grad: at_the_bottom.append(len(given)))

    with torch.autocast("cpu"), torch.enable_grad():
        with Capture(model, parameters, *batch["input_ids"].shape, add, hold=hold) as capture:
            handle = model.get_input_embeddings().register_forward_hook(mark)
            with torch.autocast("cpu", enabled=False):
                losses = example_losses(model, batch, "sum")
            capture.backward(losses.sum())
        handle.remove()
    assert at_the_bottom == [0] if hold else 0 < at_the_bottom[0] < len(parameters)
    assert set(given) == set(parameters)
    example_losses(model, batch, "sum").sum().backward()
    for name, parameter in parameters.items():
        assert relative(given[name], parameter.grad) < 1e-12, name
