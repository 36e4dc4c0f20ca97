"""What a data set consists of, in numbers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wordbrush.data.rows import SCORES, DataError, Row, Similarities, decode
from wordbrush.datagen.draws import FILE, read_draws
from wordbrush.datagen.filters import Funnel, Thresholds, calibrate, select
from wordbrush.errors import ImageError, one_line

if TYPE_CHECKING:
    from wordbrush.perception.clip import Clip

TEXTS = ("edit_prompt", "source_caption", "target_caption")
_BINS = 20
_BARS = " ▁▂▃▄▅▆▇█"
_BATCH = 64


@dataclass(frozen=True)
class Distribution:
    """Of some numbers: their count, mean, quantiles (5, 50 and 95 %), and a histogram of equal bins.

    There are 20 bins, or as many as different numbers if these are fewer.
    """

    count: int
    mean: float
    low: float
    median: float
    high: float
    edges: list[float]
    histogram: list[int]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution | None:
        """None without finite values."""
        array = np.asarray(values, dtype=float)
        array = array[np.isfinite(array)]
        if not len(array):
            return None
        histogram, edges = np.histogram(array, bins=min(_BINS, len(np.unique(array))))
        summary = (float(array.mean()), *np.percentile(array, (5, 50, 95)).tolist())
        mean, low, median, high = (round(x, 4) for x in summary)
        return cls(len(array), mean, low, median, high, edges.round(4).tolist(), histogram.tolist())

    @property
    def bars(self) -> str:
        """The histogram as a line of characters."""
        top = max(self.histogram)
        return "".join(_BARS[-(-count * (len(_BARS) - 1) // top)] for count in self.histogram)


@dataclass(frozen=True)
class Statistics:
    """Of a data set.

    Attributes:
        rows: How many there are.
        units: How many different units; a row without one is a unit of its own.
        tasks: Task -> rows, most frequent first.
        words: Column of texts -> words in each.
        scores: CLIP's score -> its values, where rows have them.
        thresholds: The filter that the funnel is of.
        funnel: Where the rows that have all scores would go in the filter.
        mismatched_share: Of rows with another row's captions or edited picture, how many would pass it;
            None where that was not measured.
        drawn: Scores and funnel are of all pairs that were drawn when the data set was made, and the filter
            is that run's.
    """

    rows: int
    units: int
    tasks: dict[str, int]
    words: dict[str, Distribution]
    scores: dict[str, Distribution]
    thresholds: Thresholds
    funnel: Funnel
    mismatched_share: float | None = None
    drawn: bool = False

    def as_json(self) -> str:
        """The fields, indented."""
        values = asdict(self)
        values["thresholds"] = self.thresholds.model_dump()
        values["funnel"]["kept"] = self.funnel.kept
        return json.dumps(values, indent=1, ensure_ascii=False)

    def as_text(self) -> str:
        """Tables for a terminal."""
        lines = [f"{self.rows} rows of {self.units} units", "", "rows by task"]
        lines += [
            f"  {count:>8}  {100 * count / self.rows:5.1f} %  {task}" for task, count in self.tasks.items()
        ]
        lines += _table("words", self.words, 1)
        lines += _table("score of the pairs drawn" if self.drawn else "score", self.scores, 3)
        if self.funnel.drawn:
            title = "the filter by which they were kept" if self.drawn else "the filter on these rows"
            lines += _funnel_lines(title, self.funnel, self.thresholds)
        if self.mismatched_share is not None:
            lines += [f"  {100 * self.mismatched_share:7.1f} % of mismatched pairs would pass"]
        return "\n".join(lines)


class Tally:
    """Counts rows as they pass by."""

    def __init__(self) -> None:
        self._rows = 0
        self._tasks: Counter[str] = Counter()
        self._words: dict[str, list[int]] = {name: [] for name in TEXTS}
        self._scores: defaultdict[str, list[Similarities]] = defaultdict(list)
        self._units: set[str] = set()

    def add(self, row: Row, similarities: Similarities | None) -> None:
        """Count a row, with these scores."""
        unit = row.unit or f"\0{self._rows}"
        self._rows += 1
        self._units.add(unit)
        self._tasks[row.task or "none given"] += 1
        for name in TEXTS:
            if (text := getattr(row, name)) is not None:
                self._words[name].append(len(text.split()))
        if similarities is not None:
            self._scores[unit].append(similarities)

    def statistics(self, thresholds: Thresholds) -> Statistics:
        """Of all rows so far."""
        scores = [score for unit in self._scores.values() for score in unit]
        columns = {name: [getattr(score, name) for score in scores] for name in SCORES}
        return Statistics(
            rows=self._rows,
            units=len(self._units),
            tasks=dict(self._tasks.most_common()),
            words=_distributions(self._words),
            scores=_distributions(columns),
            thresholds=thresholds,
            funnel=sum((select(unit, thresholds)[1] for unit in self._scores.values()), Funnel()),
        )


def gather(rows: Iterable[Row], thresholds: Thresholds) -> Statistics:
    """Statistics of rows with the scores that they have."""
    tally = Tally()
    for row in rows:
        tally.add(row, row.similarities)
    return tally.statistics(thresholds)


def with_run(statistics: Statistics, folder: Path) -> Statistics:
    """The same, with the filter of the run of the data engine that made the data set, and all its pairs.

    Args:
        statistics: Of the rows.
        folder: Of the data set. If no such run made it, nothing changes.

    Raises:
        DataError: A file of the run is damaged.
    """
    if not (folder / FILE).is_file():
        return statistics
    about, draws = folder / "run.json", read_draws(folder / FILE)
    try:
        made = json.loads(about.read_bytes())
        thresholds, funnel = Thresholds(**made["made_from"]["filter"]), Funnel(**made["pairs"])
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{about} is damaged ({one_line(error)})") from error
    scores = {name: [score for score in draws[name] if score is not None] for name in SCORES}
    return replace(
        statistics, scores=_distributions(scores), thresholds=thresholds, funnel=funnel, drawn=True
    )


def measure(rows: Iterable[Row], clip: Clip, share: float, keep: int) -> Statistics:
    """Statistics with scores by another CLIP, and with the thresholds that it needs.

    The mismatched pairs have, half each, the captions and the edited picture of another row of their batch.

    Args:
        rows: Those without two different captions cannot be scored, and count only as rows.
        clip: Scores them.
        share: Of these rows that is to pass.
        keep: Pairs of one unit that are kept.

    Raises:
        DataError: A picture cannot be read, or no row can be scored.
    """
    tally = Tally()
    true: list[Similarities] = []
    mismatched: list[Similarities] = []
    for batch in _batches(rows, _BATCH):
        try:
            found, wrong = score([row for row in batch if _has_captions(row)], clip)
        except ImageError as error:
            raise DataError(f"{error}: `wordbrush data validate` says where") from error
        true, mismatched = true + found, mismatched + wrong
        scores = iter(found)
        for row in batch:
            tally.add(row, next(scores) if _has_captions(row) else None)
    if not true:
        raise DataError("no row has two different captions: there is nothing that a CLIP can score")
    calibration = calibrate(true, mismatched, share=share, keep=keep)
    statistics = tally.statistics(calibration.thresholds)
    return replace(statistics, mismatched_share=calibration.mismatched_share)


def score(rows: Sequence[Row], clip: Clip) -> tuple[list[Similarities], list[Similarities]]:
    """CLIP's scores of rows with both captions, and of the same rows mismatched with each other.

    Returns:
        One for each row; and those with the captions, then with the edited picture, of the next row, where
        that has other captions.

    Raises:
        ImageError: A picture cannot be read.
    """
    from wordbrush.perception.clip import pair_similarities

    before = clip.embed_images([decode(row.input_image) for row in rows])
    after = clip.embed_images([decode(row.edited_image) for row in rows])
    captions = [(str(row.source_caption), str(row.target_caption)) for row in rows]
    source, target = (clip.embed_texts([pair[i] for pair in captions]) for i in (0, 1))
    other = [i for i in range(len(rows)) if captions[i] != captions[i - 1]]
    shifted = [i - 1 for i in other]

    def similarities(*embeds: Any) -> list[Similarities]:
        columns = pair_similarities(*embeds)
        return Similarities.from_columns({name: column.tolist() for name, column in columns.items()})

    return similarities(before, after, source, target), [
        *similarities(before[other], after[other], source[shifted], target[shifted]),
        *similarities(before[other], after[shifted], source[other], target[other]),
    ]


def _has_captions(row: Row) -> bool:
    """Two, and different: a change that the captions do not tell has no direction."""
    return None not in (row.source_caption, row.target_caption) and row.source_caption != row.target_caption


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, size)):
        yield batch


def _distributions(columns: Mapping[str, Sequence[float]]) -> dict[str, Distribution]:
    found = {name: Distribution.of(values) for name, values in columns.items()}
    return {name: distribution for name, distribution in found.items() if distribution}


def _table(title: str, distributions: Mapping[str, Distribution], digits: int) -> list[str]:
    if not distributions:
        return []
    head = "".join(f"{name:>9}" for name in ("mean", "5 %", "median", "95 %"))
    lines = ["", f"{title:<16}{'rows':>8}{head}"]
    for name, d in distributions.items():
        numbers = "".join(f"{value:>9.{digits}f}" for value in (d.mean, d.low, d.median, d.high))
        lines.append(f"{name:<16}{d.count:>8}{numbers}  {d.bars}  {d.edges[0]:g} to {d.edges[-1]:g}")
    return lines


def _funnel_lines(title: str, funnel: Funnel, thresholds: Thresholds) -> list[str]:
    lines = ["", title, f"  {funnel.drawn:>8}  scored"]
    for name, count in funnel.failed.items():
        least = getattr(thresholds, name, None)
        lines.append(f"  {-count:>8}  {name}" + (f" below {least:.3f}" if least is not None else ""))
    lines += [f"  {-funnel.surplus:>8}  beyond the best {thresholds.keep} of their unit, or alike"]
    return [*lines, f"  {funnel.kept:>8}  kept"]
