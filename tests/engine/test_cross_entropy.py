"""The loss is torch's cross entropy, and its first and second derivatives are too; nothing is kept but the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from winnow.lm import nll as cross_entropy
from winnow.lm.nll import IGNORE, token_nll


@pytest.fixture(autouse=True, params=[1, 40, 10**6], ids=["a_row", "a_few_rows", "all_rows"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block."""
    monkeypatch.setattr(cross_entropy, "CPU_ELEMENTS", request.param)


def batch(dtype: torch.dtype, partial: bool = True) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (8 * torch.randn(3, 7, 11, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, 11, (3, 7), generator=generator)
    if partial:
        labels[0, :4] = labels[2, 6] = IGNORE
    return logits, labels


@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)]
)
def test_losses_and_gradients_are_those_of_torch(dtype: torch.dtype, tolerance: float, partial: bool) -> None:
    logits, labels = batch(dtype, partial)
    share = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1))
    found = token_nll(logits, labels)
    wide = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(wide.transpose(1, 2), labels, reduction="none")
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double(), expected, atol=min(tolerance, 1e-5), rtol=min(tolerance, 1e-5))
    (found * share).sum().backward()
    (expected * share).sum().backward()
    assert logits.grad is not None and wide.grad is not None and logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad.double(), wide.grad, atol=tolerance, rtol=tolerance)


def test_second_derivatives_are_those_of_the_loss() -> None:
    logits, labels = batch(torch.float64)
    assert torch.autograd.gradcheck(lambda values: token_nll(values, labels), (logits,))
    assert torch.autograd.gradgradcheck(lambda values: token_nll(values, labels), (logits,))


def test_a_position_without_a_label_may_hold_anything() -> None:
    logits, labels = batch(torch.float32)
    with torch.no_grad():
        logits[labels == IGNORE] = torch.nan
    found = token_nll(logits, labels)
    found.sum().backward()
    assert logits.grad is not None
    assert (found[labels == IGNORE] == 0).all() and found.isfinite().all()
    assert (logits.grad[labels == IGNORE] == 0).all() and logits.grad.isfinite().all()


def test_no_labels_at_all() -> None:
    logits, labels = batch(torch.float32)
    found = token_nll(logits, torch.full_like(labels, IGNORE))
    found.sum().backward()
    assert logits.grad is not None and not found.any() and not logits.grad.any()
