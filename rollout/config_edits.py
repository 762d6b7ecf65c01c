"""Edits a config file as `ruamel.yaml` has read it, so that comments and blank lines stay beside what they are about.

What stands between two keys or items, `ruamel.yaml` keeps with the last scalar before it; here that is called its tail.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark
from ruamel.yaml.tokens import CommentToken


def merge(parent: Any, key: Any, value: Any) -> None:
    """Sets parent[key], keeping the nodes of what stays. Items of a list that have a `version` are told apart by it."""
    if isinstance(parent, CommentedMap) and key not in parent:
        _add(parent, key, value)
        return
    present = parent[key]
    if isinstance(present, CommentedMap) and isinstance(value, dict) and present and value:
        # First what is new: without an entry there is nowhere to keep a comment.
        for name, item in value.items():
            merge(present, name, item)
        for name in [name for name in present if name not in value]:
            remove(present, name)
    elif isinstance(present, CommentedSeq) and isinstance(value, list) and present and value:
        _merge_items(present, value)
    elif present != value:
        tail = _take_tail(parent, key)
        parent[key] = _node(value)
        _give_tail(parent, key, tail)


def remove(parent: Any, key: Any) -> None:
    """Takes an entry out, with its own comment; one that stands after it is about the next, and stays."""
    before = _before(parent, key)
    tail = _take_tail(parent, key)
    del parent[key]
    if before is not None:
        _give_tail(parent, before, tail)
    else:
        _give_head(parent, tail)


def _merge_items(present: CommentedSeq, value: list[Any]) -> None:
    wanted = [_version(item) for item in value]
    for index in reversed(range(len(present))):
        if _version(present[index]) not in wanted and len(present) > 1:
            remove(present, index)
    for index, item in enumerate(value):
        if index < len(present) and _version(present[index]) == wanted[index]:
            merge(present, index, item)
        else:
            _add(present, index, item)
    for index in reversed(range(len(value), len(present))):
        remove(present, index)


def _add(parent: Any, key: Any, value: Any) -> None:
    """A new entry: in a mapping the last, in a list the one at that index."""
    before = _before(parent, key)
    tail = "" if before is None else _take_tail(parent, before)
    if isinstance(parent, CommentedMap):
        parent[key] = _node(value)
    else:
        parent.insert(key, _node(value))
    _give_tail(parent, key, tail)


def _before(parent: Any, key: Any) -> Any:
    """The key of the entry before that one, which may be still to come; None: there is none."""
    if isinstance(parent, CommentedMap):
        names = list(parent)
        place = names.index(key) if key in parent else len(names)
        return names[place - 1] if place else None
    return key - 1 if key else None


def _version(item: Any) -> Any:
    return item.get("version") if isinstance(item, dict) else None


def _node(value: Any) -> Any:
    """The value as `ruamel.yaml` has one that it has read: only such nodes have comments."""
    if isinstance(value, dict):
        return CommentedMap((name, _node(item)) for name, item in value.items())
    if isinstance(value, list):
        return CommentedSeq(_node(item) for item in value)
    return value


def _last_scalar(parent: Any, key: Any) -> tuple[Any, Any, int]:
    """Where an entry ends: its last scalar's parent and key, and at which place the comment is among that one's."""
    node = parent[key]
    if isinstance(node, CommentedMap) and node and not node.fa.flow_style():
        return _last_scalar(node, list(node)[-1])
    if isinstance(node, CommentedSeq) and node and not node.fa.flow_style():
        return _last_scalar(node, len(node) - 1)
    return parent, key, 2 if isinstance(parent, CommentedMap) else 0


def _take_tail(parent: Any, key: Any) -> str:
    """Cuts off what follows an entry's last line."""
    owner, last, place = _last_scalar(parent, key)
    comments = owner.ca.items.get(last)
    comment = comments[place] if comments else None
    if comment is None:
        return _take_end(parent[key])
    on_line, _, tail = comment.value.partition("\n")
    if on_line:
        comment.value = on_line + "\n"
    else:
        comments[place] = None
    return tail


def _take_end(node: Any) -> str:
    """Cuts off what follows a list or mapping whose last entry is in brackets: that is kept with the whole."""
    if not isinstance(node, CommentedMap | CommentedSeq):
        return ""
    lines = [" " * line.start_mark.column + line.value for line in node.ca.end or ()]
    node.ca.end = []
    inner = _take_end(node[list(node)[-1] if isinstance(node, CommentedMap) else -1]) if node else ""
    return inner + "".join(lines)


def _give_tail(parent: Any, key: Any, tail: str) -> None:
    """Puts it after what follows an entry's last line already."""
    if not tail:
        return
    owner, last, place = _last_scalar(parent, key)
    comments = owner.ca.items.setdefault(last, [None, None, None, None])
    if comments[place] is None:
        comments[place] = _comment("\n" + tail)
    else:
        comments[place].value += tail


def _give_head(items: CommentedMap | CommentedSeq, tail: str) -> None:
    """Puts it before the first entry, after what stands there already."""
    if not tail:
        return
    if items.ca.comment is None:
        items.ca.comment = [None, []]
    on_line, lines = items.ca.comment
    if on_line is not None:
        on_line.value += tail
    else:
        lines += [_comment(line.lstrip(" "), len(line) - len(line.lstrip(" "))) for line in tail.splitlines(True)]


def _comment(text: str, column: int = 0) -> CommentToken:
    return CommentToken(text, CommentMark(column), None)
