"""Evaluates versions on a held-out data set, through the server that serves them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli import output
from cli.context import JsonOption
from cli.package.shared import (
    ByOption,
    CatalogueOption,
    StoreOption,
    VersionName,
    open_catalogue_if_any,
    open_store,
    parse_name,
    who,
)
from infra.errors import UserError

if TYPE_CHECKING:
    from model_packaging.catalogue.catalogue import Catalogue
    from model_packaging.evaluation.engines.engine import Engine
    from model_packaging.evaluation.options import EvaluationRequest, Options
    from model_packaging.evaluation.results import Evaluation, EvaluationRun
    from model_packaging.evaluation.version import Progress
    from model_packaging.stores import Store


def evaluate(
    names: Annotated[list[str], typer.Argument(metavar="MODEL:VERSION...", help="The first is the baseline.")],
    *,
    data: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Rows the models have not seen: CSV, Parquet, NPZ.")
    ],
    target: Annotated[str, typer.Option(help="The column, or array, of the true labels or values.")],
    feature: Annotated[
        list[str] | None, typer.Option(help="A column of the input, in its order. Default: all others.")
    ] = None,
    positive: Annotated[
        str | None, typer.Option(help="Of two classes, the one that precision and recall are about.")
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(help="Choose the decision threshold: f1, youden, recall@precision=0.9, cost:fp=1,fn=5."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any other option, such as batch_rows=64; see docs/evaluation.md."),
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where the servers run.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Versions at once; latencies compare best at 1.")] = 1,
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster. Default: RAY_ADDRESS, or one of its own.")
    ] = None,
    report: Annotated[Path | None, typer.Option(dir_okay=False, help="Write an HTML report to this file.")] = None,
    record: Annotated[bool, typer.Option(help="Keep the results in the catalogue.")] = True,
    dataset_name: Annotated[str | None, typer.Option(help="The data set's name there. Default: the file's.")] = None,
    store: StoreOption = None,
    catalogue: CatalogueOption = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate versions on the same rows, side by side. Exit status 1 where one can't be evaluated."""
    named = [parse_name(name) for name in names]
    given = {"target": target, "features": feature, "positive": positive, "objective": objective}
    options = _options({**_pairs(option or []), **{name: value for name, value in given.items() if value}})
    dataset, person = dataset_name or data.name, who(by)
    opened_store = open_store(store)
    # What would lose the results of a long run is refused before it.
    if report is not None:
        _check_writable(report)
    with _opened_catalogue(catalogue, dataset, person) if record else nullcontext() as kept:
        found = _run(opened_store, named, data, options, _engine(engine, workers, ray_address), quiet=as_json)
        if not as_json:
            _print(found)
        failures = [f"{failure.name}: {failure.reason}" for failure in found.failures]
        recorded = kept is not None and _done(lambda: _record(found, kept, dataset, person), failures)
    written = report is not None and _done(lambda: _write(found, report), failures)
    if as_json:
        outcome = {
            "catalogue": kept.location if kept is not None and recorded else None,
            "report": str(report) if written else None,
        }
        output.document({**found.model_dump(mode="json"), **outcome})
    elif written:
        output.line(f"report: {report}")
    for failure in failures:
        output.error(failure)
    if failures:
        raise typer.Exit(1)


