"""Scores of a whole stream: what is in the file, what it cost, and runs that use it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from tests import runs
from tests.commands import SMALL, configured, save_base
from tests.reference import relative
from winnow.data import Example, collate, encode
from winnow.data.batch import pad_token_id
from winnow.data.subset import restrict
from winnow.lm.losses import example_losses
from winnow.offline.ngrams import NGrams
from winnow.run import run
from winnow.run.instantiate import BuildError
from winnow.run.score import run as score_stream_of

STREAM = 24


def example(number: int) -> Example:
    """No prompt of another number."""
    plain = runs.example(number)
    return replace(plain, prompt=f"{number}: {plain.prompt}")


def jsonl(name: str, numbers: range) -> str:
    rows = [example(number) for number in numbers]
    text = "\n".join(json.dumps({"id": row.id, "prompt": row.prompt, "response": row.response}) for row in rows)
    Path(name).write_text(text, encoding="utf-8")
    return name


def files() -> list[str]:
    """A finite stream and two targets in the folder one is in."""
    jsonl("stream.jsonl", range(STREAM))
    jsonl("a.jsonl", range(1000, 1006))
    jsonl("b.jsonl", range(2000, 2003))
    jsonl("test.jsonl", range(5000, 5004))
    targets = [
        "data.corpus.targets.target=null",
        "+data.corpus.targets.a={val: a.jsonl, test: test.jsonl, weight: 3.0}",
        "+data.corpus.targets.b={val: b.jsonl, test: test.jsonl}",
    ]
    small = [option for option in SMALL if "corpus" not in option]
    return [*small, "data=jsonl", "data.corpus.stream=stream.jsonl", *targets]


def scored(*overrides: str, file: str = "scores.parquet", out: str = "out") -> tuple[pd.DataFrame, dict[str, Any]]:
    with configured(*overrides, f"file={file}", out=out, config="score") as cfg:
        score_stream_of(cfg)
    return pd.read_parquet(file), json.loads(Path(file).with_suffix(".json").read_text())


def train(*overrides: str, out: str) -> dict[str, Any]:
    with configured(*overrides, out=out) as cfg:
        run(cfg)
    return json.loads((Path(out) / "summary.json").read_text())


def kept(out: str) -> list[tuple[int, str]]:
    rows = pd.read_parquet(Path(out) / "ledger.parquet")
    return list(rows[rows["kept"]][["step", "id"]].itertuples(index=False, name=None))


def gradients(model: torch.nn.Module, numbers: range) -> torch.Tensor:
    """One example at a time, by autograd."""
    found = []
    for number in numbers:
        row = encode(example(number), runs.tokenizer(), 96)
        loss = example_losses(model, collate([row], pad_token_id(runs.tokenizer())))
        parts = torch.autograd.grad(loss.sum(), list(model.parameters()))
        found.append(torch.cat([part.flatten() for part in parts]).double())
    return torch.stack(found)


def test_reference_losses_from_a_file_choose_what_the_model_does() -> None:
    """Train a reference, score the stream with it, and train with either: the same choice."""
    save_base()
    train(*SMALL, "baseline=full", "seed=7", "optimizer.lr=1e-2", out="ref")
    facts = scored(*SMALL, "selector=max_loss", "model.path=ref/model", file="reference.parquet")[1]
    assert facts["candidates"] == 4 * 8, "as many of an endless stream as a run sees"
    loaded = train(*SMALL, "baseline=rho_loss", "scoring.reference=ref/model", out="one")
    read = train(*SMALL, "baseline=rho_loss", "scoring.reference=reference.parquet", out="two")
    assert kept("one") == kept("two") and len(kept("one")) == 16
    train(*SMALL, "baseline=max_loss", out="other")
    assert kept("other") != kept("one"), "the reference decides"
    assert "preparation" not in loaded
    assert read["preparation"]["examples"] == 32 and read["preparation"]["tokens"] == facts["tokens"]
    assert 0 < read["preparation"]["seconds"] == facts["cost"]["seconds"]
    assert read["preparation"]["parts"][0]["key"] == "scoring.reference"


def test_alignment_and_cosine_are_those_of_one_gradient_at_a_time() -> None:
    """Against the whole validation splits by the tasks' weights; the last pool is a part of one. Rows have weights."""
    save_base()
    options = [*files(), "data.pool_size=7", "scoring.geometry=identity"]
    weights = [(0.25, 1.0, 3.0)[number % 3] for number in range(STREAM)]
    rows = [json.loads(line) for line in Path("stream.jsonl").read_text().splitlines()]
    weighed = (json.dumps({**row, "weight": weight}) for row, weight in zip(rows, weights, strict=True))
    Path("stream.jsonl").write_text("\n".join(weighed))
    table, facts = scored(*options, "selector=filter_weight")
    g, a, b = (gradients(runs.model(), numbers) for numbers in (range(STREAM), range(1000, 1006), range(2000, 2003)))
    g *= torch.tensor(weights)[:, None]
    target = 0.75 * a.mean(0) + 0.25 * b.mean(0)
    assert relative(torch.tensor(table["alignment"].to_numpy()), g @ target) < 1e-4
    assert relative(torch.tensor(table["score"].to_numpy()), g @ target / g.norm(dim=1)) < 1e-4
    assert facts["target_examples"] == 9 and facts["cost"]["examples"] == STREAM + 9

    table, _ = scored(*options, "baseline=less", file="less.parquet")
    cosines = torch.stack([torch.cosine_similarity(g, one.mean(0)[None]) for one in (a, b)])
    for name, row in zip("ab", cosines, strict=True):
        assert relative(torch.tensor(table[f"score/{name}"].to_numpy()), row) < 1e-4
    assert relative(torch.tensor(table["score"].to_numpy()), cosines.max(0).values) < 1e-4
    rough, _ = scored(*options, "baseline=less", "projection=4096", file="rough.parquet")
    gap = (rough["score"] - table["score"]).abs()
    assert 1e-6 < gap.mean() < 3 / 4096**0.5


