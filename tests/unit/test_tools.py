"""tools/install.py, run as it is in small checkouts of its own, on a Go module that builds in a second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest

INSTALL = Path(__file__).resolve().parents[2] / "tools" / "install.py"
GO = shutil.which("go")

PINS = """
[greeter]
commands = ["greet", "notes"]
minutes = 1

[[greeter.build]]
go_mod = "greeter"
ldflags = "-X main.name=NAME"

[[greeter.copy]]
go_mod = "greeter"
module = "example.com/greeter"
files = ["notes"]
"""
GO_MOD = "module example.com/greeter\n\ngo 1.24\n\ntool example.com/greeter/cmd/greet\n"
PROGRAM = 'package main\n\nvar name string\n\nfunc main() { print("hello " + name) }\n'


@dataclass
class Checkout:
    """A checkout whose one family says hello to `name`, and the user's cache folder that it installs from."""

    folder: Path
    cache: Path
    go_cache: str

    def pin(self, name: str) -> None:
        (self.folder / "tools" / "pins.toml").write_text(PINS.replace("NAME", name))

    def break_program(self) -> None:
        (self.folder / "tools" / "greeter" / "cmd" / "greet" / "main.go").write_text(
            "package main\n\nfunc main() { oops }"
        )

    def install(self, path: str | None = None, *families: str) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "XDG_CACHE_HOME": str(self.cache),
            # Go keeps its own cache there too: without it, every build compiles Go's runtime.
            "GOCACHE": self.go_cache,
            "PATH": path or os.environ["PATH"],
        }
        command = [sys.executable, str(self.folder / "tools" / "install.py"), *families]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    def greeting(self) -> str:
        # Go's print writes to standard error.
        return subprocess.run([self.bin / "greet"], capture_output=True, text=True, check=True).stderr

    @property
    def bin(self) -> Path:
        return self.folder / ".tools" / "bin"

    def left_in_cache(self) -> list[str]:
        return [path.name for path in (self.cache / "lepton" / "tools").iterdir() if path.suffix != ".lock"]


def check_out(folder: Path, cache: Path, go_cache: str, name: str = "world") -> Checkout:
    program = folder / "tools" / "greeter" / "cmd" / "greet" / "main.go"
    program.parent.mkdir(parents=True)
    program.write_text(PROGRAM)
    (folder / "tools" / "greeter" / "go.mod").write_text(GO_MOD)
    (folder / "tools" / "greeter" / "notes").write_text("#!/bin/sh\necho noted\n")
    shutil.copy(INSTALL, folder / "tools")
    checkout = Checkout(folder, cache, go_cache)
    checkout.pin(name)
    return checkout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    if GO is None:
        pytest.skip("no `go` on PATH")
    go_cache = subprocess.run([GO, "env", "GOCACHE"], capture_output=True, text=True, check=True).stdout.strip()
    return check_out(tmp_path / "checkout", tmp_path / "cache", go_cache)


