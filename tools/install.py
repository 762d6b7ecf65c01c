"""Gives `.tools/bin` the third-party commands of `tools/pins.toml` that this machine lacks, and `.tools/share` files.

A family whose commands are all on PATH is left alone. Any other is built from its pinned Go modules, once a machine:
into the user's cache, under a key made of everything that decides the outcome. A second clone only links.
An optional family is built only when it is named.
Needs Python 3.11 and nothing else, and Go where there is something to build.

    python tools/install.py [FAMILY...]
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parent
BIN = TOOLS.parent / ".tools" / "bin"
SHARE = TOOLS.parent / ".tools" / "share"
STILL_BUILDING_SECONDS = 30
OUTPUT_LINES_SHOWN = 20


class InstallError(Exception):
    """A family can't be had; the message says why and what to do."""


@dataclass(frozen=True)
class Family:
    """One table of pins.toml, which says what each field means."""

    name: str
    commands: list[str]
    minutes: int
    optional: bool = False
    build: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    copy: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    rename: dict[str, str] = field(default_factory=dict[str, str])
    files: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def modules(self) -> list[Path]:
        """The folders of its Go modules."""
        return sorted({TOOLS / part["go_mod"] for part in [*self.build, *self.copy, *self.files]})


def say(family: Family, text: str) -> None:
    print(f"{family.name}: {text}", flush=True)


def install(family: Family, cache: Path, *, named: bool = True) -> None:
    """Makes the family's commands reachable, from PATH or from `.tools/bin`. An optional one isn't built unless named.

    Raises:
        InstallError: when that takes a build and Go is missing or the build fails.
    """
    if not family.files and (place := on_path(family)):
        unlink(family)
        say(family, f"on PATH already, in {place}")
        return
    go = shutil.which("go")
    if go is None and family.optional and not named:
        return
    if go is None:
        raise InstallError(
            f"{family.name}: there is no `go` on PATH to build it with. Install either Go {go_needed(family)} or newer,"
            f" or the commands themselves: {', '.join(family.commands)}"
        )
    built = cache / f"{family.name}-{key(family, go)}"
    if family.optional and not named and not built.is_dir():
        say(family, f"optional; `python tools/install.py {family.name}` builds it (about {family.minutes} min)")
        return
    with lock(family, cache):
        if built.is_dir():
            say(family, "built already")
        else:
            build(family, go, built)
    link(family, built)


def on_path(family: Family) -> Path | None:
    """The folder of the first command, when PATH has them all outside `.tools/bin`."""
    folders = [folder for folder in os.get_exec_path() if Path(folder).resolve() != BIN]
    found = [shutil.which(command, path=os.pathsep.join(folders)) for command in family.commands]
    return Path(found[0]).parent if found[0] and all(found) else None


def go_needed(family: Family) -> str:
    """The Go version that the family's go.mod files ask for: the highest of their `go` lines."""
    lines = [re.search(r"^go (\S+)", (module / "go.mod").read_text(), re.M) for module in family.modules()]
    return max((line[1] for line in lines if line), key=lambda version: [int(part) for part in version.split(".")])


