"""The page of a rollout's record, opened in a real browser."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.settings.rollout import RolloutSettings
from rollout.analysis.judge import question_alpha
from rollout.analysis.samples import Counts, Look
from rollout.records.plots import duration, thin, ticks, time_ticks
from rollout.records.record import Seen
from rollout.records.series import error_band, quantile, quantile_band, rates, sum_of, tally, times
from tests.rollout import browser
from tests.rollout.browser import Browser
from tests.rollout.record_samples import (
    BASELINE,
    BOUNDS,
    CANDIDATE,
    Behaviour,
    Simulation,
    canary,
    state,
    succeeded,
    taken_back,
)

_FOLDER = "radiology.dev.tumour/20261121-154220-3f2a"
_PLOTS = ("weights", "errors", "latency-p50", "latency-p95", "latency-p99", "requests-rate", "evidence", "words")

_BOXES = """[...document.querySelectorAll(SELECTOR)].map(element => {
  const box = element.getBoundingClientRect();
  return {left: box.left, top: box.top, right: box.right, bottom: box.bottom, text: element.textContent.slice(0, 60)}
})"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    try:
        with browser.browsing() as opened:
            opened.resize(1100)
            yield opened
    except browser.NoBrowserError as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(str(reason))
        pytest.skip(str(reason))


def _many_versions(folder: Path) -> Simulation:
    """Ten versions, of which one has a long name and users wrote all that they could."""
    names = [BASELINE, CANDIDATE, *(f"1.2.{number}-rc.{'x' * 3 * number}" for number in range(8))]
    before = {name: 0 if name == CANDIDATE else 10 for name in names}
    after = {**before, BASELINE: 0, CANDIDATE: 10}
    settings = RolloutSettings.model_validate(
        {"gates": [{"metric": "promql", "name": "accuracy", "query": "<b>{version}</b>", "better": "higher"}]}
    )
    simulated = Simulation(
        folder,
        state([before, after], by="</title><script>alert(1)</script>", settings=settings),
        {name: Behaviour() for name in names},
    )
    simulated.enter("baking", 2.0)
    for _ in range(30):
        simulated.now += timedelta(seconds=1)
        values = {"accuracy": {BASELINE: 0.91, CANDIDATE: 0.92}}
        look = Look(simulated.now.timestamp(), 1.0, {name: Counts(5, 1, {10.0: 3, float("inf"): 5}) for name in names})
        simulated.record.look(0, replace(look, values=values, weights=after))
    simulated.enter("held", 1.0, "<img src=https://example.org/x onerror=alert(2)> & \"quotes\" 'too' " + "long " * 200)
    simulated.end("aborted", 40.0, "<svg/onload=alert(3)>")
    return simulated


def _nothing_seen(folder: Path) -> Simulation:
    simulated = Simulation(folder, state(canary(10, 100)), {})
    simulated.bake(0, 30, problem="the metrics server at <http://127.0.0.1:9090> does not answer")
    simulated.end("taken back", 1.0, "inconclusive")
    return simulated


