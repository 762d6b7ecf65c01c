"""Makes Pulumi resources of things on this machine, by dynamic providers.

A `Driver` says how one kind of thing is made, found, changed and removed. Drivers are importable, so that a stack's
state holds their name and none of their code. Why not a provider plugin: docs/decisions/dynamic-providers.md.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import psutil
import pulumi
from pulumi import dynamic

from infra.names import DRIFT
from infra.single_node.machine.node import NodeError
from model_packaging.errors import PackagingError

Properties = dict[str, Any]

_PROVIDER = "__provider"
IDENTITY = "identity"
"""Input that holds the resource's id, so that a resource whose making was interrupted can be found again."""


class Driver(ABC):
    """How one kind of thing on the machine is made, found, changed and removed.

    `create` and `update` must be fine with finding the thing there already, in any half-made state: an update that was
    killed is simply run again. An input that is None does not arrive: read optional ones with `props.get`.
    """

    outputs: tuple[str, ...] = ()
    """Names of what `create` returns beside the inputs."""
    notes: tuple[str, ...] = ()
    """Names of inputs that say something about the thing and change nothing of it, such as what `check` found out for
    policies: to differ in them alone is no difference."""

    @abstractmethod
    def identity(self, props: Properties) -> str:
        """A name for the thing that follows from its inputs, and is no other's."""

    def check(self, olds: Properties, props: Properties) -> None:  # noqa: B027 - most refuse nothing
        """Refuses inputs that can't work, before anything is touched; may complete `props`."""

    @abstractmethod
    def create(self, props: Properties) -> Properties:
        """Makes it, and returns its outputs beside the inputs."""

    def update(self, olds: Properties, props: Properties) -> Properties:
        return self.create(props)

    @abstractmethod
    def read(self, props: Properties) -> Properties | None:
        """What is really there, in the form of the inputs and outputs; None where there is nothing.

        What has no form among them is told by `with_drift`.
        """

    @abstractmethod
    def delete(self, props: Properties) -> None:
        """Removes it; fine if it isn't there."""


class _Provider(dynamic.ResourceProvider):
    """Speaks Pulumi's protocol for a driver."""

    serialize_as_secret_always = False

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver

    def configure(self, req: dynamic.ConfigureRequest) -> None:
        _end_with_engine()

    def check(self, _olds: Properties, news: Properties) -> dynamic.CheckResult:
        props = _plain(news)
        if _has_unknown(props):
            return dynamic.CheckResult(news, [])
        try:
            self.driver.check(_plain(_olds), props)
        except (NodeError, PackagingError) as error:
            return dynamic.CheckResult(news, [dynamic.CheckFailure("", str(error))])
        return dynamic.CheckResult(props | {IDENTITY: self.driver.identity(props)}, [])

    def diff(self, _id: str, _olds: Properties, _news: Properties) -> dynamic.DiffResult:
        olds, news = _plain(_olds), _plain(_news)
        inputs = (olds.keys() | news.keys()) - {*self.driver.outputs, *self.driver.notes}
        changed = [key for key in sorted(inputs) if olds.get(key) != news.get(key)]
        # Another identity is another thing: made first, then the old one is removed.
        replaces = [IDENTITY] if IDENTITY in changed else []
        return dynamic.DiffResult(changes=bool(changed), replaces=replaces)

    def create(self, props: Properties) -> dynamic.CreateResult:
        props = _plain(props)
        return dynamic.CreateResult(props[IDENTITY], self.driver.create(props))

    def update(self, _id: str, _olds: Properties, _news: Properties) -> dynamic.UpdateResult:
        return dynamic.UpdateResult(self.driver.update(_plain(_olds), _plain(_news)))

    def read(self, id_: str, props: Properties) -> dynamic.ReadResult:
        found = self.driver.read({key: value for key, value in _plain(props).items() if key != DRIFT})
        return dynamic.ReadResult("" if found is None else id_, found or {})

    def delete(self, _id: str, _props: Properties) -> None:
        self.driver.delete(_plain(_props))


class MachineResource(dynamic.Resource):
    """A resource whose subclass names its driver."""

    driver: ClassVar[Driver]

    def __init__(self, name: str, props: Properties, opts: pulumi.ResourceOptions) -> None:
        super().__init__(_Provider(self.driver), name, {**props, **dict.fromkeys(self.driver.outputs)}, opts)


def with_drift(props: Properties, problems: list[str]) -> Properties:
    """What `Driver.read` returns of a thing that is there: with problems, it differs from any inputs."""
    return props | ({DRIFT: problems} if problems else {})


def _plain(props: Properties) -> Properties:
    """The properties alone, with whole numbers as integers: on their way here every number became a float."""
    return {key: _with_integers(value) for key, value in props.items() if key != _PROVIDER}


def _with_integers(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _with_integers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return value


def _has_unknown(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_unknown(item) for item in value.values())
    if isinstance(value, list):
        return any(_has_unknown(item) for item in value)
    return value == pulumi.runtime.rpc.UNKNOWN


def _end_with_engine() -> None:
    """Ends this process when the engine that started it is gone.

    An engine that is killed can't end its providers, and one that went on alone would act on the machine beside the
    update that comes next.
    """
    parents = psutil.Process().parents()
    # A shell stands between the two.
    engine = next((process for process in parents if process.name() == "pulumi"), parents[0])

    def watch() -> None:
        while engine.is_running() and engine.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