def key(family: Family, go: str) -> str:
    """Names a build by what decides its outcome: the pins, the modules' files, the platform and the compiler."""
    pins = {"commands": family.commands, "build": [build_command(go, part)[1:] for part in family.build]}
    more = {name: value for name in ("rename", "files") if (value := getattr(family, name))}
    digest = hashlib.sha256(json.dumps({**pins, "copy": family.copy, **more}, sort_keys=True).encode())
    for module in family.modules():
        digest.update(run([go, "env", "GOOS", "GOARCH", "GOVERSION"], module).encode())
        for file in sorted(path for path in module.rglob("*") if path.is_file()):
            digest.update(f"{file.relative_to(TOOLS)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def build_command(go: str, part: dict[str, str]) -> list[str]:
    flags = [f"-tags={part.get('tags', '')}", f"-ldflags=-s -w {part.get('ldflags', '')}"]
    return [go, "build", "-mod=readonly", "-buildvcs=false", "-trimpath", *flags]


def build(family: Family, go: str, built: Path) -> None:
    """Builds in a folder beside `built` and renames it: a build that is there is whole."""
    say(family, f"building {', '.join(family.commands) or 'its files'} (about {family.minutes} min, once a machine)")
    started = time.monotonic()
    for left_by_a_killed_build in built.parent.glob(f".{family.name}.*"):
        shutil.rmtree(left_by_a_killed_build)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{family.name}.", dir=built.parent))
    try:
        for part in family.build:
            run([*build_command(go, part), "-o", f"{unfinished}/", "tool"], TOOLS / part["go_mod"], family)
        for built_as, command in family.rename.items():
            (unfinished / built_as).rename(unfinished / command)
        for part in family.copy:
            for file in part["files"]:
                copied = shutil.copyfile(source(go, part) / file, unfinished / Path(file).name)
                copied.chmod(0o755)  # published modules hold no file modes
        for part in family.files:
            share = unfinished / "share" / part["to"]
            share.mkdir(parents=True)
            for file in part["files"]:
                shutil.copyfile(source(go, part) / file, share / Path(file).name)
        if missing := [command for command in family.commands if not (unfinished / command).exists()]:
            raise InstallError(f"{family.name}: pins.toml names commands that its build did not make: {missing}")
        unfinished.chmod(0o755)
        unfinished.rename(built)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    say(family, f"built in {time.monotonic() - started:.0f} s")


def source(go: str, part: dict[str, Any]) -> Path:
    """The folder of a published module."""
    folder = TOOLS / part["go_mod"]
    run([go, "mod", "download", part["module"]], folder)
    return Path(run([go, "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", part["module"]], folder).strip())


def run(command: list[str], folder: Path, family: Family | None = None) -> str:
    """Runs `go` and returns what it printed; for a family, says from time to time that it is still at work."""
    # A go.work file above this checkout must not change what is built.
    env = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
    started = time.monotonic()
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=errors)
        try:
            while process.poll() is None:
                try:
                    process.wait(STILL_BUILDING_SECONDS)
                except subprocess.TimeoutExpired:
                    if family:
                        say(family, f"still building in {folder.name} ({time.monotonic() - started:.0f} s)")
        finally:
            process.terminate()
            process.wait()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            last = (output.read() + errors.read()).splitlines()[-OUTPUT_LINES_SHOWN:]
            raise InstallError("\n".join([f"{folder.name}: `{' '.join(command)}` failed:", *last]))
        return output.read()


@contextmanager
def lock(family: Family, cache: Path) -> Iterator[None]:
    """Held by one process of this user at a time, so that two clones don't build the same thing at once."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{family.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(family, "waiting for the build that another checkout has under way")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def link(family: Family, built: Path) -> None:
    links = {BIN / command: built / command for command in family.commands}
    links |= {SHARE / part["to"]: built / "share" / part["to"] for part in family.files}
    for place, target in links.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        # By rename: a command may be in use while its pins change.
        new = place.with_name(f".{place.name}.{os.getpid()}")
        new.symlink_to(target)
        new.replace(place)


def unlink(family: Family) -> None:
    """Takes back earlier links, which would come before the commands on PATH."""
    for command in family.commands:
        (BIN / command).unlink(missing_ok=True)


def main(names: list[str]) -> int:
    families = {name: Family(name, **table) for name, table in tomllib.loads((TOOLS / "pins.toml").read_text()).items()}
    if unknown := [name for name in names if name not in families]:
        print(f"error: no family {', '.join(unknown)} in pins.toml: it has {', '.join(families)}", file=sys.stderr)
        return 2
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton" / "tools"
    try:
        for name in names or families:
            install(families[name], cache, named=bool(names))
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