_ROLLOUTS: dict[str, Callable[[Path], Simulation]] = {
    "taken back": taken_back,
    "succeeded": succeeded,
    "one look": lambda folder: succeeded(folder, percents=(100,), seconds=1),
    "many versions": _many_versions,
    "nothing seen": _nothing_seen,
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each kind of rollout."""
    found: dict[str, Path] = {}
    for name, simulate in _ROLLOUTS.items():
        simulated = simulate(tmp_path_factory.mktemp("record") / _FOLDER)
        assert simulated.problems == []
        found[name] = simulated.record.page
    return found


def _boxes(chromium: Browser, selector: str) -> list[dict[str, Any]]:
    return chromium.evaluate(_BOXES.replace("SELECTOR", repr(selector)))


@pytest.mark.parametrize("name", _ROLLOUTS)
def test_a_page_opens_without_a_message_or_a_request(name: str, chromium: Browser, pages: dict[str, Path]) -> None:
    assert chromium.open(pages[name]) == []
    assert "radiology/dev.tumour" in chromium.evaluate("document.title")


@pytest.mark.parametrize("name", _ROLLOUTS)
@pytest.mark.parametrize("width", [1100, 400])
def test_nothing_overflows_the_page_or_its_plot(
    name: str, width: int, chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.resize(width)
    try:
        chromium.open(pages[name])
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        drawn = _boxes(chromium, "svg")
        assert drawn
        assert all(box["right"] - box["left"] > 300 and box["bottom"] - box["top"] > 20 for box in drawn)
        outside = chromium.evaluate(
            """[...document.querySelectorAll('svg')].flatMap(svg => {
              const frame = svg.getBoundingClientRect();
              return [...svg.querySelectorAll('path, rect, line, text')].filter(element => {
                const box = element.getBoundingClientRect();
                return box.left < frame.left - 1 || box.right > frame.right + 1
                  || box.top < frame.top - 1 || box.bottom > frame.bottom + 1
              }).map(element => svg.id + ': ' + element.outerHTML.slice(0, 200))
            })"""
        )
        assert outside == []
    finally:
        chromium.resize(1100)


@pytest.mark.parametrize("name", _ROLLOUTS)
def test_no_text_of_a_plot_lies_on_another(name: str, chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages[name])
    for plot in chromium.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.id)"):
        texts = [box for box in _boxes(chromium, f"#{plot} text") if box["text"]]
        assert texts
        for index, one in enumerate(texts):
            for other in texts[index + 1 :]:
                apart = (
                    one["right"] <= other["left"] + 1
                    or other["right"] <= one["left"] + 1
                    or one["bottom"] <= other["top"] + 3
                    or other["bottom"] <= one["top"] + 3
                )
                assert apart, (plot, one, other)


def test_every_version_has_a_curve_in_every_plot(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["taken back"])
    assert chromium.evaluate("[...document.querySelectorAll('svg')].map(svg => svg.id)") == list(_PLOTS)
    for plot in ("errors", "latency-p50", "latency-p95", "latency-p99"):
        for kind in ("curve", "band", "dots"):
            found = _boxes(chromium, f"#{plot} path.{kind}")
            assert len(found) == 2, (plot, kind)
            assert all(box["right"] - box["left"] > 200 for box in found), (plot, kind)
    assert [box["text"] for box in _boxes(chromium, "#errors path.curve")] == [BASELINE, CANDIDATE]
    assert len(_boxes(chromium, "#weights path.share")) == 2
    assert [box["text"] for box in _boxes(chromium, "#evidence path.curve")] == [
        f"error-ratio {CANDIDATE}",
        f"latency-p95 {CANDIDATE}",
    ]


def test_a_rollback_has_its_moment_and_its_reason(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["taken back"])
    assert chromium.evaluate("document.querySelector('#reason').textContent").startswith(
        f"{CANDIDATE} failed gate error-ratio: "
    )
    assert len(_boxes(chromium, "svg .mark.rollback")) == len(_PLOTS)
    said = chromium.evaluate("document.querySelector('#errors .mark.rollback title').textContent")
    assert said.startswith("rollback, after ")
    assert "failed gate error-ratio" in said
    assert [box["text"] for box in _boxes(chromium, "#weights .mark-label")][:2] == ["rollback", "step 1"]
    # The line is where the axis says that it is: the steps' lines before it, the end's after it.
    lines = [*_boxes(chromium, "#errors .mark.step line"), *_boxes(chromium, "#errors .mark.rollback line")]
    lines += _boxes(chromium, "#errors .mark.end line")
    assert [line["left"] for line in lines] == sorted(line["left"] for line in lines)
    assert len(lines) == 4
    failed = _boxes(chromium, "#words .word.fail")
    assert len(failed) == 1
    assert failed[0]["text"].startswith(f"error-ratio {CANDIDATE}: fail")


def test_a_pause_and_what_could_not_be_seen_are_shaded(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["succeeded"])
    [paused] = _boxes(chromium, "#errors .span.stopped")
    assert paused["text"].startswith("paused: paused by <script>")
    assert paused["right"] - paused["left"] > 20
    chromium.open(pages["nothing seen"])
    [unseen] = _boxes(chromium, "#weights .span.unseen")
    assert unseen["text"].startswith("nothing seen: the metrics server")


def test_the_tables_say_what_the_record_says(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["succeeded"])
    rows = chromium.evaluate(
        "[...document.querySelectorAll('#steps tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert [row[1] for row in rows] == [
        f"{BASELINE}={100 - percent} {CANDIDATE}={percent}" for percent in (5, 25, 50, 100)
    ]
    assert all("error-ratio" in row[6] for row in rows)
    assert [row[4] for row in rows] == ["2.5 s"] * 4
    requests = chromium.evaluate("document.querySelector('#requests tbody').textContent")
    assert CANDIDATE in requests


def test_what_users_wrote_is_text(chromium: Browser, pages: dict[str, Path]) -> None:
    assert chromium.open(pages["many versions"]) == []
    assert chromium.evaluate("document.querySelectorAll('script, img, [onerror], [onload], b').length") == 0
    assert "<svg/onload=alert(3)>" in chromium.evaluate("document.querySelector('#reason').textContent")
    assert len(_boxes(chromium, "#query-accuracy path.curve")) == 2
    assert len(_boxes(chromium, "#errors path.curve")) == 10


def test_plots_are_described_for_those_who_do_not_see_them(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["succeeded"])
    described = chromium.evaluate(
        """[...document.querySelectorAll('svg')].map(svg => [svg.getAttribute('role'),
          ...svg.getAttribute('aria-labelledby').split(' ').map(id => document.getElementById(id).textContent)])"""
    )
    assert len(described) == len(_PLOTS)
    assert all(role == "img" and title and text for role, title, text in described)
    said = chromium.evaluate("document.querySelector('#errors .tip title').textContent")
    assert re.fullmatch(rf"after [\d. a-z]+\n{BASELINE}: [\d.]+ %\n{CANDIDATE}: [\d.]+ %", said)
    assert chromium.evaluate("document.documentElement.lang") == "en"


_CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d');
  const light = colour => {
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255)
      .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  const against = (one, other) => (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  const texts = [...document.querySelectorAll('h1, p, dt, dd, th, td, summary')]
    .map(element => against(light(getComputedStyle(element).color), page));
  const drawn = [...document.querySelectorAll('svg text:not(.inside)')]
    .map(element => against(light(getComputedStyle(element).fill), page));
  const curves = [...document.querySelectorAll('.curve')]
    .map(element => against(light(getComputedStyle(element).stroke), page));
  return {page, text: Math.min(...texts, ...drawn), curve: Math.min(...curves)}
})()"""


@pytest.mark.parametrize(("media", "scheme"), [("screen", "light"), ("screen", "dark"), ("print", "dark")])
def test_all_is_readable_in_light_in_dark_and_on_paper(
    media: str, scheme: str, chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.emulate(media, scheme)
    try:
        chromium.open(pages["many versions"])
        found = chromium.evaluate(_CONTRAST)
    finally:
        chromium.emulate()
    dark = (media, scheme) == ("screen", "dark")
    assert (found["page"] < 0.1) == dark
    # WCAG 2.2, 1.4.3 and 1.4.11.
    assert found["text"] >= 4.5
    assert found["curve"] >= 3


def test_ten_thousand_looks_make_a_small_page(chromium: Browser, tmp_path: Path) -> None:
    simulated = Simulation(tmp_path / _FOLDER, state(canary(50)), {})
    simulated.enter("baking")
    for second in range(10_000):
        simulated.now += timedelta(seconds=1)
        counts = {
            name: Counts(4, second % 97 == 0, {10.0: 3, 25.0: 4, float("inf"): 4}) for name in (BASELINE, CANDIDATE)
        }
        simulated.record.look(0, Look(simulated.now.timestamp(), 1.0, counts, weights=simulated.state.current.weights))
    simulated.end("succeeded")
    assert simulated.problems == []
    assert simulated.record.page.stat().st_size < 500_000
    assert chromium.open(simulated.record.page) == []
    assert all(box["right"] - box["left"] > 900 for box in _boxes(chromium, "#errors path.curve"))


# -- what is drawn


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 10))
def test_a_thinned_curve_keeps_its_ends_and_extremes(values: list[float], columns: int) -> None:
    points = [(float(index), value) for index, value in enumerate(values)]
    kept = thin(points, columns)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert kept == sorted(set(kept))
    assert set(kept) <= set(points)
    assert len(kept) <= max(4 * columns + 4, 1)
    assert max(value for _, value in kept) == max(values)
    assert min(value for _, value in kept) == min(values)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6), st.integers(3, 9))