@pytest.mark.parametrize("selector", ["embedding", "mid_ppl", "grad_norm", "data_shapley", "tracin"])
def test_a_score_keeps_what_the_selector_keeps_of_one_pool(selector: str) -> None:
    """With the whole stream as the pool and the whole validation split as target batch, at the first step."""
    save_base()
    options = [*files(), f"selector={selector}", f"data.pool_size={STREAM}", "data.target_batch_size=3"]
    options = [option for option in options if ".targets.a=" not in option]
    table, _ = scored(*options)
    train(*options, "trainer.max_steps=1", "trainer.val_check_interval=1", out="run")
    assert {name for _, name in kept("run")} == set(table.nlargest(4, "score")["id"])


def test_less_adds_up_checkpoints_by_learning_rate_before_it_looks_for_the_best_task() -> None:
    save_base()
    options = files()
    every = (
        "+callbacks.some={_target_: lightning.pytorch.callbacks.ModelCheckpoint, dirpath: warm/checkpoints, "
        "save_top_k: -1, every_n_train_steps: 2, filename: '{step}'}"
    )
    decays = ["scheduler=cosine", "scheduler.num_warmup_steps=0"]
    summary = train(*options, "baseline=full", "trainer.max_steps=4", *decays, every, out="warm")
    paths = [f"warm/checkpoints/step={step}.ckpt" for step in (2, 4)]
    both, facts = scored(*options, "baseline=less", f"ckpt_path=[{','.join(repr(path) for path in reversed(paths))}]")
    rates = pd.read_csv("warm/metrics.csv")["optimizer/lr"].dropna().to_numpy()
    weights = np.array([rates[:2].mean(), rates[2:].mean()])
    weights = weights / weights.sum()
    single = [
        scored(*options, "baseline=less", f"ckpt_path='{p}'", file=f"{at}.parquet")[0] for at, p in enumerate(paths)
    ]
    sums = {
        name: sum(w * one[f"score/{name}"].to_numpy() for w, one in zip(weights, single, strict=True)) for name in "ab"
    }
    for name in "ab":
        np.testing.assert_allclose(both[f"score/{name}"], sums[name], atol=1e-6)
    np.testing.assert_allclose(both["score"], np.maximum(sums["a"], sums["b"]), atol=1e-6)
    assert weights[0] > weights[1] and not np.allclose(single[0]["score"], single[1]["score"])
    parts = {part["what"]: part for part in facts["cost"]["parts"]}
    assert parts["warm-up training"]["examples"] == summary["budget"]["examples_trained"]
    assert parts["scoring"]["examples"] == 2 * (STREAM + 9)
    with pytest.raises(BuildError, match="is of another model or optimizer"):
        scored(*options, "optimizer=sgd", "scoring.geometry=identity", f"ckpt_path='{paths[0]}'", file="x.parquet")


