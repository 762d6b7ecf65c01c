"""Finding files that run code when they are loaded, by content, without loading any; and refusing them by name."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import pickletools
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any

import joblib
import numpy as np
import pytest
import sklearn
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from model_packaging.errors import FolderRefused, PickleRefused
from model_packaging.sources.pickles import PickleFound, find_pickles, refuse_pickles

WORDS = "cat\ndog\n(see below)\nclass Foo:\n    import os\nThe quick brown fox.\nXylophone\n.\n]\n}\n"
TORCH_PICKLE = (
    b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02(X\x01\x00\x00\x000Q"
    b"K\x00K\x02\x85K\x01\x85\x89}tRs."
)


class RunsCommand:
    """Pickled as attacks are: to load it is to run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("true",)


def find(folder: Path, content: bytes, name: str = "file.bin") -> PickleFound | None:
    (folder / name).write_bytes(content)
    return next(iter(find_pickles(folder, [PurePosixPath(name)])), None)


def found(folder: Path, content: bytes, name: str = "file.bin") -> PickleFound:
    pickled = find(folder, content, name)
    assert pickled is not None
    return pickled


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return target.getvalue()


def tarred(members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return target.getvalue()


def saved(array: np.ndarray[Any, Any]) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


@pytest.fixture(scope="module")
def model() -> Any:
    features = np.random.default_rng(0).random((50, 4))
    return make_pipeline(StandardScaler(), RandomForestClassifier(5)).fit(features, features[:, 0] > 0.5)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_every_protocol_is_found(protocol: int, tmp_path: Path) -> None:
    assert found(tmp_path, pickle.dumps({"a": 1, "b": ["x", 1.5]}, protocol)).imports == ()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_command_in_a_pickle_of_every_protocol_is_named(protocol: int, tmp_path: Path) -> None:
    pickled = found(tmp_path, pickle.dumps(RunsCommand(), protocol))
    assert pickled.dangerous_imports == (f"{os.system.__module__}.system",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_breaks_after_its_call_is_found(protocol: int, tmp_path: Path) -> None:
    broken = pickle.dumps(RunsCommand(), protocol)[:-1] + b"\xff\xff"
    assert found(tmp_path, broken).dangerous_imports


@pytest.mark.parametrize("content", [b"(S'true'\nios\nsystem\n.", b"(cos\nsystem\nS'true'\no."])
def test_calls_of_the_oldest_opcodes_are_found(content: bytes, tmp_path: Path) -> None:
    assert found(tmp_path, content).dangerous_imports == ("os.system",)


def test_a_second_pickle_behind_a_harmless_one_is_followed(tmp_path: Path) -> None:
    content = pickle.dumps([1, 2]) + pickle.dumps(RunsCommand())
    assert found(tmp_path, content).dangerous_imports


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        WORDS.encode(),
        *(line.encode() + b"\nword\nword\n" for line in WORDS.splitlines()),
        b"\x80\x04 is how this text starts",
        json.dumps({"a": [1, None]}).encode(),
        saved(np.ones((3, 2))),
        saved(np.ones(2, dtype=[("x", "f8"), ("name", "U4")])),
        gzip.compress(WORDS.encode() * 1000),
        zipped({"words.txt": WORDS.encode(), "a.npy": saved(np.ones(3))}, zipfile.ZIP_DEFLATED),
        tarred({"words.txt": WORDS.encode()}),
    ],
)
def test_what_is_no_pickle_is_not_called_one(content: bytes, tmp_path: Path) -> None:
    assert find(tmp_path, content) is None


