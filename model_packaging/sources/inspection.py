"""What a model's folder says by itself: it fills what `package.yaml` leaves out, and must not contradict the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from infra.settings.loading import SettingsError, parse_settings
from model_packaging.errors import Contradiction
from model_packaging.package import Framework, Package, Signature, Tensor
from model_packaging.sources import huggingface, mlflow
from model_packaging.sources.findings import Findings, FoundFramework, FoundSignature
from model_packaging.sources.onnx import read_graph
from model_packaging.sources.pickles import PickleFound, find_pickles
from model_packaging.sources.safetensors import read_header, read_weights

_ALIASES = {"sklearn": "scikit-learn", "torch": "pytorch"}
_CODE = {".py", ".so"}


@dataclass(frozen=True)
class Inspection:
    """What a folder holds."""

    findings: Findings
    pickles: tuple[PickleFound, ...]


def inspect(folder: Path, files: Collection[PurePosixPath]) -> Inspection:
    """Reads what the folder's `files` say about the model. None of it is loaded.

    Raises:
        FolderRefused: a file can't be read.
        SourceRefused: a file of a known form is damaged, or not what its name says.
    """
    pickles = tuple(find_pickles(folder, files))
    findings = Findings()
    if mlflow.MODEL_FILE in files:
        findings |= mlflow.read_model(folder)
    findings |= huggingface.read_model(folder, files)
    findings |= _read_onnx(folder, files)
    findings |= Findings(weights=read_weights(folder, files))
    findings |= _read_pickled(pickles)
    findings |= _read_torch(folder, files, pickles)
    return Inspection(findings, pickles)


def complete(document: Mapping[str, Any] | None, findings: Findings, *, file: str) -> Package:
    """The package that `document`, the content of `package.yaml`, describes: what is written wins, what is found fills.

    Args:
        document: None where there is no `package.yaml`.
        findings: Of `inspect`, and before them those of the place that the files come from: `fetched | inspected`.
        file: Named in errors.

    Raises:
        SettingsError: something is wrong, or required and neither written nor found.
        Contradiction: the model's files say otherwise.
    """
    written = dict(document or {})
    filled = _fill(written, findings)
    found = findings.signature
    if found is None or "signature" in written:
        package = parse_settings(Package, filled, file=file, key="package")
    else:
        package = _with_found_signature(filled, found, file)
    _check_framework(package.framework, findings.framework, file)
    if found is not None and found.binding and package.signature is not None:
        _check_signature(package.signature, found, file)
    return package


def _fill(written: Mapping[str, Any], findings: Findings) -> dict[str, Any]:
    found = {
        "licence": findings.licence,
        "training_data": findings.training_data,
        "parents": list(findings.parents),
        "evaluation": dict(findings.evaluation),
    }
    filled = {key: value for key, value in found.items() if value} | dict(written)
    framework = _fill_framework(written.get("framework"), findings.framework)
    if framework is not None:
        filled["framework"] = framework
    labels = written.get("labels", {})
    if findings.labels and isinstance(labels, Mapping):
        filled["labels"] = {**findings.labels, **cast("Mapping[str, Any]", labels)}
    return filled


def _fill_framework(written: object, found: FoundFramework | None) -> object:
    if found is None:
        return written
    known = {key: value for key, value in asdict(found).items() if key in Framework.model_fields and value}
    if written is None:
        return known
    if not isinstance(written, Mapping):
        return written
    given = cast("Mapping[str, Any]", written)
    return {**known, **given} if _same_framework(given.get("name", found.name), found.name) else given


def _with_found_signature(filled: Mapping[str, Any], found: FoundSignature, file: str) -> Package:
    """With the signature that was found, unless the samples show that the server has another."""
    signature = found.signature.model_dump(mode="json")
    try:
        return parse_settings(Package, {**filled, "signature": signature}, file=file, key="package")
    except SettingsError as error:
        package = parse_settings(Package, filled, file=file, key="package")
        if not found.binding:
            return package
        raise Contradiction(f"{error}; the signature is that of {found.place}, as {file} gives none") from None


# Contradictions


def _check_framework(written: Framework, found: FoundFramework | None, file: str) -> None:
    if (
        found is not None
        and found.stored
        and found.version is not None
        and _same_framework(written.name, found.name)
        and written.version != found.version
    ):
        raise Contradiction(
            f"{file}: framework is {written.name} {written.version}, and {found.place} was written by {found.name} "
            f"{found.version}; correct the version, or leave framework out"
        )


def _same_framework(one: object, other: str) -> bool:
    names = [str(name).strip().lower() for name in (one, other)]
    return len({_ALIASES.get(name, name) for name in names}) == 1


def _check_signature(written: Signature, found: FoundSignature, file: str) -> None:
    """The written signature may say lengths that the graph leaves open, and leave outputs out. No more."""
    graph = found.signature
    problems = [
        *_differences("input", written.inputs, graph.inputs, promises=True),
        *_differences("output", written.outputs, graph.outputs, promises=False),
    ]
    missing = {tensor.name for tensor in graph.inputs} - {tensor.name for tensor in written.inputs}
    problems += [f"input {name!r} is not written" for name in sorted(missing)]
    if problems:
        raise Contradiction(
            f"{file} and {found.place} contradict each other: {'; '.join(problems)}. {file} says {_say(written)}; "
            f"{found.place} says {_say(graph)}. Correct the signature, or leave it out"
        )


def _differences(side: str, written: Iterable[Tensor], graph: Iterable[Tensor], *, promises: bool) -> list[str]:
    """What of `written` the graph doesn't hold to; with `promises`, lengths that it fixes may not be left open."""
    known = {tensor.name: tensor for tensor in graph}
    problems: list[str] = []
    for tensor in written:
        other = known.get(tensor.name)
        if other is None:
            problems.append(f"the graph has no {side} {tensor.name!r}")
        elif tensor.datatype != other.datatype:
            problems.append(f"{side} {tensor.name!r} is {tensor.datatype} in one and {other.datatype} in the other")
        elif len(tensor.shape) != len(other.shape) or not all(
            length in (own, -1) or (own == -1 and not promises)
            for own, length in zip(tensor.shape, other.shape, strict=True)
        ):
            problems.append(
                f"{side} {tensor.name!r} is {list(tensor.shape)} in one and {list(other.shape)} in the other"
            )
    return problems


