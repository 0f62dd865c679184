"""Every test runs offline, on one thread, from fixed seeds, in an empty folder of its own."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read when the libraries are imported, so they are set before any test module is.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
    MPLBACKEND="agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name in ("WANDB_API_KEY", "HYDRA_FULL_ERROR", "WINNOW_ROOT"):
    os.environ.pop(name, None)

# Nothing of winnow is imported here at the top: jaxtyping's import hook is installed after this file is read.
import jaxtyping  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

from tests.checking import checked  # noqa: E402

jaxtyping.jaxtyped = checked(jaxtyping.jaxtyped)
settings.register_profile("thorough")  # ten times the layouts: tests/engine/test_layouts.py


class NetworkUsed(AssertionError):
    """A test reached for the network."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The machine's cores are shared by the tests that run side by side."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder and seeds of its own, no network, and nothing left behind in process-wide state."""
    from hydra.core.global_hydra import GlobalHydra

    environment = dict(os.environ)
    working = tmp_path / "cwd"
    working.mkdir()
    monkeypatch.chdir(working)
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        # W&B's own service listens on the loopback or on a Unix socket.
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "localhost", "::1")):
            raise NetworkUsed(f"a test reached for the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (what libraries under test may draw from)
    torch.manual_seed(0)
    yield
    GlobalHydra.instance().clear()
    os.environ.clear()
    os.environ.update(environment)


RATES: dict[Any, Any] = {}
"""Operations of each kind of pass, by what they follow from."""


@pytest.fixture(autouse=True)
def counted_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model built alike has its operations counted once, by some twenty small passes.

    Not where the counting is tested.
    """
    if request.path.name == "test_flops.py":
        return
    from winnow.scorer.flops import Rates

    count = Rates.__getitem__

    def known(self: Any, kind: str) -> Any:
        if kind in self._known:
            return count(self, kind)
        model = self._forward.model
        held = tuple((name, tuple(one.shape), one.requires_grad) for name, one in model.named_parameters())
        form = type(model), repr(model), str(getattr(model, "config", "")), held, tuple(self._parameters)
        attention = getattr(getattr(model, "config", None), "_attn_implementation", None)
        key = kind, *form, attention, model.training
        if key in RATES:
            self._known[kind] = RATES[key]
        elif (found := count(self, kind)).token == found.token:
            RATES[key] = found
        return self._known[kind]

    monkeypatch.setattr(Rates, "__getitem__", known)


@pytest.fixture
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of a few hundred tokens, trained on the spot."""
    from tests import runs

    return runs.tokenizer()


@pytest.fixture
def tiny_model() -> Any:
    """A fresh two-layer Llama from a config, the same weights every time."""
    from tests import runs

    return runs.model()
