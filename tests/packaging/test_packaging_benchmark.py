"""The benchmark of packaging runs, and says what it was asked for."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import packaging, results


def test_a_small_run_gives_every_figure_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with Progress(console=Console(quiet=True)) as progress:
        result = packaging.run(tmp_path, 1, 0, progress, size_bytes=100_000, docker=False)
    results.show(result, Console(quiet=True))
    assert [row[0] for table in result.tables for row in table.rows] == [
        "sha256sum",
        "openssl dgst -sha256, with the processor's instructions",
        "build into a layout",
        "tar | gzip",
        "build again, one file changed",
        "build of that file alone",
        "copy to an empty store",
        "copy where all but 5 files are",
    ]
    assert len(result.goals) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"model", "single", "digests.sqlite"}
