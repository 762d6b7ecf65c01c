"""Who to be at a registry: from the environment, or from where `docker login` and `podman login` keep it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from model_packaging.errors import StoreUnreachable

USERNAME = "LEPTON_REGISTRY_USERNAME"
PASSWORD = "LEPTON_REGISTRY_PASSWORD"  # noqa: S105 - a variable's name
HOST = "LEPTON_REGISTRY_HOST"
"""Names the one registry that gets those two, where several are spoken to."""

Credentials = tuple[str, str]
"""A user name and a password, or an access token in its place."""


def find_credentials(host: str, environ: Mapping[str, str]) -> Credentials | None:
    """The credentials for the registry at `host` (with its port), if there are any.

    Raises:
        StoreUnreachable: there are some, and they can't be had.
    """
    username, password = environ.get(USERNAME), environ.get(PASSWORD)
    if bool(username) != bool(password):
        raise StoreUnreachable(f"{USERNAME} and {PASSWORD} belong together, and only one of them is set; set both")
    if username and password and environ.get(HOST, host) == host:
        return username, password
    for file in _files(environ):
        found = _in_file(file, host)
        if found is not None:
            return found
    return None


def how_to_log_in(host: str) -> str:
    return f"log in with `docker login {host}` or `podman login {host}`, or set {USERNAME} and {PASSWORD}"


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    """The files that hold logins, podman's named one first (containers-auth.json(5)), that exist."""
    home = Path(environ.get("HOME") or Path.home())
    candidates = [
        environ.get("REGISTRY_AUTH_FILE"),
        Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json",
        Path(environ["XDG_RUNTIME_DIR"], "containers", "auth.json") if environ.get("XDG_RUNTIME_DIR") else None,
    ]
    return (Path(file) for file in candidates if file and Path(file).is_file())


def _in_file(file: Path, host: str) -> Credentials | None:
    # Docker's own reader knows every form of the file, and asks the credential helpers that it names.
    from docker import auth  # noqa: PLC0415 - slow to import, and needed only where a registry asks who we are
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        found = auth.load_config(str(file)).resolve_authconfig(host)
    except (DockerException, ValueError) as error:
        raise StoreUnreachable(
            f"{file} can't be read for a login at {host}: {error}; mend it, or {how_to_log_in(host)}"
        ) from None
    # A helper's answer has other spellings than the file.
    members = {str(key).lower(): value for key, value in (found or {}).items()}
    if "identitytoken" in members:
        raise StoreUnreachable(
            f"{file} holds an identity token for {host}, which is of no use here; "
            f"give a user name and a password or an access token: {how_to_log_in(host)}"
        )
    username, password = members.get("username"), members.get("password")
    return (username, password) if username and password else None
