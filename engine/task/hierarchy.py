"""Label hierarchies: labels are paths of nodes, such as 体育##足球, joined by the separator of the task.

A node is identified by its path from the top, so equal names with different parents are different nodes.
"""

from collections.abc import Iterable


def nodes_on(path: str, separator: str) -> list[str]:
    """Returns the nodes of a path, from the top: a##b##c -> [a, a##b, a##b##c]; [path] without a separator."""
    parts = path.split(separator) if separator else [path]
    return [separator.join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def with_ancestors(labels: str | Iterable[str], separator: str) -> set[str]:
    """Returns the nodes on the paths of a text's label or labels."""
    paths = [labels] if isinstance(labels, str) else labels
    return {node for path in paths for node in nodes_on(path, separator)}


def most_specific(labels: Iterable[str], separator: str) -> set[str]:
    """Returns the labels that are not an ancestor of another one."""
    labels = set(labels)
    return labels - {node for path in labels for node in nodes_on(path, separator)[:-1]}


def depth_of(node: str, separator: str) -> int:
    return node.count(separator) + 1


def problem_of(path: str, separator: str) -> str | None:
    """Returns a description of what is wrong with a path, or None."""
    parts = path.split(separator)
    if "" in map(str.strip, parts) or path.startswith(separator.strip()) or path.endswith(separator.strip()):
        return "has an empty node"
    if any(part != part.strip() for part in parts):
        return f"has spaces around {separator!r}; if all labels have them, use --label_hierarchy ' {separator} '"
    return None