def test_no_source_file_of_the_standard_library_is_called_one() -> None:
    folder = Path(os.__file__).parent
    names = [PurePosixPath(path.name) for path in folder.glob("*.py") if path.is_file() and not path.is_symlink()]
    assert len(names) > 100
    assert find_pickles(folder, names) == []


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 9)])
def test_a_joblib_file_is_followed_past_its_arrays(compress: Any, model: Any, tmp_path: Path) -> None:
    joblib.dump(
        {"model": model, "names": np.array(["a", None], dtype=object)}, tmp_path / "m.joblib", compress=compress
    )
    (pickled,) = find_pickles(tmp_path, [PurePosixPath("m.joblib")])
    # The pipeline comes last, behind the bytes of its trees' arrays.
    assert pickled.complete
    assert "sklearn.pipeline.Pipeline" in pickled.imports
    assert pickled.form.startswith("a joblib pickle")
    assert pickled.sklearn_version == sklearn.__version__


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_scikit_learns_version_is_read_from_a_pickle(protocol: int, model: Any, tmp_path: Path) -> None:
    assert found(tmp_path, pickle.dumps(model, protocol)).sklearn_version == sklearn.__version__


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        zlib.compress,
        bz2.compress,
        lzma.compress,
        zstandard.compress,
        # Readers take all members of such a file, and an empty one may come first.
        lambda content: gzip.compress(b"") + gzip.compress(content),
        lambda content: bytes.fromhex("502a4d1804000000") + b"skip" + zstandard.compress(content),
        lambda content: b"ZF" + hex(len(content)).encode().ljust(19) + zlib.compress(content),
        lambda content: gzip.compress(bz2.compress(content)),
    ],
)
def test_a_compressed_pickle_is_found(compress: Any, tmp_path: Path) -> None:
    assert found(tmp_path, compress(pickle.dumps(RunsCommand()))).dangerous_imports


def test_an_lz4_file_counts_as_one_since_nothing_here_reads_it(tmp_path: Path) -> None:
    assert not found(tmp_path, bytes.fromhex("04224d18") + b"frame").complete


def test_a_pytorch_archive_is_found(tmp_path: Path) -> None:
    content = zipped({"archive/data.pkl": TORCH_PICKLE, "archive/data/0": b"\0" * 8, "archive/version": b"3\n"})
    pickled = found(tmp_path, content, "model.pt")
    assert pickled.form == "the pickle of a PyTorch archive, in member 'archive/data.pkl'"
    assert pickled.imports == ("torch._utils._rebuild_tensor_v2",)


def test_a_pytorch_file_of_before_1_6_is_named_as_such(tmp_path: Path) -> None:
    content = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + TORCH_PICKLE + b"\0" * 64
    assert "before 1.6" in found(tmp_path, content).form


def test_a_pickle_is_found_in_an_archive_in_an_archive(tmp_path: Path) -> None:
    weights = zipped({"archive/data.pkl": pickle.dumps(RunsCommand())})
    for archive in (zipped({"weights.pt": weights}), tarred({"weights.ckpt": weights, "config.yaml": b"a: 1\n"})):
        assert found(tmp_path, archive).dangerous_imports


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_pickle_is_found_behind_others_in_a_compressed_tar(form: int, tmp_path: Path) -> None:
    name = "folder/" * 13 + "weights.pkl"
    content = gzip.compress(tarred({"a.txt": WORDS.encode() * 300, name: pickle.dumps(RunsCommand())}, form))
    pickled = found(tmp_path, content, "model.nemo")
    assert pickled.dangerous_imports
    assert name in pickled.form


def test_a_pickle_is_found_in_a_tar_member_with_a_long_name(tmp_path: Path) -> None:
    name = "folder/" * 40 + "weights.pkl"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert name[:200] in found(tmp_path, tarred({name: pickle.dumps(RunsCommand())}, form)).form


def test_a_zip_that_the_standard_library_refuses_is_still_looked_into(tmp_path: Path) -> None:
    content = bytearray(zipped({"archive/data.pkl": pickle.dumps(RunsCommand())}))
    # Another name in the local header: PyTorch doesn't compare, zipfile stops.
    place = content.index(b"archive/data.pkl")
    content[place : place + 7] = b"ARCHIVE"
    with zipfile.ZipFile(io.BytesIO(content)) as archive, pytest.raises(zipfile.BadZipFile):
        archive.read("archive/data.pkl")
    assert found(tmp_path, bytes(content)).dangerous_imports


def test_an_encrypted_member_counts_as_one(tmp_path: Path) -> None:
    content = bytearray(zipped({"data.bin": b"whatever"}))
    content[content.index(b"PK\x01\x02") + 8] |= 1
    assert not found(tmp_path, bytes(content)).complete


def test_a_zip_behind_other_bytes_is_looked_into(tmp_path: Path) -> None:
    assert found(tmp_path, b"#!/bin/sh\n" + zipped({"a.pkl": pickle.dumps(RunsCommand())})).dangerous_imports