def _say(signature: Signature) -> str:
    sides = (("inputs", signature.inputs), ("outputs", signature.outputs))
    return ", ".join(
        f"{side} [{', '.join(f'{tensor.name} {tensor.datatype} {list(tensor.shape)}' for tensor in tensors)}]"
        for side, tensors in sides
    )


# Forms


def _read_onnx(folder: Path, files: Collection[PurePosixPath]) -> Findings:
    graphs = {file: read_graph(folder, file) for file in sorted(files) if file.suffix.lower() == ".onnx"}
    if not graphs:
        return Findings()
    file, graph = next(iter(graphs.items()))
    framework = None
    if len({graph.opset for graph in graphs.values()}) == 1 and graph.opset is not None:
        framework = FoundFramework("onnx", f"opset {graph.opset}", str(file))
    producers = sorted({graph.producer for graph in graphs.values() if graph.producer})
    found = Findings(framework=framework, labels={"onnx.producer": ", ".join(producers)} if producers else {})
    if len(graphs) > 1:
        return found | Findings(remarks=(f"{len(graphs)} ONNX graphs: none says what the whole takes and gives",))
    if graph.signature is None:
        kinds = ", ".join(f"{port.name} ({port.kind})" for port in graph.unsayable) or "it has no input or no output"
        return found | Findings(remarks=(f"{file}: its signature can't be said as tensors: {kinds}",))
    # Code of the model's own may take anything, and give the graph something else.
    binding = not any(path.suffix in _CODE for path in files)
    return found | Findings(signature=FoundSignature(graph.signature, str(file), binding=binding))


def _read_pickled(pickles: Iterable[PickleFound]) -> Findings:
    versions = {pickle.sklearn_version: pickle.file for pickle in pickles if pickle.sklearn_version}
    if not versions:
        return Findings()
    version, file = next(iter(versions.items()))
    remarks: tuple[str, ...] = ()
    if len(versions) > 1:
        remarks = (f"files were written by scikit-learn {', '.join(versions)}: one release may not read another's",)
    return Findings(
        framework=FoundFramework("scikit-learn", version, str(file), stored=len(versions) == 1), remarks=remarks
    )


def _read_torch(folder: Path, files: Collection[PurePosixPath], pickles: Iterable[PickleFound]) -> Findings:
    """That PyTorch wrote the weights. Its version is in none of its forms."""
    for file in sorted(files):
        if file.suffix == ".safetensors" and read_header(folder / file).metadata.get("format") == "pt":
            return Findings(framework=FoundFramework("pytorch", None, str(file)))
    for pickle in pickles:
        if "PyTorch" in pickle.form:
            return Findings(framework=FoundFramework("pytorch", None, str(pickle.file)))
    return Findings()
