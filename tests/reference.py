"""The slow, obvious way to everything the scoring engine computes; shares no code with it."""

import torch
from torch import Tensor, nn


def slow_gradients(model: nn.Module, batch: dict[str, Tensor], names: list[str]) -> list[dict[str, Tensor]]:
    """Per-example gradients the slow, obvious way: one example, unpadded, one torch.func.grad at a time."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    tied = {id(parameter): name for name, parameter in model.named_parameters()}
    held = dict(model.named_parameters())
    assert set(names) <= set(tied.values())
    found = []
    for row in range(len(batch["input_ids"])):
        length = int(batch["attention_mask"][row].sum())
        ids = batch["input_ids"][row : row + 1, :length]
        labels = batch["labels"][row, 1:length]

        def loss(params: dict[str, Tensor], ids: Tensor = ids, labels: Tensor = labels) -> Tensor:
            logits = torch.func.functional_call(model, params, (), {"input_ids": ids, "use_cache": False}).logits
            keep = labels != -100
            picked = logits[0, :-1][keep].log_softmax(-1)
            return -picked[torch.arange(int(keep.sum())), labels[keep]].mean()

        params = {name: held[name].detach() for name in names}
        if not (labels != -100).any():
            found.append({name: torch.zeros_like(value) for name, value in params.items()})
        else:
            found.append({key: value.detach() for key, value in torch.func.grad(loss)(params).items()})
    for module, flag in training:
        module.training = flag
    return found


def slow_matrix(model: nn.Module, batch: dict[str, Tensor], names: list[str]) -> Tensor:
    """Per-example gradients as the rows of one matrix, parameters in the order of ``names``."""
    gradients = slow_gradients(model, batch, names)
    return torch.stack([torch.cat([row[name].flatten() for name in names]) for row in gradients])


def relative(got: Tensor, expected: Tensor) -> float:
    assert float(expected.norm()) > 0
    return float((got - expected).norm() / expected.norm())


def warmed_up(model: nn.Module, **options: object) -> torch.optim.AdamW:
    """AdamW with a state that real steps left, on gradients of very different scales."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.8, 0.95), eps=1e-3, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in parameters:
            scale = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * scale
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def diagonal(optimizer: torch.optim.AdamW, model: nn.Module, names: list[str]) -> Tensor:
    held, parts = dict(model.named_parameters()), []
    for name in names:
        state = optimizer.state[held[name]]
        corrected = state["exp_avg_sq"] / (1 - 0.95 ** int(state["step"]))
        parts.append((1 / (corrected.sqrt() + 1e-3)).flatten())
    return torch.cat(parts)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