def own_command(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("#!/bin/sh\necho the one of the user\n")
    (folder / name).chmod(0o755)


def test_a_missing_command_is_built_and_linked(checkout: Checkout) -> None:
    done = checkout.install()
    assert done.returncode == 0, done.stderr
    assert "greeter: building greet, notes (about 1 min, once a machine)" in done.stdout
    assert checkout.greeting() == "hello world"


def test_a_file_of_a_module_is_copied_and_can_be_run(checkout: Checkout) -> None:
    checkout.install()
    assert subprocess.run([checkout.bin / "notes"], capture_output=True, text=True, check=True).stdout == "noted\n"


def test_a_command_gets_the_name_that_it_is_known_by(checkout: Checkout) -> None:
    pins = checkout.folder / "tools" / "pins.toml"
    pins.write_text(
        PINS.replace('"greet"', '"hello"').replace("minutes = 1", 'minutes = 1\nrename = { greet = "hello" }')
    )
    assert checkout.install().returncode == 0
    assert sorted(path.name for path in checkout.bin.iterdir()) == ["hello", "notes"]


def test_files_of_a_module_are_shared_and_follow_its_pins(checkout: Checkout, tmp_path: Path) -> None:
    pins = checkout.folder / "tools" / "pins.toml"
    files = '\n[[greeter.files]]\ngo_mod = "greeter"\nmodule = "example.com/greeter"\nto = "texts"\nfiles = ["notes"]\n'
    pins.write_text(PINS + files)
    for command in ("greet", "notes"):
        own_command(tmp_path / "own", command)
    # Commands that are on PATH hold no files.
    assert checkout.install(f"{tmp_path / 'own'}:{os.environ['PATH']}").returncode == 0
    assert (checkout.folder / ".tools" / "share" / "texts" / "notes").read_text() == "#!/bin/sh\necho noted\n"


def test_a_second_run_builds_nothing(checkout: Checkout) -> None:
    checkout.install()
    again = checkout.install()
    assert again.stdout == "greeter: built already\n"


def test_a_second_checkout_links_without_building(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install()
    second = check_out(tmp_path / "second", checkout.cache, checkout.go_cache)
    assert second.install().stdout == "greeter: built already\n"
    assert (second.bin / "greet").resolve() == (checkout.bin / "greet").resolve()


def test_two_checkouts_at_once_build_once(checkout: Checkout, tmp_path: Path) -> None:
    both = [checkout, check_out(tmp_path / "second", checkout.cache, checkout.go_cache)]
    said: list[str] = []
    threads = [threading.Thread(target=lambda one=one: said.append(one.install().stdout)) for one in both]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("building" in text for text in said) == 1
    assert [one.greeting() for one in both] == ["hello world"] * 2


def test_an_optional_family_is_built_when_it_is_named_and_linked_where_it_is_built(
    checkout: Checkout, tmp_path: Path
) -> None:
    second = check_out(tmp_path / "second", checkout.cache, checkout.go_cache)
    for one in (checkout, second):
        pins = one.folder / "tools" / "pins.toml"
        pins.write_text(pins.read_text().replace("minutes = 1", "minutes = 1\noptional = true"))
    done = checkout.install()
    assert (done.returncode, done.stdout) == (
        0,
        "greeter: optional; `python tools/install.py greeter` builds it (about 1 min)\n",
    )
    assert not checkout.bin.exists()
    assert "building" in checkout.install(None, "greeter").stdout
    assert second.install().stdout == "greeter: built already\n"
    assert second.greeting() == "hello world"


def test_an_optional_family_asks_for_no_go(checkout: Checkout, tmp_path: Path) -> None:
    pins = checkout.folder / "tools" / "pins.toml"
    pins.write_text(pins.read_text().replace("minutes = 1", "minutes = 1\noptional = true"))
    (tmp_path / "empty").mkdir()
    assert checkout.install(str(tmp_path / "empty")).returncode == 0


def test_a_changed_pin_builds_anew(checkout: Checkout) -> None:
    checkout.install()
    checkout.pin("moon")
    assert "building" in checkout.install().stdout
    assert checkout.greeting() == "hello moon"


def test_a_checkout_with_other_pins_keeps_its_own_build(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install()
    check_out(tmp_path / "second", checkout.cache, checkout.go_cache, name="moon").install()
    assert checkout.greeting() == "hello world"


def test_a_family_on_path_is_left_alone(checkout: Checkout, tmp_path: Path) -> None:
    for command in ("greet", "notes"):
        own_command(tmp_path / "own", command)
    done = checkout.install(f"{tmp_path / 'own'}:{os.environ['PATH']}")
    assert done.stdout == f"greeter: on PATH already, in {tmp_path / 'own'}\n"
    assert not checkout.cache.exists()


def test_a_family_that_is_on_path_in_part_is_built_whole(checkout: Checkout, tmp_path: Path) -> None:
    own_command(tmp_path / "own", "greet")
    checkout.install(f"{tmp_path / 'own'}:{os.environ['PATH']}")
    assert sorted(path.name for path in checkout.bin.iterdir()) == ["greet", "notes"]


def test_the_links_do_not_count_as_commands_on_path(checkout: Checkout) -> None:
    checkout.install()
    assert checkout.install(f"{checkout.bin}:{os.environ['PATH']}").stdout == "greeter: built already\n"


def test_links_give_way_to_commands_that_came_to_path_later(checkout: Checkout, tmp_path: Path) -> None:
    checkout.install()
    for command in ("greet", "notes"):
        own_command(tmp_path / "own", command)
    checkout.install(f"{tmp_path / 'own'}:{os.environ['PATH']}")
    assert list(checkout.bin.iterdir()) == []


def test_a_failing_build_says_why(checkout: Checkout) -> None:
    checkout.break_program()
    failed = checkout.install()
    assert failed.returncode == 1
    assert "undefined: oops" in failed.stderr


def test_a_failing_build_leaves_nothing_half_made(checkout: Checkout) -> None:
    checkout.break_program()
    checkout.install()
    assert checkout.left_in_cache() == []
    assert not checkout.bin.exists()


def test_what_a_killed_build_left_is_swept(checkout: Checkout) -> None:
    left = checkout.cache / "lepton" / "tools" / ".greeter.left"
    left.mkdir(parents=True)
    checkout.install()
    assert not left.exists()


def test_without_go_the_error_names_what_to_install(checkout: Checkout, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    failed = checkout.install(str(tmp_path / "empty"))
    assert failed.returncode == 1
    assert "Install either Go 1.24 or newer, or the commands themselves: greet, notes" in failed.stderr


def test_an_unknown_family_is_wrong_usage(checkout: Checkout) -> None:
    wrong = checkout.install(None, "gretter")
    assert wrong.returncode == 2
    assert "no family gretter in pins.toml: it has greeter" in wrong.stderr
