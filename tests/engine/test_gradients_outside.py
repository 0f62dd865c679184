"""Parameters used outside their module's call leave the geometry, announced; any other mismatch ends the run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.families import VOCAB, ragged
from tests.reference import relative
from winnow.gradients.verify import GradientMismatch, UsedOutside
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs

SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
NEEDS = Needs(alignment=True, gram=True)


def model_of(config: Any, **lora: Any) -> Any:
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    if lora:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = get_peft_model(model, LoraConfig(r=2, task_type="CAUSAL_LM", **lora))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def llama(tied: bool, **lora: Any) -> Any:
    return model_of(transformers.LlamaConfig(**SHAPE, tie_word_embeddings=tied), **lora)


def scorer_of(model: nn.Module, **options: Any) -> Scorer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Scorer(model, torch.optim.SGD(trained), geometry="identity", **options)


def by_autograd(model: nn.Module, parameters: dict[str, nn.Parameter], batch: dict[str, Tensor]) -> Tensor:
    rows = []
    for at in range(len(batch["labels"])):
        loss = example_losses(model, {name: value[at : at + 1] for name, value in batch.items()}).sum()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([one.flatten() for one in found]).double())
    return torch.stack(rows)


EMBED = ["embed_tokens", "q_proj"]
BOTH = ["lm_head", "embed_tokens"]
LFM2 = transformers.Lfm2Config(layer_types=["conv", "full_attention"], **SHAPE)
CASES: dict[str, tuple[Callable[[], Any], str | None]] = {
    "short convolution": (lambda: model_of(LFM2), r"conv\.conv\.weight$"),
    "gemma2": (lambda: model_of(transformers.Gemma2Config(**SHAPE, sliding_window=8)), None),
    "gpt_oss": (
        lambda: model_of(
            transformers.GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=8)
        ),
        None,
    ),
    "mamba": (
        lambda: model_of(transformers.MambaConfig(vocab_size=VOCAB, hidden_size=8, state_size=4, num_hidden_layers=2)),
        r"mixer\.(conv1d|dt_proj)\.(weight|bias)$",
    ),
    "lora of embeddings": (lambda: llama(False, target_modules=EMBED), None),
    "lora of tied embeddings": (lambda: llama(True, target_modules=EMBED), None),
    "lora of embeddings alone": (lambda: llama(True, target_modules=["embed_tokens"]), None),
    "added tokens": (
        lambda: llama(False, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
        r"trainable_tokens_delta\.default$",
    ),
    "added tokens, tied": (
        lambda: llama(True, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
        r"trainable_tokens_delta\.default$",
    ),
    # In no example here: found all the same, since another pool may have them.
    "added tokens that do not occur": (
        lambda: llama(False, target_modules=["q_proj"], trainable_token_indices=[1]),
        r"trainable_tokens_delta\.default$",
    ),
    "dora": (lambda: llama(False, target_modules="all-linear", use_dora=True), None),
    "dora of embeddings": (lambda: llama(False, target_modules=EMBED, use_dora=True), r"embed.*lora_magnitude_vector"),
    "modules to save": (lambda: llama(False, target_modules=["q_proj"], modules_to_save=BOTH), None),
    "modules to save, tied": (lambda: llama(True, target_modules=["q_proj"], modules_to_save=BOTH), None),
}


@pytest.mark.parametrize("case", CASES)
def test_scores_are_exact_on_all_that_is_not_announced_to_be_left_out(
    case: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, left_out = CASES[case]
    model = build()
    scorer = scorer_of(model, layers=".*")
    wanted = dict(scorer.parameters)
    pool, target = ragged([7, 5, 6]), ragged([6, 4], seed=1)
    signals = scorer(pool, target, NEEDS)
    outside = {name for name in wanted if left_out is not None and re.search(left_out, name)}
    assert bool(outside) == (left_out is not None)
    assert set(scorer.parameters) == set(wanted) - outside
    warned = [record.getMessage() for record in caplog.records if "left out of the geometry" in record.getMessage()]
    assert len(warned) == bool(outside)
    model.eval()
    ours, theirs = (by_autograd(model, scorer.parameters, batch) for batch in (pool, target))
    assert signals.gram is not None and signals.alignment is not None
    assert relative(signals.gram.double(), ours @ ours.T) < 1e-5
    assert relative(signals.alignment.double(), ours @ theirs.mean(0)) < 1e-5
    again = scorer(pool, target, NEEDS)
    assert again.gram is not None and relative(again.gram, signals.gram) < 1e-6
    assert len(warned) == sum("left out of the geometry" in record.getMessage() for record in caplog.records), "once"


class Outside(nn.Module):
    """Its ``inner`` is called, or only its weight is used, or both; the last scales by how many rows there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.embed, self.inner, self.head = nn.Embedding(VOCAB, 8), nn.Linear(8, 8), nn.Linear(8, VOCAB)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **unused: Any) -> Any:
        hidden = self.embed(input_ids)
        if self.how == "weight alone":
            hidden = hidden + F.linear(hidden, self.inner.weight, self.inner.bias)
        else:
            hidden = hidden + self.inner(hidden)
        if self.how == "both":
            hidden = hidden + F.linear(hidden, self.inner.weight)
        return SimpleNamespace(logits=self.head(hidden.tanh()))


def test_a_module_that_is_called_too_still_ends_the_run() -> None:
    with pytest.raises(GradientMismatch, match=r"'inner\.weight' is off by") as raised:
        scorer_of(Outside("both"))(ragged([7, 5, 6]), ragged([6, 4], seed=1), NEEDS)
    assert not isinstance(raised.value, UsedOutside)
    scorer = scorer_of(Outside("called"))
    scorer(ragged([7, 5, 6]), ragged([6, 4], seed=1), NEEDS)
    assert len(scorer.parameters) == 5


def test_the_warning_says_how_much_of_the_gradient_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    scorer = scorer_of(Outside("weight alone"))
    scorer(ragged([7, 5, 6]), ragged([6, 4], seed=1), NEEDS)
    assert set(scorer.parameters) == {"embed.weight", "head.weight", "head.bias"}
    assert re.search(
        r"2 parameters are trained and left out .* inner\.weight, inner\.bias\..* \d+\.\d % of", caplog.text
    )


def test_nothing_is_scored_where_nothing_would_be_left() -> None:
    scorer = scorer_of(Outside("weight alone"), layers="inner")
    with pytest.raises(RuntimeError, match=r"scoring\.layers"):
        scorer(ragged([7, 5, 6]), ragged([6, 4], seed=1), NEEDS)


def test_an_update_out_of_the_same_pass_needs_every_parameter(caplog: pytest.LogCaptureFixture) -> None:
    pool, target = ragged([7, 5, 6]), ragged([6, 4], seed=1)
    with pytest.raises(UsedOutside, match=r"inner\.weight.*scoring\.update=two_pass or auto"):
        scorer_of(Outside("weight alone"), update="one_pass")(pool, target, NEEDS)
    model = Outside("weight alone")
    scorer = scorer_of(model, update="auto")
    scorer(pool, target, NEEDS)
    assert not scorer.holds_update and "the update takes a second pass" in caplog.text
    scorer.backward(pool, Selection(torch.tensor([0, 2]), torch.ones(2)))
    assert model.inner.weight.grad is not None and bool(model.inner.weight.grad.any())


def test_the_check_can_still_be_left_out() -> None:
    scorer = scorer_of(Outside("both"), verify=False)
    scorer(ragged([7, 5, 6]), ragged([6, 4], seed=1), NEEDS)
    assert len(scorer.parameters) == 5
