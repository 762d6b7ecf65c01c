"""Models that MLflow knows: the files of a run, of a registered model or of a folder, and what is recorded about them.

Source: https://mlflow.org/docs/latest/ml/model (the MLmodel file). Names and shapes of a signature's tensors are as
MLServer's MLflow runtime has them.
"""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError

from model_packaging.errors import SourceRefused
from model_packaging.files import list_files
from model_packaging.manifest import GitSource
from model_packaging.package import Signature, Tensor
from model_packaging.sources.documents import read_yaml
from model_packaging.sources.findings import Findings, FoundFramework, FoundSignature
from model_packaging.sources.staging import filling, put

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

MODEL_FILE = PurePosixPath("MLmodel")

_FLAVOURS = {
    "sklearn": ("scikit-learn", "sklearn_version"), "xgboost": ("xgboost", "xgb_version"),
    "lightgbm": ("lightgbm", "lgb_version"), "catboost": ("catboost", "catboost_version"),
    "transformers": ("transformers", "transformers_version"),
    "sentence_transformers": ("sentence-transformers", "sentence_transformers_version"),
    "pytorch": ("pytorch", "pytorch_version"), "keras": ("keras", "keras_version"),
    "tensorflow": ("tensorflow", "tensorflow_version"), "onnx": ("onnx", "onnx_version"),
    "spark": ("pyspark", "pyspark_version"), "statsmodels": ("statsmodels", "statsmodels_version"),
    "prophet": ("prophet", "prophet_version"), "spacy": ("spacy", "spacy_version"), "h2o": ("h2o", "h2o_version"),
    "paddle": ("paddle", "paddle_version"), "pmdarima": ("pmdarima", "pmdarima_version"),
}  # fmt: skip
"""MLflow's flavour -> the framework's name, and where the flavour keeps its version."""
_COLUMNS = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64", "string": "BYTES",
    "binary": "BYTES", "datetime": "BYTES", "array": "BYTES", "object": "BYTES", "map": "BYTES", "any": "BYTES",
}  # fmt: skip
_ARRAYS = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "str": "BYTES", "object": "BYTES", "bytes": "BYTES",
}  # fmt: skip
_RUN = re.compile(r"runs:/(?P<run>[^/]+)/.+")
_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/]+)|/(?P<version>\d+))")
_LOGGED = re.compile(r"models:/(?P<id>m-[^/@]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_ON_TRAINING_DATA = re.compile(r"train(ing)?[_/.-]")
_LONGEST_LABEL = 250


def is_uri(source: str) -> bool:
    """Whether `source` names something in MLflow, and no folder."""
    return source.startswith(("runs:/", "models:/"))


def fetch(source: str, folder: Path, *, tracking_uri: str | None = None) -> Findings:
    """Brings a model's files into the new or empty `folder`, and returns what MLflow's server knows about them.

    What the files themselves say is for `inspect` to find.

    Args:
        source: `runs:/RUN_ID/PATH`, `models:/NAME/VERSION`, `models:/NAME@ALIAS`, or a folder with an MLmodel file.
        tracking_uri: Of MLflow's server or database. Default: MLFLOW_TRACKING_URI (and MLFLOW_REGISTRY_URI where the
            registry is another).

    Raises:
        SourceRefused: MLflow isn't installed, nothing says where it is, it doesn't have the model, or what it has is
            none.
        FolderRefused: the folder holds a link, a device, or a name that is not UTF-8.
    """
    if is_uri(source):
        return _fetch_uri(source, folder, tracking_uri)
    local = Path(source)
    if not (local / MODEL_FILE).is_file():
        raise SourceRefused(
            f"{source} is no folder with an {MODEL_FILE} file, and no MLflow URI; name a model as runs:/RUN_ID/PATH, "
            "models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    with filling(folder) as content:
        put({file.path: local / file.path for file in list_files(local)}, content, link=False)
    return Findings()


def read_model(folder: Path) -> Findings:
    """What the folder's MLmodel file says: the framework, the signature, the run that made it. Needs no MLflow.

    Raises:
        SourceRefused: the file is not what MLflow writes.
    """
    file = folder / MODEL_FILE
    document = read_yaml(file)
    flavours = document.get("flavors")
    if not isinstance(flavours, dict):
        raise SourceRefused(f"{file} has no flavors; it should be what MLflow writes when it saves a model")
    signature, remarks = _read_signature(document.get("signature"), file)
    run = document.get("run_id")
    return Findings(
        framework=_framework(cast("dict[str, Any]", flavours)),
        signature=signature,
        labels={"mlflow.run_id": run} if isinstance(run, str) and run else {},
        remarks=remarks,
    )


# What MLflow's server knows


def _fetch_uri(uri: str, folder: Path, tracking_uri: str | None) -> Findings:
    try:
        from mlflow import MlflowClient, is_tracking_uri_set  # noqa: PLC0415 - an extra, and takes a second
        from mlflow.artifacts import download_artifacts  # noqa: PLC0415
        from mlflow.exceptions import MlflowException  # noqa: PLC0415
    except ImportError:
        raise SourceRefused(f"{uri}: to read from MLflow, install it: pip install 'lepton[mlflow]'") from None
    if tracking_uri is None and not is_tracking_uri_set():
        # MLflow would make a new database in the current folder, and find nothing there.
        raise SourceRefused(
            f"{uri}: nothing says where MLflow is; set MLFLOW_TRACKING_URI to its server or database, such as "
            "http://HOST:5000 or sqlite:////PATH/mlflow.db"
        )
    try:
        with _quiet():
            client = MlflowClient(tracking_uri=tracking_uri)
            artifact, run_id, labels = _resolve(uri, client)
            with filling(folder) as content:
                place = download_artifacts(artifact_uri=artifact, dst_path=str(content), tracking_uri=tracking_uri)
                downloaded = Path(place)
                if not (downloaded / MODEL_FILE).is_file():
                    raise SourceRefused(f"{uri} holds no {MODEL_FILE} file; name the path of a model that MLflow saved")
                _lift(downloaded, content)
            run = client.get_run(run_id) if run_id else None
    except MlflowException as error:
        raise SourceRefused(f"{uri}: MLflow says: {error.message}; name a model that is there") from error
    found = Findings() if run is None else _read_run(run)
    return Findings(labels=labels) | found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what MLflow says of its own work, and warnings of the libraries below it, from whoever runs a command."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _lift(inner: Path, content: Path) -> None:
    """Moves what lies in the folder `inner`, somewhere inside `content`, to the top of it."""
    if inner == content:
        return
    aside = content.with_name("model")
    inner.rename(aside)
    shutil.rmtree(content)
    aside.rename(content)


def _resolve(uri: str, client: MlflowClient) -> tuple[str, str | None, dict[str, str]]:
    """Where the files are, the run they come from, and labels to find them by."""
    if run := _RUN.fullmatch(uri):
        return uri, run["run"], {}
    if logged := _LOGGED.fullmatch(uri):
        model = client.get_logged_model(logged["id"])
        return model.artifact_location, model.source_run_id, {}
    registered = _REGISTERED.fullmatch(uri)
    if registered is None:
        raise SourceRefused(
            f"{uri} is no MLflow URI of a model; write runs:/RUN_ID/PATH, models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    name = registered["name"]
    version = (
        client.get_model_version_by_alias(name, registered["alias"])
        if registered["alias"]
        else client.get_model_version(name, registered["version"])
    )
    location = client.get_model_version_download_uri(name, version.version)
    if logged := _LOGGED.fullmatch(location):
        location = client.get_logged_model(logged["id"]).artifact_location
    return location, version.run_id, {"mlflow.model": f"{name}/{version.version}"}


def _read_run(run: Run) -> Findings:
    metrics = {name: value for name, value in run.data.metrics.items() if math.isfinite(value)}
    unseen = {name: value for name, value in metrics.items() if not _ON_TRAINING_DATA.match(name)}
    remarks = [f"metric {name} is left out: it is of the training data" for name in sorted(metrics.keys() - unseen)]
    params = {
        f"mlflow.param.{name}": value for name, value in run.data.params.items() if 0 < len(value) <= _LONGEST_LABEL
    }
    return Findings(
        training_data=_training_data(run),
        evaluation=unseen,
        labels={"mlflow.run_id": run.info.run_id, **params},
        git=_git(run.data.tags),
        remarks=tuple(remarks),
    )


def _training_data(run: Run) -> str | None:
    """The data sets that the run says it was trained on."""
    named: list[str] = []
    for logged in run.inputs.dataset_inputs if run.inputs else ():
        contexts = {tag.value for tag in logged.tags if tag.key == "mlflow.data.context"}
        if contexts <= {"training", "train"}:
            named.append(f"{logged.dataset.name}, digest {logged.dataset.digest}{_place(logged.dataset.source)}")
    return "; ".join(named) or None


def _place(source: str | None) -> str:
    """Where a data set is, as one may write it behind its name. MLflow keeps it as JSON, with a key for each kind."""
    try:
        described = cast("object", json.loads(source or "{}"))
    except (ValueError, RecursionError):
        return ""
    places = cast("dict[str, object]", described) if isinstance(described, dict) else {}
    known = (places.get(key) for key in ("uri", "url", "path"))
    return next((f", at {place}" for place in known if isinstance(place, str) and place), "")


def _git(tags: Mapping[str, str]) -> GitSource | None:
    commit = tags.get("mlflow.source.git.commit", "")
    if not _COMMIT.fullmatch(commit):
        return None
    # Where MLflow did not look whether the tree was clean, nobody can vouch that it was.
    dirty = tags.get("mlflow.source.git.dirty", "true") != "false"
    return GitSource(commit=commit, branch=tags.get("mlflow.source.git.branch") or None, dirty=dirty)


# What the MLmodel file says


def _framework(flavours: Mapping[str, Any]) -> FoundFramework | None:
    for flavour, (name, key) in _FLAVOURS.items():
        settings = flavours.get(flavour)
        if isinstance(settings, dict):
            version = cast("dict[str, object]", settings).get(key)
            return FoundFramework(name, None if version is None else str(version), str(MODEL_FILE), stored=True)
    return None


def _read_signature(document: object, file: Path) -> tuple[FoundSignature | None, tuple[str, ...]]:
    if not isinstance(document, dict):
        return None, ()
    sides = {side: _specs(cast("dict[str, object]", document).get(side), side, file) for side in ("inputs", "outputs")}
    if not all(sides.values()):
        missing = " or ".join(side for side, specs in sides.items() if not specs)
        return None, (f"{MODEL_FILE}: its signature has no {missing}, so it is not taken",)
    try:
        signature = Signature(
            inputs=tuple(_tensor(spec, f"input-{place}") for place, spec in enumerate(sides["inputs"])),
            outputs=tuple(_tensor(spec, f"output-{place}") for place, spec in enumerate(sides["outputs"])),
        )
    except (ValidationError, _NoWord) as error:
        reason = str(error) if isinstance(error, _NoWord) else error.errors(include_url=False)[0]["msg"]
        return None, (f"{MODEL_FILE}: its signature can't be said as tensors: {reason}",)
    # Names and shapes are those of one server, MLServer's MLflow runtime: another's may differ and be right.
    return FoundSignature(signature, str(MODEL_FILE), binding=False), ()


class _NoWord(Exception):
    """The Open Inference Protocol has no word for a type."""


def _specs(text: object, side: str, file: Path) -> Sequence[Mapping[str, Any]]:
    """One mapping a column or tensor; MLflow writes them as JSON inside the YAML."""
    if text is None:
        return ()
    try:
        specs = cast("object", json.loads(text)) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        specs = None
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in cast("list[object]", specs)):
        raise SourceRefused(f"{file}: signature.{side} should be a JSON list of columns or tensors, is {text!r:.80}")
    return cast("list[dict[str, Any]]", specs)


def _tensor(spec: Mapping[str, Any], default_name: str) -> Tensor:
    name, kind = spec.get("name") or default_name, spec.get("type")
    if kind == "tensor":
        described = spec.get("tensor-spec")
        described = cast("dict[str, Any]", described) if isinstance(described, dict) else {}
        dtype = str(described.get("dtype"))
        datatype, shape = _ARRAYS.get(re.sub(r"^[<>|=]?[US]\d*$", "str", dtype)), described.get("shape")
        kind = dtype
    else:
        datatype, shape = _COLUMNS.get(str(kind)), [-1, 1]
    if datatype is None:
        raise _NoWord(f"{name!r} is of type {kind!r}")
    return Tensor.model_validate({"name": name, "shape": shape, "datatype": datatype})