def test_a_pickle_in_front_of_a_harmless_zip_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, pickle.dumps(RunsCommand()) + zipped({"a.txt": b"text"})).dangerous_imports


def test_a_pickle_disguised_as_a_skippable_frame_is_found(tmp_path: Path) -> None:
    # `X` and a length: a text to pickle, the start of a Zstandard frame to others.
    text = bytes([0x58, 0x2A, 0x4D, 0x18, 0x00])
    assert found(tmp_path, text + b"x" * 0x184D2A + b"0" + pickle.dumps(RunsCommand(), 0)).dangerous_imports


def test_arrays_of_objects_are_found(tmp_path: Path) -> None:
    objects = np.array([{"a": 1}, None], dtype=object)
    assert found(tmp_path, saved(objects)).form == "a NumPy array of Python objects"
    structured = np.zeros(1, dtype=[("a", "f8"), ("b", [("c", "O")])])
    assert found(tmp_path, saved(structured)).form == "a NumPy array of Python objects"
    np.savez_compressed(tmp_path / "a.npz", plain=np.ones(3), objects=objects)
    (pickled,) = find_pickles(tmp_path, [PurePosixPath("a.npz")])
    assert "objects.npy" in pickled.form


def test_a_keras_lambda_layer_counts_as_one(tmp_path: Path) -> None:
    config = json.dumps({"config": {"layers": [{"class_name": "Lambda", "config": {}}]}}).encode()
    assert "Lambda" in found(tmp_path, zipped({"metadata.json": b"{}", "config.json": config}), "m.keras").form
    assert "Lambda" in found(tmp_path, b"\x89HDF\r\n\x1a\n" + bytes(100) + config, "m.h5").form
    dense = config.replace(b"Lambda", b"Dense")
    assert find(tmp_path, zipped({"metadata.json": b"{}", "config.json": dense}), "m.keras") is None


def test_what_is_nested_too_deep_counts_as_one(tmp_path: Path) -> None:
    content = WORDS.encode()
    for _ in range(8):
        content = gzip.compress(content)
    assert not found(tmp_path, content).complete


def test_nothing_is_loaded(tmp_path: Path) -> None:
    class Writes:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "loaded"),)

    assert found(tmp_path, pickle.dumps(Writes())).imports
    assert not (tmp_path / "loaded").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(FolderRefused, match="link"):
        find_pickles(tmp_path, [PurePosixPath("link")])


# Refusing


def test_a_pickle_is_refused_with_how_to_allow_it(model: Any, tmp_path: Path) -> None:
    pickled = [found(tmp_path, pickle.dumps(RunsCommand()), "evil.bin"), found(tmp_path, pickle.dumps(model), "m.pkl")]
    with pytest.raises(PickleRefused) as refused:
        refuse_pickles(pickled, [])
    assert "evil.bin is a pickle (protocol 4), which imports posix.system" in str(refused.value)
    assert "allow_pickle: [evil.bin, m.pkl]" in str(refused.value)


def test_an_allowance_holds_for_the_file_that_it_names_only(tmp_path: Path) -> None:
    pickled = [found(tmp_path, pickle.dumps(1), name) for name in ("a.pkl", "b.pkl")]
    refuse_pickles(pickled, ["a.pkl", "b.pkl"])
    with pytest.raises(PickleRefused, match=r"^b\.pkl is a pickle"):
        refuse_pickles(pickled, ["a.pkl"])


def test_an_allowance_that_fits_no_pickle_is_refused(tmp_path: Path) -> None:
    pickled = [found(tmp_path, pickle.dumps(1), "a.pkl")]
    with pytest.raises(PickleRefused, match=r"names model\.joblib.*those that are: a\.pkl"):
        refuse_pickles(pickled, ["a.pkl", "model.joblib"])
    with pytest.raises(PickleRefused, match="no file here is"):
        refuse_pickles([], ["model.joblib"])


# Any bytes

