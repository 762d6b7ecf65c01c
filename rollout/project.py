"""A project's stacks as their config files in Git say: found, read, validated and edited, without running anything."""

from __future__ import annotations

import fcntl
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import yaml

from infra.errors import UserError
from infra.files import write_atomically
from infra.names import PLATFORM_PROJECT, config_file, platform_stack, version_stack
from infra.project import find_root
from infra.settings import (
    EndpointSettings,
    PlatformSettings,
    SettingsError,
    VersionSettings,
    parse_settings,
    parse_value,
)
from infra.settings.values import TeamName
from rollout.clock import Clock

Kind = Literal["platform", "version", "endpoint"]
StackSettings = PlatformSettings | VersionSettings | EndpointSettings

_KINDS: dict[Kind, type[StackSettings]] = {
    "platform": PlatformSettings,
    "version": VersionSettings,
    "endpoint": EndpointSettings,
}

ROLLOUT_KEY = "lepton:rollout"
"""Config key of a rollout's state, beside `lepton:endpoint`."""

_POLL_SECONDS = 0.2
"""Between two looks whether a lock is free."""


class UnknownStackError(UserError):
    """No config file for that address."""


class BusyError(UserError):
    """Another command is changing the stack."""


@dataclass(frozen=True)
class StackConfig:
    """One stack's config file, validated."""

    team: str
    name: str
    file: Path
    shown: str
    """The file as errors name it."""
    kind: Kind
    settings: StackSettings

    @property
    def address(self) -> str:
        return f"{self.team}/{self.name}"

    @property
    def platform(self) -> PlatformSettings:
        assert isinstance(self.settings, PlatformSettings)
        return self.settings

    @property
    def version(self) -> VersionSettings:
        assert isinstance(self.settings, VersionSettings)
        return self.settings

    @property
    def endpoint(self) -> EndpointSettings:
        assert isinstance(self.settings, EndpointSettings)
        return self.settings

    def document(self) -> dict[str, Any]:
        """What the file says under the stack's key, as written."""
        return _read(self.file, self.shown)["config"][f"lepton:{self.kind}"]

    def rollout(self) -> dict[str, Any] | None:
        """The state of the endpoint's rollout as the file has it, if there is one: `rollout/driving/state.py`."""
        return _read(self.file, self.shown)["config"].get(ROLLOUT_KEY)

    def with_document(self, document: dict[str, Any]) -> StackConfig:
        """This stack with another config, validated and not yet written. Raises SettingsError."""
        key = f"lepton:{self.kind}"
        settings = parse_settings(_KINDS[self.kind], _without_secrets(document), file=self.shown, key=key)
        return replace(self, settings=settings)


