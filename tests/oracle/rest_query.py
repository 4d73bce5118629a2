"""Plain renderings of syntax nodes, and the query-string parser without haste."""

from __future__ import annotations

from ichicore.rest import ast, grammar


def parse(
    raw: bytes, *, rpc: bool = False, mutation: bool = False, concatenate_order: bool = False
) -> ast.Query:
    return grammar.parse(raw, rpc=rpc, mutation=mutation, concatenate_order=concatenate_order)


def plain(node: object) -> object:
    """Nodes as tuples that compare by value."""
    if isinstance(node, list | tuple):
        return tuple(plain(part) for part in node)
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    if type(node).__module__ == "ichicore.rest.ast":
        names = [name for name in dir(node) if not name.startswith("_")]
        return (type(node).__name__, {name: plain(getattr(node, name)) for name in names})
    return node


def without_values(node: object) -> object:
    """As plain, with every parameter text taken out: what a shape stands for."""
    if isinstance(node, list | tuple):
        return tuple(without_values(part) for part in node)
    if isinstance(node, dict):
        return {key: without_values(value) for key, value in node.items()}
    if isinstance(node, ast.Query):
        kept = {
            name: without_values(getattr(node, name))
            for name in dir(node)
            if not name.startswith("_") and name not in ("values", "canonical", "limits", "params")
        }
        return {**kept, "arguments": [name for name, _ in node.params]}
    if isinstance(node, ast.Filter):
        value = node.value if node.slot < 0 else None
        return (
            plain(node.field), node.negated, node.op, node.quantifier, node.config, node.slot, value
        )  # fmt: skip
    if type(node).__module__ == "ichicore.rest.ast":
        names = [name for name in dir(node) if not name.startswith("_")]
        return (type(node).__name__, {name: without_values(getattr(node, name)) for name in names})
    return node