PIECES = st.sampled_from(
    [
        *(code.code.encode("latin-1") for code in pickletools.opcodes),
        b"\x80\x04", b"cos\nsystem\n", b"\x8c\x02os", b"\xff\xff\xff\xff", b"\x00" * 8, b"1\n", b"PK\x03\x04",
        b"PK\x05\x06", b"PK\x01\x02", b"\x93NUMPY\x01\x00", b"\x1f\x8b\x08\x00", b"x\x9c", b"BZh9", b"\xfd7zXZ\x00",
        b"]\x00\x00", b"\x28\xb5\x2f\xfd", b"ustar\x00", b"ZF0x12", b"\x89HDF\r\n\x1a\n",
    ]
)  # fmt: skip


@settings(max_examples=400)
@given(pieces=st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=60))
def test_any_bytes_are_looked_into_without_a_crash(pieces: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        find(Path(folder), b"".join(pieces))


SOUND = [
    zipped({"archive/data.pkl": TORCH_PICKLE, "archive/data/0": bytes(64)}),
    zipped({"a.npy": saved(np.array([{}], dtype=object))}, zipfile.ZIP_DEFLATED),
    tarred({"folder/" * 20 + "a": b"text" * 200, "b.pkl": pickle.dumps(RunsCommand())}),
    gzip.compress(tarred({"a": pickle.dumps([1.0] * 50)})),
    lzma.compress(pickle.dumps(RunsCommand())),
    zstandard.compress(pickle.dumps(RunsCommand())),
    saved(np.array([{}], dtype=object)),
]


@settings(max_examples=400)
@given(
    content=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    end=st.integers(0, 20_000),
)
def test_damaged_archives_are_looked_into_without_a_crash(
    content: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    damaged = bytearray(content)
    for place, octet in changes:
        damaged[place % len(damaged)] = octet
    with tempfile.TemporaryDirectory() as folder:
        find(Path(folder), bytes(damaged[:end]))


def test_bombs_cost_less_than_50_mb(tmp_path: Path) -> None:
    zeros = bytes(1 << 20)
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", 1) as bomb:
        header = tarfile.TarInfo("zeros")
        header.size = 200 << 20
        bomb.write(header.tobuf())
        for _ in range(200):
            bomb.write(zeros)
    long = b"\x80\x04" + b"B" + (100 << 20).to_bytes(4, "little") + zeros * 100 + b"."
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 << 20}]
    (tmp_path / "bomb.xz").write_bytes(lzma.compress(long, filters=filters))
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27)
    (tmp_path / "bomb.zst").write_bytes(zstandard.ZstdCompressor(compression_params=parameters).compress(long))
    words = (b"\x8c\x78" + b"w" * 120) * 450_000
    (tmp_path / "words.pkl").write_bytes(b"\x80\x04(" + words + b"l.")
    (tmp_path / "deep.pkl").write_bytes(b"\x80\x04" + b")" * 1000 + b"\x85" * 2_000_000 + b".")
    (tmp_path / "long.txt").write_bytes(b"c" + b"a" * (60 << 20))
    entry = b"PK\x01\x02" + bytes(24) + (65535).to_bytes(2, "little") + bytes(16) + b"n" * 65535
    directory = entry * 500
    end = b"PK\x05\x06" + bytes(8) + len(directory).to_bytes(4, "little") + bytes(6)
    (tmp_path / "directory.zip").write_bytes(directory + end)
    with open(tmp_path / "sparse.pkl", "wb") as sparse:
        sparse.write(b"\x80\x04\x8e" + (8 << 30).to_bytes(8, "little"))
        sparse.seek(8 << 30, io.SEEK_CUR)
        sparse.write(b".")
    program = (
        "import pathlib, sys, time\n"
        "from model_packaging.sources.pickles import find_pickles\n"
        "import zstandard\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        # Of the process alone: getrusage counts its parent's from before exec too.
        "status = pathlib.Path('/proc/self/status')\n"
        "peak = lambda: int(status.read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "found = find_pickles(folder, [pathlib.PurePosixPath(f.name) for f in sorted(folder.iterdir())])\n"
        "print((peak() - before) / 1024, time.process_time(), *(f.file for f in found))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True)
    memory_mib, seconds, *files = done.stdout.split()
    assert files == ["bomb.tar.gz", "bomb.xz", "bomb.zst", "deep.pkl", "directory.zip", "sparse.pkl", "words.pkl"]
    assert float(memory_mib) < 50
    assert float(seconds) < 30