def test_ticks_are_few_round_and_within(low: float, length: float, most: int) -> None:
    found = ticks(low, low + length, most)
    assert len(found) <= most + 1
    assert all(low - length * 1e-6 <= tick <= low + length * (1 + 1e-6) for tick in found)


@given(st.floats(0.5, 1e8))
def test_times_are_few_round_and_within(seconds: float) -> None:
    found = time_ticks(seconds)
    assert 1 <= len(found) <= 10
    assert found[0] == 0
    assert found[-1] <= seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.25, "0.25 s"), (59, "59 s"), (60, "1 min"), (90, "1 min 30 s"), (7200, "2 h"), (90061, "1 d 1 h")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def _counts(numbers: list[int]) -> Counts:
    """Counts with so many requests in each bucket."""
    cumulative = [sum(numbers[: index + 1]) for index in range(len(numbers))]
    return Counts(sum(numbers), 0, dict(zip(BOUNDS, cumulative, strict=False)))


_BUCKETS = st.lists(st.integers(0, 50), min_size=len(BOUNDS), max_size=len(BOUNDS)).filter(any)


@given(_BUCKETS, st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_in_its_bucket_and_in_its_band(numbers: list[int], share: float) -> None:
    counts = _counts(numbers)
    value = quantile(share)(counts)
    low, high = quantile_band(share, 0.05)(counts)
    assert value is not None
    bucket = next(bound for bound in BOUNDS if counts.latency_ms[bound] >= share * counts.requests)
    assert value <= bucket
    assert low <= value <= high
    assert low == 0 or counts.latency_ms[low] < share * counts.requests


def test_a_band_of_few_requests_is_wide_and_of_many_narrow() -> None:
    few, many = _counts([0, 1, 2, 3, 2, 1]), _counts([0, 1000, 2000, 3000, 2000, 1000])
    assert quantile_band(0.95, 0.05)(few)[1] == float("inf")
    assert quantile_band(0.95, 0.05)(many) == (25, 50)
    low, high = error_band(0.05)(Counts(100, 1))
    assert 0 < low < 0.01 < high < 0.1
    assert error_band(0.05)(Counts()) == (0.0, 1.0)


def test_counts_of_other_buckets_add_up_where_both_know_them() -> None:
    one, other = Counts(3, 1, {1.0: 1, 5.0: 2, float("inf"): 3}, 0.5), Counts(2, 0, {5.0: 1, float("inf"): 2}, 0.25)
    assert sum_of(one, other) == Counts(5, 1, {5.0: 3, float("inf"): 5}, 0.75)
    assert sum_of(Counts(), one) == one
    assert sum_of(one, Counts()) == one


def test_a_gate_fails_where_the_page_draws_its_line(pages: dict[str, Path]) -> None:
    drawn = re.search(r"fails at ([\d.]+)</text>", pages["taken back"].read_text())
    assert drawn is not None
    assert float(drawn[1]) == pytest.approx(1 / question_alpha(RolloutSettings(), 1), rel=1e-3)


def test_a_rate_is_drawn_over_more_than_one_scrape() -> None:
    """Looks of a second, of which only every other has what was scraped."""
    looks = [Seen(0, Look(float(at), 1.0, {BASELINE: Counts(200 * (at % 2))})) for at in range(1, 14)]
    (piece,) = rates(tally(looks, times(looks, 0.0), BASELINE))
    assert [value for _, value in piece] == [100.0, 100.0, 100.0]
    assert [when for when, _ in piece] == [2.5, 6.5, 10.5]
    # A step that was shorter still has its rate.
    (short,) = rates(tally(looks[:2], [1.0, 2.0], BASELINE))
    assert short == [(1.5, 100.0)]
