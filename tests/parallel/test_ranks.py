"""Promise 6: one pool over 1, 2 or 4 processes: the same K, b, choices and weights (METHOD.md)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.families import double
from tests.parallel import worlds
from tests.parallel.worlds import CASES, MORE, STEPS
from winnow.parallel import Diverged, Ranks, check_same
from winnow.parallel.same import digest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
EXACT = 1e-9


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run_worlds(out: Path, cases: str) -> Path:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-W", "ignore", worlds.__file__, str(out), cases]
    ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)
    assert ended.returncode == 0, ended.stdout[-3000:]
    return out


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What four processes computed, together and in pairs, and one alone."""
    return run_worlds(tmp_path_factory.mktemp("worlds"), "core")


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of the other cases."""
    return run_worlds(tmp_path_factory.mktemp("worlds"), "more")


def read(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def apart(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape
    assert torch.equal(got.isnan(), expected.isnan())
    got, expected = got.nan_to_num().double(), expected.nan_to_num().double()
    return float((got - expected).norm() / expected.norm().clamp_min(1e-30))


def compare(out: Path, name: str, size: int) -> None:
    alone = read(out / f"{name}-1.pt")
    if "-lora-" in name:
        assert not bool(alone[f"{worlds.NOT_FINITE}/valid"].all())
    assert {"0/index", f"{STEPS - 1}/index"} < set(alone) and any(key.startswith("weights/") for key in alone)
    for rank in range(size):
        found = read(out / f"{name}-{size}-{rank}.pt")
        assert set(found) == set(alone)
        for step in range(STEPS):
            assert torch.equal(found[f"{step}/index"], alone[f"{step}/index"]), f"choice of step {step}"
        worst = {key: off for key, value in alone.items() if (off := apart(found[key], value)) > EXACT}
        assert not worst


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in CASES.items() for size in case.sizes])
def test_many_processes_do_what_one_does(core: Path, name: str, size: int) -> None:
    compare(core, name, size)


@pytest.mark.long
@pytest.mark.parametrize(("name", "size"), [(name, size) for name, case in MORE.items() for size in case.sizes])
def test_many_processes_do_what_one_does_in_other_ways(more: Path, name: str, size: int) -> None:
    compare(more, name, size)


def test_every_process_holds_the_same_bits(core: Path) -> None:
    first, *others = [read(core / f"filter_weight-full-adamw-4-{rank}.pt") for rank in range(4)]
    assert all(torch.equal(other[key].nan_to_num(), first[key].nan_to_num()) for other in others for key in first)


def test_gradients_in_bf16_on_the_wire_cost_less(core: Path) -> None:
    found, alone = read(core / "bf16-4-0.pt"), read(core / "filter_weight-lora-adamw-1.pt")
    assert 1e-6 < apart(found["0/K"], alone["0/K"]) < 2e-2
    assert apart(found["0/b"], alone["0/b"]) < 2e-2
    exact, halved = found["bytes"].tolist()
    assert 0.2 < halved / exact < 0.7


def test_candidates_of_one_process_alone_send_no_gradients(core: Path) -> None:
    sent = read(core / "sent-0.pt") | read(core / "sent-2.pt")
    assert 0 < int(sent["per_rank-full-adamw"][0]) < 0.6 * int(sent["filter_weight-full-adamw"][0])
    gram = read(core / "per_rank-full-adamw-2-0.pt")["0/K"]
    assert bool((gram[:7, :7] != 0).all()) and not bool(gram[:7, 7:].any())


def share_of(case: worlds.Case) -> int:
    """Bytes that one of two processes holds of what is split; rows that do not divide by two are filled up."""
    with double():
        split = [held for held in case.model().parameters() if not (case.lora and held.requires_grad)]
    return sum(-(-len(held) // 2) * held[0].numel() * held.element_size() for held in split)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.sharded and not case.options])
def test_what_fsdp2_sends_is_counted_once(core: Path, name: str) -> None:
    sent = [found[name] for rank in range(4) if name in (found := read(core / f"sent-{rank}.pt"))]
    case, whole = CASES[name], (read(core / "sent-0.pt") | read(core / "sent-2.pt"))["filter_weight-lora-adamw"]
    twice = case.update == "two_pass"
    passes, reduced = STEPS * (2 if twice else 1), STEPS * twice  # one pass takes gradients before FSDP2 has them
    # Every pass gathers going forward and going back; of two processes each sends the half that is not its own.
    times, checks = 2 * passes + (0 if case.lora else reduced), 2 * 2 + (0 if case.lora else 1)
    if name == worlds.SENT_TOGETHER:
        # What winnow sends itself is of the adapter, split base or not; checks of the first pool are no step's.
        assert [int(one[0]) for one in sent] == [int(whole[0]) + times * share_of(case)] * 2 and int(whole[1]) == 0
    else:
        assert [int(one[1]) for one in sent] == [(times + checks) * share_of(case)] * 2


def test_a_backward_in_which_fsdp2_mixes_experts_up_is_refused(core: Path) -> None:
    for rank in range(4):
        apart, same, turned, uncounted, *_ = (core / f"said-{rank}.txt").read_text().splitlines()
        assert same == "nothing" and turned == apart
        assert apart.startswith("the loss of some processes reached experts.0.weight and that of others did not (4 ")
        assert "set scoring.update=one_pass, or parallel.base=whole" in apart
        assert uncounted.startswith("what FSDP2 sends of the model is not counted in budget/bytes: ")


def test_curvature_is_refused_where_there_is_no_whole_pool_or_no_way_back_twice(core: Path) -> None:
    for rank in range(4):
        *_, per_rank, sharded = (core / f"said-{rank}.txt").read_text().splitlines()
        for said, way_on in ((per_rank, "leave parallel.pool=global"), (sharded, "leave parallel.base=whole")):
            assert "selector.order=second" in said and said.endswith(f"set selector.order=first, or {way_on}")


class Two(Ranks):
    """Two processes, of which the other says what it is told to."""

    def __init__(self, other: Tensor) -> None:
        self.rank, self.size, self.device, self.other = 0, 2, torch.device("cpu"), other

    def gather(self, own: Tensor, total: int) -> Tensor:
        return torch.cat([own, self.other])


def test_processes_that_train_different_models_are_stopped() -> None:
    one = {"a": torch.nn.Parameter(torch.arange(6.0)), "b": torch.nn.Parameter(torch.ones(2))}
    check_same(one, Two(digest(one)[None]), 1)
    swapped = {"a": torch.nn.Parameter(torch.arange(6.0).flip(0)), "b": one["b"]}
    with pytest.raises(Diverged, match="after update 1 the trained parameters of process 1 are not those of process 0"):
        check_same(one, Two(digest(swapped)[None]), 1)
