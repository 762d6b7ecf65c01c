"""Finds versions in the catalogue: listed, shown, side by side; and makes the catalogue anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import output
from cli.context import JsonOption
from cli.package.shared import (
    ByOption,
    CatalogueOption,
    StoreOption,
    VersionArgument,
    open_catalogue,
    open_store,
    parse_name,
    who,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from model_packaging.catalogue.records import VersionRecord, VersionSummary
    from model_packaging.comparison import Comparison


_USUAL_METRICS = ("accuracy", "f1", "roc_auc", "mae", "rmse", "r2")


def list_versions(
    *,
    model: Annotated[str | None, typer.Option(help="Of this model.")] = None,
    stage: Annotated[list[str] | None, typer.Option(help="In this stage, or in one of several.")] = None,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="CONDITION", help="'accuracy>=0.95', 'f1@DATASET>0.9'.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME[=VALUE]", help="With this label.")] = None,
    commit: Annotated[str | None, typer.Option(help="Built from this Git commit; its first digits do.")] = None,
    search: Annotated[str | None, typer.Option(metavar="WORDS", help="Words in what is known of a version.")] = None,
    environment: Annotated[str | None, typer.Option(help="Deployed in this environment.")] = None,
    sort: Annotated[
        str, typer.Option(help="name, registered, size or a metric; '-' before it turns it round.")
    ] = "name",
    limit: Annotated[int, typer.Option(min=0, help="At most so many; 0: all.")] = 100,
    offset: Annotated[int, typer.Option(min=0, help="Leave out so many first.")] = 0,
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """List versions; conditions narrow the list down."""
    from model_packaging.catalogue.query import LabelCondition, MetricCondition, Query, Sort  # noqa: PLC0415
    from model_packaging.catalogue.records import document  # noqa: PLC0415

    query = Query(
        model=model and _model(model),
        stages=tuple(map(_stage, stage or [])),
        metrics=tuple(map(MetricCondition.parse, metric or [])),
        labels=tuple(map(LabelCondition.parse, label or [])),
        commit=commit,
        text=search,
        environment=environment,
        sort=Sort.parse(sort),
        limit=limit or None,
        offset=offset,
    )
    with open_catalogue(catalogue) as opened:
        found = opened.find(query)
        total = opened.count(query) if len(found) == limit else offset + len(found)
    if as_json:
        output.document([document(summary) for summary in found])
        return
    output.table(
        ["version", "stage", "size", "framework", "commit", "metrics", "registered"],
        [_row(summary) for summary in found],
    )
    if total > offset + len(found):
        output.say(f"{offset + 1} to {offset + len(found)} of {total} versions; --offset and --limit show others")


def show(name: VersionArgument, catalogue: CatalogueOption = None, as_json: JsonOption = False) -> None:
    """Show all that is known of a version: description, stages, results, deployments, lineage."""
    from model_packaging.catalogue.records import document  # noqa: PLC0415

    with open_catalogue(catalogue) as opened:
        found = opened.show(*parse_name(name))
    if as_json:
        output.document(document(found))
    else:
        _print_version(found)


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="MODEL:VERSION, which clients know.")],
    b: Annotated[str, typer.Argument(metavar="B", help="MODEL:VERSION, to take its place.")],
    catalogue: CatalogueOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show two versions side by side, and whether B accepts what a client of A sends."""
    with open_catalogue(catalogue) as opened:
        found = opened.compare(parse_name(a), parse_name(b))
    if as_json:
        output.document(found.document())
    else:
        _print_comparison(a, b, found)


