"""Operations that torch counts while something runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def counted(run: Callable[[], Any]) -> float:
    """Operations that torch counts while something runs, with those it has no formula for on a CPU or of experts.

    Args:
        run: what to count.

    Returns:
        Floating-point operations.
    """
    with FlopCounterMode(display=False, custom_mapping=_BESIDE) as counter:
        run()
    return float(counter.get_total_flops())


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


def _experts(left: Any, right: Any, *_: Any, **__: Any) -> int:
    """Rows of experts one behind the other, or gradients of each expert's weights: every row meets one matrix."""
    return int(2 * left[0] * left[1] * right[-1])


def _vector(total: Any, matrix: Any, vector: Any, *_: Any, **__: Any) -> int:
    return int(2 * matrix[0] * matrix[1])


def _in_place(total: Any, left: Any, right: Any, *_: Any, **__: Any) -> int:
    return int(2 * left[0] * left[1] * right[1])


_BESIDE = {
    torch.ops.aten.addmm_: _in_place,
    torch.ops.aten.addmv_: _vector,
    torch.ops.aten.addmv: _vector,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.aten._grouped_mm: _experts,
}
