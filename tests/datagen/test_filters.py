import math
import random

import pytest
from pydantic import ValidationError

from wordbrush.data.rows import SCORES, DataError, Row, Similarities
from wordbrush.datagen.filters import (
    PREDICATES,
    Funnel,
    Thresholds,
    calibrate,
    filter_rows,
    first_units,
    select,
)

GOOD = {"clip_sim_0": 0.3, "clip_sim_1": 0.3, "clip_sim_dir": 0.3, "clip_sim_image": 0.8}


def scores(**changes: float) -> Similarities:
    return Similarities(**(GOOD | changes))


def drawn(count: int, seed: int, centre: float = 0.3) -> list[Similarities]:
    rng = random.Random(seed)
    return [Similarities(*(max(-1, min(1, rng.gauss(centre, 0.2))) for _ in SCORES)) for _ in range(count)]


@pytest.mark.parametrize("name", PREDICATES)
def test_each_predicate_keeps_its_threshold_and_drops_what_is_below(name: str):
    thresholds = Thresholds()
    limit = getattr(thresholds, name)
    assert thresholds.failure(scores(**{name: limit})) is None
    for low in (math.nextafter(limit, -1), -1.0, math.nan):
        assert thresholds.failure(scores(**{name: low})) == name


def test_the_first_failure_counts_in_the_order_of_the_original():
    assert PREDICATES == ("clip_sim_image", "clip_sim_dir", "clip_sim_0", "clip_sim_1")
    low = dict.fromkeys(GOOD, -1.0)
    for name in PREDICATES:
        assert Thresholds().failure(Similarities(**low)) == name
        low[name] = 1.0
    assert Thresholds().failure(Similarities(**low)) is None


def test_the_best_directions_are_kept_and_the_funnel_accounts_for_every_pair():
    directions = (0.25, 0.9, 0.25, 0.1, 0.5, 0.3, 0.25)
    pairs = [scores(clip_sim_dir=value) for value in directions] + [scores(clip_sim_image=0.7)]
    kept, funnel = select(pairs, Thresholds())
    assert kept == [1, 4, 5, 0]  # of equals the earlier
    assert funnel == Funnel(8, dict(zip(PREDICATES, (1, 1, 0, 0), strict=True)), surplus=2)
    assert funnel.kept == 4
    assert select(pairs, Thresholds(clip_sim_image=0.7, keep=9))[1].kept == 7  # the released code's threshold


def test_funnels_of_units_add_up():
    units = [drawn(30, seed) for seed in range(5)]
    found = [select(unit, Thresholds(keep=2)) for unit in units]
    whole = sum((funnel for _, funnel in found), Funnel())
    assert whole.drawn == 150
    assert whole.kept == sum(len(kept) for kept, _ in found)
    assert sum(whole.failed.values()) + whole.surplus + whole.kept == 150
    assert select([], Thresholds()) == ([], Funnel())


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.999, 1.0])
def test_the_stated_share_of_true_pairs_passes_and_no_quantile_higher_would_do(share: float):
    true = drawn(400, 0)
    found = calibrate(true, drawn(400, 1, centre=0.0), share=share, keep=3)
    assert found.thresholds.keep == 3
    passed = sum(found.thresholds.failure(pair) is None for pair in true)
    assert passed == round(found.true_share * 400)
    assert passed >= share * 400
    ordered = {name: sorted(getattr(pair, name) for pair in true) for name in PREDICATES}
    rank = ordered["clip_sim_0"].index(found.thresholds.clip_sim_0)
    assert all(getattr(found.thresholds, name) == ordered[name][rank] for name in PREDICATES)
    stricter = Thresholds(**{name: ordered[name][min(rank + 1, 399)] for name in PREDICATES})
    assert sum(stricter.failure(pair) is None for pair in true) < share * 400
    assert found.mismatched_share < found.true_share


def test_calibration_holds_on_equal_scores_and_needs_pairs():
    assert calibrate([scores()] * 5, [scores(clip_sim_0=0.29)], share=0.5).true_share == 1.0
    assert calibrate([scores()], [scores(clip_sim_0=0.29)]).mismatched_share == 0.0
    for pairs, share in (([], 0.9), ([scores()], 0.0), ([scores()], 1.1)):
        with pytest.raises(ValueError, match="calibrate"):
            calibrate(pairs, [], share=share)


def test_columns_become_rows():
    columns = {name: [i / 10, i / 5] for i, name in enumerate(SCORES)}
    assert Similarities.from_columns(columns) == [
        Similarities(0.0, 0.1, 0.2, 0.3),
        Similarities(0.0, 0.2, 0.4, 0.6),
    ]


def row(unit: str | None, **changes: float) -> Row:
    return Row(input_image=b"", edit_prompt="", edited_image=b"", unit=unit, **(GOOD | changes))


def test_rows_are_filtered_unit_by_unit():
    rows = [
        row("a", clip_sim_dir=0.1),
        row("a"),
        row("a", clip_sim_dir=0.4),
        row("b", clip_sim_0=0.1),
        row("c"),
    ]
    assert list(filter_rows(rows, Thresholds(keep=1))) == [rows[2], rows[4]]
    assert list(filter_rows(rows, Thresholds())) == [rows[2], rows[1], rows[4]]
    for wrong in (row(None), Row(input_image=b"", edit_prompt="", edited_image=b"", unit="a")):
        with pytest.raises(DataError, match="data make"):
            list(filter_rows([wrong], Thresholds()))


def test_the_first_units_are_whole_and_what_has_no_unit_is_its_own():
    rows = [row("a"), row("a"), row("b"), row("c")]
    assert list(first_units(rows, 2)) == rows[:3] and list(first_units(rows, 9)) == rows
    assert len(list(first_units([row(None)] * 4, 3))) == 3


def test_thresholds_are_checked():
    for wrong in ({"clip_sim_0": 1.5}, {"keep": 0}, {"clip_sim": 0.2}):
        with pytest.raises(ValidationError):
            Thresholds(**wrong)