def test_the_target_is_recognised_by_its_words_and_drawn_by_importance() -> None:
    own = [f"sum of {number} and {number + 1} is" for number in range(20)]
    other = [f"the bird {word} over a lake" for word in ("flies", "soars", "glides", "swims") for _ in range(5)]
    ranked, weights = NGrams(sample=False, buckets=4096).scores([*own, *other], [(1.0, own[:5])])
    assert np.array_equal(ranked, weights) and ranked[:5].min() > ranked[20:].max()
    # One word each, two target tasks at 3:1: log of the ratio of shares, by hand.
    words = ["a", "b", "c", "c"]
    _, weights = NGrams(n=1, smoothing=1e-12).scores(words, [(3.0, ["a"]), (1.0, ["b", "b"])])
    np.testing.assert_allclose(weights[:2], np.log([0.75 / 0.25, 0.25 / 0.25]), atol=1e-6)
    assert weights[2] < -20
    # Gumbel top-1 draws in proportion to the weight, here 3 to 1.
    first = [
        int(np.argmax(NGrams(n=1, seed=seed).scores(words, [(1.0, ["a", "a", "a", "b"])])[0])) for seed in range(400)
    ]
    assert set(first) == {0, 1} and 0.68 < first.count(0) / 400 < 0.82


def test_a_run_on_the_chosen_part_trains_on_nothing_else_and_counts_what_it_cost() -> None:
    save_base()
    options = SMALL
    table, facts = scored(*options, "method=ngrams", "candidates=40", "ngrams.sample=false")
    assert facts["cost"]["examples"] == 0 < facts["cost"]["seconds"]
    part = ["data.subset=scores.parquet", "data.subset_size=10"]
    summary = train(*options, "baseline=random", *part, out="run")
    best = set(table.nlargest(10, "score")["id"])
    ledger = pd.read_parquet("run/ledger.parquet")
    assert set(ledger["id"]) <= best and ledger["id"].nunique() >= 8
    assert summary["preparation"]["seconds"] == facts["cost"]["seconds"]
    # A list of the user's own: no scores, no known cost.
    table[["id", "position"]].head(9).to_csv("own.csv", index=False)
    summary = train(*options, "baseline=random", "data.subset=own.csv", out="own")
    assert summary["preparation"] == {"examples": 0, "tokens": 0, "seconds": 0, "parts": [], "unknown": ["own.csv"]}
    with pytest.raises(
        BuildError, match=r"40 of the 40 ids of data\.subset=scores\.parquet are not in the stream .*seed"
    ):
        train(*options, "seed=1", "data.subset=scores.parquet", out="seed")