def rebuild(
    store: StoreOption = None,
    catalogue: CatalogueOption = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Only versions of this model, or of several: for registries that list no models."),
    ] = None,
    by: ByOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the catalogue in line with a store, which is the truth. Stages and histories are kept."""
    models = [_model(name) for name in model or []]
    opened_store = open_store(store)
    with open_catalogue(catalogue) as opened, output.bar("reading versions", quiet=as_json) as progress:
        done = opened.rebuild(opened_store, who=who(by), models=models, progress=progress)
    counts = {name: list(getattr(done, name)) for name in ("added", "kept", "replaced", "removed", "pending", "faults")}
    for fault in done.faults:
        output.error(fault)
    said = ", ".join(f"{len(versions)} {name}" for name, versions in counts.items() if versions)
    output.result(
        {"store": opened_store.location, "catalogue": opened.location, **counts},
        f"{opened.location} says what {opened_store.location} does: {said or 'no versions'}",
        as_json=as_json,
    )
    if done.faults:
        raise typer.Exit(1)


def _model(text: str) -> str:
    from infra.settings import SettingsError, parse_value  # noqa: PLC0415
    from infra.settings.values import Name  # noqa: PLC0415

    try:
        return parse_value(Name, text, "model")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from None


def _stage(text: str) -> Any:
    from model_packaging.lifecycle import Stage  # noqa: PLC0415

    try:
        return Stage(text)
    except ValueError:
        raise typer.BadParameter(f"given {text!r}: a stage is one of {', '.join(Stage)}") from None


def _row(summary: VersionSummary) -> list[Any]:
    return [
        f"{summary.model}:{summary.version}",
        summary.stage,
        output.size(summary.size_bytes),
        f"{summary.framework} {summary.framework_version}",
        _commit(summary),
        _metrics(summary.metrics),
        _time(summary.registered),
    ]


def _commit(summary: VersionSummary) -> str:
    return f"{(summary.git_commit or '-')[:10]}{'+' if summary.git_dirty else ''}"


def _metrics(results: Mapping[str, Mapping[str, float]]) -> str:
    """The usual ones; where a version was evaluated, as that found them, else as its package states them."""
    stated = results.get("package", {})
    measured = {
        metric: value for dataset in results if dataset != "package" for metric, value in results[dataset].items()
    }
    found = {**stated, **measured}
    return " ".join(f"{metric}={found[metric]:.4g}" for metric in _USUAL_METRICS if metric in found)


def _print_version(found: VersionRecord) -> None:
    summary, package = found.summary, found.description.package
    output.line(f"{summary.model}:{summary.version}  {summary.stage}  {output.size(summary.size_bytes)}")
    output.line(summary.digest)
    branch = f" on {summary.git_branch}" if summary.git_branch else ""
    facts = {
        "stores": ", ".join(summary.stores),
        "commit": f"{summary.git_commit}{branch}{', with local changes' if summary.git_dirty else ''}"
        if summary.git_commit
        else "",
        "framework": f"{summary.framework} {summary.framework_version}",
        "licence": summary.licence,
        "author": summary.author,
        "training data": package.training_data,
        "made from": ", ".join(found.parents),
        "led to": ", ".join(found.children),
        "labels": " ".join(f"{name}={value}" for name, value in summary.labels.items()),
        "pickled": "yes: loading it runs code" if summary.pickled else "",
    }
    output.facts({name: value for name, value in facts.items() if value})
    for title, columns, rows in _sections(found):
        if rows:
            output.line(f"\n{title}")
            output.table(columns, rows)


def _sections(found: VersionRecord) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    """Title, columns and rows."""
    signature = found.description.package.signature
    sides = (("input", signature.inputs), ("output", signature.outputs)) if signature else ()
    yield (
        "signature",
        ["", "name", "datatype", "shape"],
        [[side, tensor.name, tensor.datatype, list(tensor.shape)] for side, tensors in sides for tensor in tensors],
    )
    yield (
        "results",
        ["metric", "value", "data set", "when", "by"],
        [
            [result.metric, f"{result.value:.6g}", result.dataset, _time(result.at), result.who]
            for result in found.results
            if result.latest
        ],
    )
    yield (
        "history",
        ["when", "stage", "by", "why"],
        [[_time(step.at), step.to_stage, step.who, step.why] for step in found.history],
    )
    yield (
        "deployed",
        ["environment", "stack", "revision", "since"],
        [[each.environment, each.stack, each.revision, _time(each.at)] for each in found.deployed],
    )


def _print_comparison(a: str, b: str, found: Comparison) -> None:
    heads = [["stage", found.a.stage, found.b.stage]]
    heads += [["size", output.size(found.a.size_bytes), output.size(found.b.size_bytes)]]
    settings = [[row.key, _cell(row.a), _cell(row.b)] for row in found.settings if row.a != row.b]
    tensors = [[f"{row.side} {row.name}", _tensor(row.a), _tensor(row.b)] for row in found.signature]
    output.table(["", a, b], heads + settings + tensors)
    if found.metrics:
        output.line("")
        rows = [
            [
                row.metric,
                row.dataset,
                _cell(row.a),
                _cell(row.b),
                "" if row.difference is None else f"{row.difference:+.4g}",
            ]
            for row in found.metrics
        ]
        output.table(["metric", "data set", a, b, "difference"], rows)
    output.line("")
    if found.compatible:
        output.line(f"compatible: {b} accepts what a client of {a} sends, and answers with what it reads")
    else:
        output.line(f"not compatible: {b} can't take the place of {a}")
        for obstacle in found.obstacles:
            output.line(f"  {obstacle}")


def _tensor(tensor: Any) -> str:
    return "-" if tensor is None else f"{tensor.datatype} {list(tensor.shape)}"


def _cell(value: Any, sign: str = "") -> Any:
    return "-" if value is None else f"{value:{sign}.6g}" if isinstance(value, float) else value


def _time(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M}"
