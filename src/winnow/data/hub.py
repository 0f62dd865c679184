"""Streams and targets from Hugging Face datasets, on the hub or in a local folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from winnow.data.example import Corpus, Score
from winnow.data.fields import Row
from winnow.data.inside import check_inside, check_saved, without_opening
from winnow.data.rows import Source, TargetRows, build_corpus, options

SAVED = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set.

    Args:
        path: name on the hub, a folder of data files, or a folder written by ``save_to_disk``.
        split: name of the split, with a slice or a sum if wanted: ``train[:95%]``, ``train[200:]+validation``.
        name: configuration of a data set on the hub, where it has several; a folder here has none.
        revision: branch, tag or commit on the hub; pin it for results to be repeatable.
        data_dir: folder within the data set.
        cache_dir: where downloads are kept; null for the library's own place.
    """

    path: str
    split: str
    name: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    cache_dir: str | None = None

    def load(self, key: str) -> datasets.Dataset:
        """Load the split; a data set's own code is never run, and no file outside of it is read.

        Args:
            key: the config key of this split, for messages.

        Returns:
            The data set.

        Raises:
            ValueError: it does not exist, cannot be reached, has no such split or configuration, or names files
                outside of itself.
        """
        folder = Path(self.path).expanduser().absolute()
        try:
            if any((folder / name).is_file() for name in SAVED):
                return self._saved(folder, key)
            loaded = self._built(folder, key)
        except (ConnectionError, OSError) as error:
            # The library's errors for a missing set, a gated one, and the lack of a network are all of these kinds.
            raise ValueError(
                f"{key}.path={self.path}: no such folder here, and the hub has no such data set or cannot be reached "
                f"({type(error).__name__}: {_first_line(error)}). Check the name; offline, give a folder of data files "
                "or one written by save_to_disk, or load it once online so that it is cached"
            ) from error
        except (ValueError, RuntimeError, AssertionError) as error:
            raise ValueError(
                f"{key} ({self.path}, name={self.name}, split={self.split}): {_first_line(error)}"
            ) from error
        if not isinstance(loaded, datasets.Dataset):
            raise ValueError(f"{key}.split must name one split, got {self.split!r}")
        return loaded

    def _built(self, folder: Path, key: str) -> Any:
        """What ``load_dataset`` gives, with a look at the files in between."""
        here = folder.is_dir()
        if self.path == "pandas" and not here:  # the library's name for a reader of pickles, which some versions have
            raise ValueError("pickles are not read: save the frames as Parquet (DataFrame.to_parquet)")
        builder = datasets.load_dataset_builder(
            str(folder) if here else self.path,
            None if here else self.name,
            revision=None if here else self.revision,
            data_dir=self.data_dir,
            cache_dir=self.cache_dir,
        )
        files = [str(file) for listed in (builder.config.data_files or {}).values() for file in listed]
        hub = [f"hf://datasets/{self.path}@", f"{datasets.config.HF_ENDPOINT}/datasets/{self.path}/"]
        check_inside(files, [str(folder)] if here else hub, key)
        builder.download_and_prepare()
        return builder.as_dataset(split=self.split)

    def _saved(self, folder: Path, key: str) -> datasets.Dataset:
        check_saved(folder, key)
        saved = datasets.load_from_disk(str(folder))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        lengths = {name: len(split) for name, split in splits.items()}
        parts = datasets.ReadInstruction.from_spec(self.split).to_absolute(lengths)
        chosen = [splits[part.splitname].select(range(part.from_, part.to)) for part in parts]
        return datasets.concatenate_datasets(chosen)


@dataclass(frozen=True)
class TargetSplits:
    """A target task in data sets.

    Args:
        val: arguments of ``HubSplit``: the target batches are drawn from these.
        test: arguments of ``HubSplit``: looked at before and after training only.
        score: generation and example to a score in [0, 1], a name of ``winnow.data.scorers``, or ``auto`` to
            go by the references; None measures the NLL alone.
        weight: share in the target gradient, relative to the other targets.
        max_new_tokens: length allowed to a generation.
        fields: how its records are read, where that differs from the stream's.
    """

    val: HubSplit | Mapping[str, Any]
    test: HubSplit | Mapping[str, Any]
    score: Score | str | None = None
    weight: float = 1.0
    max_new_tokens: int = 128
    fields: Mapping[str, str | None] | None = None


def hub_corpus(
    stream: HubSplit | Mapping[str, Any],
    targets: Mapping[str, TargetSplits | Mapping[str, Any] | None],
    fields: Mapping[str, str | None] | None = None,
    on_overlap: str = "error",
    limit: int | None = None,
    on_bad_row: str = "error",
    cache_dir: str | None = None,
) -> Corpus:
    """A corpus from Hugging Face data sets.

    Args:
        stream: arguments of ``HubSplit``: the candidates.
        targets: arguments of ``TargetSplits`` by target name; None leaves one out.
        fields: which fields are prompt and response: arguments of ``winnow.data.fields.Fields``.
        on_overlap: ``error``, or ``drop`` to leave out what stands both in the stream and in a target.
        limit: most examples of the stream; None for all.
        on_bad_row: ``error``, or ``drop`` to leave rows out that cannot be used, and count them.
        cache_dir: where what was read of large sets is kept; None keeps it in memory.

    Returns:
        The corpus; its stream is finite.

    Raises:
        ValueError: a data set, split or field is at fault, or the splits overlap; names it and the fix.
    """
    rows = {}
    for name, given in targets.items():
        if given is None:
            continue
        key = f"data.corpus.targets.{name}"
        target = options(TargetSplits, given, key)
        rows[name] = TargetRows(
            _source(target.val, f"{key}.val"),
            _source(target.test, f"{key}.test"),
            target.score,
            target.weight,
            target.max_new_tokens,
            target.fields,
        )
    source = _source(stream, "data.corpus.stream")
    return build_corpus(source, rows, fields, on_overlap, limit, on_bad_row, cache_dir)


def _source(given: HubSplit | Mapping[str, Any], key: str) -> Source:
    """Records of a split."""
    split = options(HubSplit, given, key)
    loaded = split.load(key)
    return Source(lambda: _rows(split, loaded), int(loaded.data.nbytes), lambda: str(loaded._fingerprint))


def _rows(split: HubSplit, loaded: datasets.Dataset) -> Iterator[Row]:
    without_opening(loaded.info.features)  # `loaded.features` is a copy
    source = Path(split.path).name
    for number, fields in enumerate(loaded):
        yield Row(fields, f"{split.path}, {split.split}, row {number}", f"{source}:{number}", source)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")[:300]  # some list every ending they know