def test_a_subset_is_taken_by_id_share_and_order() -> None:
    stream = runs.corpus(20).stream
    ids = [f"sums-{number}" for number in (9, 3, 12, 5)]
    pd.DataFrame({"id": ids, "loss": [1.0, float("nan"), 3.0, 2.0]}).to_json("s.jsonl", orient="records", lines=True)

    def names(**options: Any) -> list[str]:
        listed = restrict(stream, "s.jsonl", **options)
        return [listed[at].id for at in range(listed.size)]

    assert names() == ["sums-3", "sums-5", "sums-9", "sums-12"]
    assert names(size=2, by="loss") == ["sums-5", "sums-12"]
    assert names(size=0.5, by="loss", order="lowest") == ["sums-5", "sums-9"]
    for options, message in [
        ({"size": 4, "by": "loss"}, "asks for 4 candidates, and .* has 3 with a loss, of 4"),
        ({"by": "margin"}, "has no column margin .* data.subset_by to one of loss"),
        ({"size": 1}, "has no column score .* data.subset_by to one of loss"),
        ({"size": 1.5, "by": "loss"}, "data.subset_size must be"),
        ({"order": "up"}, "data.subset_order must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            names(**options)
    pd.DataFrame({"id": ["sums-1", "sums-99", "sums-98"]}).to_csv("s.csv", index=False)
    with pytest.raises(
        ValueError, match=r"2 of the 3 ids of data\.subset=s\.csv are not in the stream \(sums-99, sums-98\)"
    ):
        restrict(stream, "s.csv")
    pd.DataFrame({"id": ["sums-1", "sums-1"]}).to_csv("s.csv", index=False)
    with pytest.raises(ValueError, match="1 ids more than once"):
        restrict(stream, "s.csv")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["file=scores.csv"], r"file=scores\.csv must end in \.parquet"),
        (["file=there.parquet"], r"there\.parquet already there: choose another file=, or set overwrite=true"),
        (["method=foo"], "method must be one of selector, ngrams, random"),
        (["candidates=25"], "candidates must be from 1 to the stream's 24; got 25"),
        (["target_examples=0"], "target_examples must be at least 1"),
        (["scoring.first_step=pool"], r"scoring\.first_step=pool takes P from every pool anew"),
        (["projection=64"], "projection=64 is of selectors"),
        (["ckpt_path=nowhere.ckpt"], r"ckpt_path=nowhere\.ckpt: no such file"),
        (["trainer.precision=16-mixed"], r"trainer\.precision=16-mixed.*scaled gradients"),
        (["seed=-1"], "seed must be a whole number from 0"),
        (["ckpt_path=base/config.json"], "cannot be read as a checkpoint"),
        (["+data.packing=true"], r"data\.packing joins documents"),
        (["data.subset=there.parquet"], "a stream is scored whole"),
        (["scoring.max_tokens=8", "scoring.period=4"], r"scoring\.period=4, scoring\.max_tokens=8: of training alone"),
        (["ngrams.n=0", "method=ngrams"], "ngrams.n must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_and_nothing_is_written(overrides: list[str], message: str) -> None:
    save_base()
    Path("there.parquet").write_text("mine")
    with configured(*files(), config="score") as cfg:
        OmegaConf.set_struct(cfg, False)
        cfg.merge_with_dotlist([override.lstrip("+") for override in overrides])
        with pytest.raises(BuildError, match=message):
            score_stream_of(cfg)
    assert Path("there.parquet").read_text() == "mine"
    assert not Path("out/scores.parquet").exists()


def test_a_candidate_without_a_response_has_no_score_and_breaks_no_run() -> None:
    """Cut to its prompt; the run with its reference losses leaves it out as one without them would."""
    save_base()
    options = files()
    rows = [json.loads(line) for line in Path("stream.jsonl").read_text().splitlines()]
    rows[2]["prompt"] = "plus " * 120
    Path("stream.jsonl").write_text("\n".join(map(json.dumps, rows)))
    table, facts = scored(*options, "selector=max_loss")
    assert table["valid"].tolist() == [at != 2 for at in range(STREAM)]
    assert np.isnan(table["score"][2]) and np.isnan(table["loss"][2]) and facts["excluded"] == facts["truncated"] == 1
    train(*options, "baseline=rho_loss", "scoring.reference=scores.parquet", "trainer.max_steps=3", out="run")
    assert rows[2]["id"] not in {name for _, name in kept("run")}