def _pairs(texts: list[str]) -> dict[str, Any]:
    import yaml  # noqa: PLC0415

    pairs: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE, such as batch_rows=64")
        try:
            pairs[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            reason = str(error).partition("\n")[0]
            raise typer.BadParameter(f"{text!r}: the value is no YAML: {reason}; quote it if it is a text") from None
    return pairs


def _options(document: dict[str, Any]) -> Options:
    from infra.settings import parse_settings  # noqa: PLC0415
    from model_packaging.evaluation.options import Options  # noqa: PLC0415

    if isinstance(positive := document.get("positive"), str) and positive.lstrip("-").isdigit():
        document["positive"] = int(positive)
    return parse_settings(Options, document, file="lepton package evaluate", key="options")


def _request(store: Store, name: VersionName, scratch: Path) -> EvaluationRequest:
    from model_packaging.artifact import Artifact  # noqa: PLC0415
    from model_packaging.evaluation.options import EvaluationRequest  # noqa: PLC0415

    artifact = Artifact.find(store, *name)
    return EvaluationRequest(
        model=name.model,
        version=name.version,
        folder=artifact.unpack(scratch / f"{name.model}-{name.version}"),
        package=artifact.description.package,
        digest=artifact.digest,
    )


def _engine(name: str, workers: int, ray_address: str | None) -> Engine:
    if name == "ray":
        from model_packaging.evaluation.engines.ray import RayEngine  # noqa: PLC0415

        return RayEngine(ray_address)
    from model_packaging.evaluation.engines.local import LocalEngine  # noqa: PLC0415

    return LocalEngine(workers)


@contextmanager
def _opened_catalogue(url: str | None, dataset: str, person: str) -> Iterator[Catalogue | None]:
    """The catalogue that is to keep a person's results on a data set, where there is one.

    Raises:
        CatalogueFailed: it can't be reached or read.
        RecordRefused: it takes no such names.
        typer.BadParameter: the data set's name is that of the results that package.yaml states.
    """
    opened = open_catalogue_if_any(url)
    if opened is None:
        yield None
        return
    from model_packaging.catalogue.registration import PACKAGE_DATASET, fitting  # noqa: PLC0415
    from model_packaging.catalogue.tables import NAME_LENGTH  # noqa: PLC0415

    with opened:
        if dataset == PACKAGE_DATASET:
            raise typer.BadParameter(
                f"{dataset!r} names the results that package.yaml states; name the data set by --dataset-name, or "
                "keep nothing with --no-record"
            )
        fitting("--dataset-name", dataset, NAME_LENGTH)
        fitting("--by", person, NAME_LENGTH)
        yield opened


def _check_writable(report: Path) -> None:
    """Raises typer.BadParameter where no file can be made beside the report."""
    try:
        with tempfile.TemporaryFile(dir=report.absolute().parent):
            pass
    except OSError as error:
        raise typer.BadParameter(
            f"--report {report}: {report.absolute().parent} can't be written: {error.strerror}; name a file in a "
            "folder that is there"
        ) from error


def _run(
    store: Store, names: list[VersionName], data: Path, options: Options, engine: Engine, *, quiet: bool
) -> EvaluationRun:
    from model_packaging.evaluation.run import evaluate as run_evaluation  # noqa: PLC0415

    with (
        tempfile.TemporaryDirectory(prefix="lepton-evaluate-") as scratch,
        output.progress(f"evaluating {', '.join(map(str, names))}", quiet=quiet) as notify,
    ):

        def tell(progress: Progress) -> None:
            # Of the rows on the way there are too many to say.
            if progress.rows == 0:
                notify(f"{progress.model}:{progress.version}: {progress.stage}")

        requests = [_request(store, name, Path(scratch)) for name in names]
        return run_evaluation(requests, data, options, engine, tell)


def _done(step: Callable[[], None], failures: list[str]) -> bool:
    """Whether a step went well; else its error is added to `failures`, and what was found is not lost by it."""
    try:
        step()
    except (UserError, OSError) as error:
        failures.append(str(error))
        return False
    return True


def _record(found: EvaluationRun, catalogue: Catalogue, dataset: str, person: str) -> None:
    """Keeps the metrics of the versions that the catalogue knows."""
    from model_packaging.errors import NotInCatalogue  # noqa: PLC0415

    for evaluation in found.evaluations:
        metrics = evaluation.flat_metrics()
        try:
            catalogue.record_evaluation(evaluation.model, evaluation.version, metrics, dataset=dataset, who=person)
        except NotInCatalogue as error:
            output.say(f"{error}; its results are not kept")


def _write(found: EvaluationRun, report: Path) -> None:
    from model_packaging.evaluation.report import write_report  # noqa: PLC0415

    write_report(found, report)


def _print(found: EvaluationRun) -> None:
    output.line(f"{found.dataset.path}: {found.dataset.rows} rows, {found.dataset.digest}")
    names = list(dict.fromkeys(name for each in found.evaluations for name in each.flat_metrics()))
    if "precision" in names:
        # Of two classes, these say little beside the positive one's.
        names = [name for name in names if "_macro" not in name and "_weighted" not in name]
    rows = [[name, *(_cell(each, name) for each in found.evaluations)] for name in names]
    output.table(["", *(each.name for each in found.evaluations)], rows)
    for each in found.comparisons:
        output.line(
            f"{each.version} against {each.baseline}: {each.metric} {each.difference:+.4f} "
            f"[{each.interval.low:+.4f}, {each.interval.high:+.4f}], {each.test} p = {each.p_value_adjusted:.3g}"
        )
    for each in found.evaluations:
        for note in each.notes:
            output.line(f"{each.name}: {note}")


def _cell(evaluation: Evaluation, name: str) -> str:
    value = evaluation.flat_metrics().get(name)
    interval = evaluation.intervals.get(name)
    if value is None:
        return "-"
    return f"{value:.4g}" + (f" [{interval.low:.4g}, {interval.high:.4g}]" if interval else "")
