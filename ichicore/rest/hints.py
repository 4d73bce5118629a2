"""Errors of names that the catalog does not know, or knows too many of, with what may be meant.

Each function gives the ApiError to raise. Similar names are looked for only here, when a request
has failed; the indexes are kept with the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ichicore.errors import ApiError
from ichicore.rest.catalog import Catalog, Relationship, Routine
from ichicore.rest.fuzzy import FuzzySet

CLOSE = 0.75  # similarity that table and function names need before they are told
MOST_TABLES = 500  # schemas with as many tables get no index

CARDINALITIES = {
    "m2o": "many-to-one",
    "o2m": "one-to-many",
    "o2o": "one-to-one",
    "m2m": "many-to-many",
}
# Bodies that are passed whole, and the type of the one unnamed parameter that takes them.
WHOLE_BODY = {
    "text/plain": "text",
    "text/xml": "xml",
    "application/octet-stream": "bytea",
}


def _set(catalog: Catalog, kind: str, schema: str, names: Callable[[], Iterable[str]]) -> FuzzySet:
    key = f"{kind} {schema}"
    found = catalog.fuzzy.get(key)
    if not isinstance(found, FuzzySet):
        found = catalog.fuzzy[key] = FuzzySet(sorted(set(names())))
    return found


def no_table(catalog: Catalog, schema: str, name: str) -> ApiError:
    """404 PGRST205: no exposed table or view of that name."""
    hint = None
    names = [table for place, table in catalog.tables if place == schema]
    if len(names) < MOST_TABLES:
        similar = _set(catalog, "tables", schema, lambda: names).best(name, CLOSE)
        if similar is not None:
            hint = f"Perhaps you meant the table '{schema}.{similar}'"
    return ApiError(
        404,
        "PGRST205",
        f"Could not find the table '{schema}.{name}' in the schema cache",
        None,
        hint,
    )


def no_column(relation: str, column: str) -> ApiError:
    """400 PGRST204: a payload or columns= names a column that the relation does not have."""
    return ApiError(
        400, "PGRST204", f"Could not find the '{column}' column of '{relation}' in the schema cache"
    )


def no_relationship(
    catalog: Catalog,
    schema: str,
    origin: str,
    target: str,
    hint: str | None,
    found: Sequence[Relationship],
) -> ApiError:
    """400 PGRST200 when nothing relates the two, 300 PGRST201 when several relationships do."""
    if found:
        return _several(origin, target, found)
    using = "" if hint is None else f" using the hint '{hint}'"
    return ApiError(
        400,
        "PGRST200",
        f"Could not find a relationship between '{origin}' and '{target}' in the schema cache",
        f"Searched for a foreign key relationship between '{origin}' and '{target}'{using}"
        f" in the schema '{schema}', but no matches were found.",
        _related(catalog, schema, origin, target),
    )


def _related(catalog: Catalog, schema: str, origin: str, target: str) -> str | None:
    """The hint of PGRST200; None when both names are right, so that only the hint can be wrong."""
    relationships = catalog.relationships.get(((schema, origin), schema))
    if relationships is not None:
        children = FuzzySet(rel.foreign[1] for rel in relationships)
        for score, name in children.matches(target):
            if score < 1:
                return f"Perhaps you meant '{name}' instead of '{target}'."
        return None
    origins = _set(
        catalog,
        "origins",
        schema,
        lambda: (table for (_, table), far in catalog.relationships if far == schema),
    )
    name = origins.best(origin) or ""
    return f"Perhaps you meant '{name}' instead of '{origin}'." if name else None


def _columns(names: Iterable[str]) -> str:
    return f"({', '.join(names)})"


def _told(rel: Relationship) -> dict[str, str]:
    """One relationship in the details of PGRST201."""
    if rel.kind == "computed":
        return {}
    table, foreign = rel.table[1], rel.foreign[1]
    if rel.junction is not None:
        junction = rel.junction
        source = _columns(column for _, column in junction.source_columns)
        target = _columns(column for _, column in junction.target_columns)
        text = (
            f"{junction.table[1]} using {junction.constraint1}{source}"
            f" and {junction.constraint2}{target}"
        )
    else:
        near = _columns(column for column, _ in rel.columns)
        far = _columns(column for _, column in rel.columns)
        text = f"{rel.constraint} using {table}{near} and {foreign}{far}"
    return {
        "cardinality": CARDINALITIES[rel.kind],
        "embedding": f"{table} with {foreign}",
        "relationship": text,
    }


def _several(origin: str, target: str, found: Sequence[Relationship]) -> ApiError:
    choices = []
    for rel in found:
        name = rel.junction.table[1] if rel.junction is not None else rel.constraint
        choices.append("" if rel.kind == "computed" else f"'{rel.foreign[1]}!{name}'")
    return ApiError(
        300,
        "PGRST201",
        "Could not embed because more than one relationship was found for"
        f" '{origin}' and '{target}'",
        [_told(rel) for rel in found],
        f"Try changing '{target}' to one of the following: {', '.join(choices)}."
        " Find the desired relationship in the 'details' key.",
    )


def no_function(
    catalog: Catalog,
    schema: str,
    name: str,
    names: Sequence[str],
    *,
    content_type: str,
    is_post: bool,
) -> ApiError:
    """404 PGRST202: no function of that name takes these arguments (in alphabetical order)."""
    function = f"{schema}.{name}"
    body = WHOLE_BODY.get(content_type) if is_post else None
    given = ", ".join(names)
    if body is not None:
        message, searched = "", f" with a single unnamed {body} parameter"
    elif not names:
        message = searched = " without parameters"
    else:
        message = f"({given})"
        searched = f" with parameter{'s' if len(names) > 1 else ''} {given}"
    if is_post and content_type == "application/json":
        searched += " or with a single unnamed json/jsonb parameter"
    return ApiError(
        404,
        "PGRST202",
        f"Could not find the function {function}{message} in the schema cache",
        f"Searched for the function {function}{searched},"
        " but no matches were found in the schema cache.",
        None if body is not None else _callable(catalog, schema, name, names),
    )


def _signature(names: Iterable[str]) -> str:
    return f"({', '.join(sorted(names))})"


def _callable(catalog: Catalog, schema: str, name: str, names: Sequence[str]) -> str | None:
    overloads = catalog.functions(schema, name)
    if overloads:
        signatures = FuzzySet(_signature(p.name for p in routine.params) for routine in overloads)
        similar = signatures.best(_signature(names))
        known = None if similar is None else name + similar
    else:
        functions = _set(
            catalog,
            "functions",
            schema,
            lambda: (function for place, function in catalog.routines if place == schema),
        )
        known = functions.best(name, CLOSE)
    return None if known is None else f"Perhaps you meant to call the function {schema}.{known}"


def ambiguous_function(candidates: Iterable[Routine]) -> ApiError:
    """300 PGRST203: several overloads take the same argument names."""
    told = []
    for routine in candidates:
        params = ", ".join(f"{param.name} => {param.type}" for param in routine.params)
        told.append(f"{routine.schema}.{routine.name}({params})")
    return ApiError(
        300,
        "PGRST203",
        f"Could not choose the best candidate function between: {', '.join(told)}",
        None,
        "Try renaming the parameters or the function itself in the database so function"
        " overloading can be resolved",
    )