class Project:
    """The folder with the platform's `Pulumi.yaml` and the teams under `stacks/`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def around(cls, folder: Path) -> Project:
        """The project that `folder` is in. Raises NotInProjectError."""
        return cls(find_root(folder))

    def folder(self, team: str) -> Path:
        """Where a team's Pulumi project is; the platform's is the root itself."""
        return self.root if team == PLATFORM_PROJECT else self.root / "stacks" / team

    def stack(self, address: str) -> StackConfig:
        """The stack at `TEAM/STACK`.

        Raises:
            UnknownStackError: where it has no config file.
            SettingsError: where the file can't be used.
        """
        team, _, name = address.partition("/")
        file = self._configs(team) / config_file(name)
        if not name or not file.is_file():
            known = ", ".join(sorted(f"{team}/{_stack_name(path)}" for team, path in self._files())) or "none"
            raise UnknownStackError(f"no stack {address!r}: an address is TEAM/ENV.MODEL; stacks here: {known}")
        return self._load(team, file)

    def platform(self, environment: str) -> StackConfig:
        """The platform stack of an environment. Raises as `stack`."""
        return self.stack(f"{PLATFORM_PROJECT}/{platform_stack(environment)}")

    def version_of(self, endpoint: StackConfig, version: str) -> StackConfig:
        """The stack that serves a version of an endpoint's model. Raises as `stack`."""
        return self.stack(_version_address(endpoint, version))

    def require_versions(self, endpoint: StackConfig) -> None:
        """Raises SettingsError where an endpoint names a version that has no stack."""
        for version in endpoint.endpoint.versions:
            try:
                self.version_of(endpoint, version)
            except UnknownStackError:
                settings = endpoint.endpoint
                name = version_stack(settings.environment, settings.model, version)
                raise SettingsError(
                    f"{endpoint.shown}: lepton:endpoint.variants: given {version}: that version of "
                    f"{settings.model} has no stack in {settings.environment}; write {config_file(name)} beside it and "
                    f"run `lepton deploy {endpoint.team}/{name}` first"
                ) from None

    def stacks(self, environment: str) -> list[StackConfig]:
        """Every stack of an environment, the platform first, then versions, then endpoints.

        Raises:
            SettingsError: with all that is wrong in any of the files.
        """
        found: list[StackConfig] = []
        problems: list[str] = []
        checked: set[str] = set()
        for team, file in self._files():
            shown = self.show_path(file)
            try:
                kind, document = _kind_and_document(file, shown)
                # Another environment's mistakes are not this one's.
                if isinstance(document, dict) and document.get("environment", environment) != environment:
                    continue
                if team not in checked:
                    self._check_team(team)
                    checked.add(team)
                found.append(_stack_config(team, file, shown, kind, document))
            except SettingsError as error:
                problems.append(str(error))
        there = {stack.address for stack in found}
        for stack in found:
            # A version that was found needs no second look: of many, that would be most of the work.
            if stack.kind != "endpoint" or all(
                _version_address(stack, one) in there for one in stack.endpoint.versions
            ):
                continue
            try:
                self.require_versions(stack)
            except SettingsError as error:
                problems.append(str(error))
        if problems:
            raise SettingsError("\n".join(dict.fromkeys(problems)))
        if not any(stack.kind == "platform" for stack in found):
            self.platform(environment)
        order = list(_KINDS)
        return sorted(found, key=lambda stack: (order.index(stack.kind), stack.address))

    def endpoints(self) -> list[StackConfig]:
        """The endpoint stacks of every environment.

        Raises:
            SettingsError: with all that is wrong in any of their files.
        """
        found: list[StackConfig] = []
        problems: list[str] = []
        for team, file in self._files():
            try:
                if _kind_and_document(file, self.show_path(file))[0] == "endpoint":
                    found.append(self._load(team, file))
            except SettingsError as error:
                problems.append(str(error))
        if problems:
            raise SettingsError("\n".join(dict.fromkeys(problems)))
        return found

    def teams(self) -> list[str]:
        """The teams that have a Pulumi project."""
        folders = sorted((self.root / "stacks").iterdir())
        return [folder.name for folder in folders if (folder / "Pulumi.yaml").is_file()]

    @contextmanager
    def holding(self, stack: StackConfig) -> Iterator[None]:
        """Keeps other commands on this machine from changing the stack or its config meanwhile.

        Pulumi locks a stack too, but only once it has read the config.

        Raises:
            BusyError: when another command holds it.
        """
        with self._locked(
            f"{stack.team}.{stack.name}", f"{stack.address}: another lepton on this machine is changing it; try again"
        ):
            yield

    @contextmanager
    def driving(self, endpoint: StackConfig) -> Iterator[None]:
        """Makes this process the one driver of the endpoint's rollouts on this machine, for as long as they take.

        Raises:
            BusyError: when another process drives it.
        """
        busy = (
            f"{endpoint.address}: another process on this machine drives its rollout; look with `lepton rollout watch`"
        )
        with self._locked(f"{endpoint.team}.{endpoint.name}.rollout", busy):
            yield

    @contextmanager
    def _locked(self, name: str, busy: str) -> Iterator[None]:
        file = self.root / ".state" / "locks" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(busy) from None
            yield

    def show_path(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    @cached_property
    def environment(self) -> dict[str, str]:
        """What `pulumi` needs in its environment, unless the user's says otherwise."""
        state = self.root / ".state"
        own = {
            "PULUMI_SKIP_UPDATE_CHECK": "true",
            "PULUMI_AUTOMATION_API_SKIP_VERSION_CHECK": "true",
            "PATH": os.pathsep.join(self._path()),
        }
        if "PULUMI_BACKEND_URL" not in os.environ:
            # The local default keeps no secrets, so its passphrase is none.
            (state / "backend").mkdir(parents=True, exist_ok=True)
            own["PULUMI_BACKEND_URL"] = f"file://{state / 'backend'}"
            own["PULUMI_CONFIG_PASSPHRASE"] = os.environ.get("PULUMI_CONFIG_PASSPHRASE", "")
            own["PULUMI_HOME"] = os.environ.get("PULUMI_HOME", str(state / "pulumi"))
        return own

    def _path(self) -> Iterator[str]:
        first = [str(Path(sys.prefix) / "bin"), str(self.root / ".tools" / "bin")]
        rest = [entry for entry in os.environ.get("PATH", "").split(os.pathsep) if entry not in first]
        yield from [*first, *rest]

    def _check_team(self, team: str) -> None:
        """A team's name is its folder's and its Pulumi project's."""
        if team == PLATFORM_PROJECT:
            return
        folder = self.show_path(self.folder(team))
        parse_value(TeamName, team, folder)
        project = self.folder(team) / "Pulumi.yaml"
        name = _read(project, self.show_path(project)).get("name") if project.is_file() else None
        if name != team:
            raise SettingsError(
                f"{self.show_path(project)}: name: given {name!r}: a project is named as its folder; write {team!r}"
            )

    def _configs(self, team: str) -> Path:
        return self.root / "stacks" / ("platform" if team == PLATFORM_PROJECT else team)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for folder in sorted((self.root / "stacks").iterdir()):
            team = PLATFORM_PROJECT if folder.name == "platform" else folder.name
            yield from ((team, file) for file in sorted(folder.glob("Pulumi.*.yaml")))

    def _load(self, team: str, file: Path) -> StackConfig:
        shown = self.show_path(file)
        self._check_team(team)
        return _stack_config(team, file, shown, *_kind_and_document(file, shown))


def _stack_config(team: str, file: Path, shown: str, kind: Kind, document: Any) -> StackConfig:
    settings = parse_settings(_KINDS[kind], _without_secrets(document), file=shown, key=f"lepton:{kind}")
    if settings.stack_name != _stack_name(file):
        raise SettingsError(f"{shown}: these settings are of stack {settings.stack_name}: name the file so")
    return StackConfig(team, _stack_name(file), file, shown, kind, settings)


def _version_address(endpoint: StackConfig, version: str) -> str:
    settings = endpoint.endpoint
    return f"{endpoint.team}/{version_stack(settings.environment, settings.model, version)}"


def _kind_and_document(file: Path, shown: str) -> tuple[Kind, Any]:
    config = _read(file, shown).get("config") or {}
    kinds: list[Kind] = [kind for kind in _KINDS if f"lepton:{kind}" in config]
    if len(kinds) != 1:
        keys = ", ".join(f"lepton:{kind}" for kind in _KINDS)
        given = " and ".join(f"lepton:{kind}" for kind in kinds) or "none"
        raise SettingsError(f"{shown}: a stack has one of {keys}; given: {given}")
    return kinds[0], config[f"lepton:{kinds[0]}"]


@contextmanager
def waited_for(
    lock: Callable[[], AbstractContextManager[None]],
    clock: Clock,
    seconds: float = math.inf,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Enters a project's lock once whoever holds it lets go; `waiting` is called once, if that takes any time.

    `lock`: `holding` or `driving`; it is asked for anew each time.

    Raises:
        BusyError: when it is still held after so many seconds.
    """
    deadline = clock.monotonic() + seconds
    waits = False
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock())
                break
            except BusyError:
                if clock.monotonic() >= deadline:
                    raise
            if not waits:
                waiting()
            waits = True
            clock.sleep(_POLL_SECONDS)
        yield


def write_config(stack: StackConfig, values: Mapping[str, Any]) -> None:
    """Puts values into the stack's file by their config keys, leaving comments and all else of the file as they are.

    None takes a key out.
    """
    from ruamel.yaml import YAML  # noqa: PLC0415 - slow to import, and needed by changes alone

    from rollout.config_edits import merge, remove  # noqa: PLC0415

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    content = editor.load(stack.file.read_text())
    for key, value in values.items():
        if value is not None:
            merge(content["config"], key, value)
        elif key in content["config"]:
            remove(content["config"], key)
    text = StringIO()
    editor.dump(content, text)
    write_atomically(stack.file, text.getvalue())


# Much faster, where PyYAML has it.
_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Reads YAML as Pulumi does, and as `write_config` writes it: `on` and `18:00` are text, as in YAML 1.2."""


_NUMBERS_AND_WORDS = {  # https://yaml.org/spec/1.2.2, 10.3.2
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0|[1-9][0-9]*|0o?[0-7]+|0x[0-9a-fA-F]+)", "-+0123456789"),
    "float": (r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)", "-+.0123456789"),
}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] not in (*_NUMBERS_AND_WORDS, "timestamp")
    ]
    for first, found in _SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, (_pattern, _first) in _NUMBERS_AND_WORDS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})$"), list(_first))


def _read(file: Path, shown: str) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_text(), Loader=_Loader)  # noqa: S506
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{shown}: not YAML: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("config") or {}, dict):
        raise SettingsError(f"{shown}: a stack's config file is a mapping with a mapping 'config'")
    return content


def _without_secrets(value: Any) -> Any:
    """The document with a placeholder for what is encrypted: validation needs to know no secret."""
    if isinstance(value, dict):
        if value.keys() == {"secure"}:
            return "[secret]"
        return {key: _without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item) for item in value]
    return value


def _stack_name(file: Path) -> str:
    return file.name.removeprefix("Pulumi.").removesuffix(".yaml")
