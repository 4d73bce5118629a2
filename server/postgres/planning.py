"""One request's meaning -> a Plan: SQL statements, where their parameters come from, and what to
make of their results. Plans hold no values of a request, so equal shapes share one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal
from urllib.parse import quote as percent_encode

from ichicore.errors import ApiError
from ichicore.http.accept import MediaType
from ichicore.http.prefer import Preferences
from ichicore.pg.executor import JSON, NONE, VALUES, Statement
from ichicore.rest import hints
from ichicore.rest.ast import Filter, Logic, Query
from ichicore.rest.call import CALLED, SCALAR, Call, choose, returns_scalar
from ichicore.rest.catalog import Catalog, Routine, Table
from ichicore.rest.mutate import CHANGED, Mutation, key_columns, payload_fields
from ichicore.rest.select import count_sql, estimate_sql, head_sql, read_sql
from ichicore.rest.sql import Layout
from ichicore.rest.tree import Tree, read_tree
from ichicore.rest.wrap import body_of, count_rows, explain, with_query, wrap
from server.postgres import effects, negotiate
from server.postgres.negotiate import Chosen
from server.postgres.plan import (
    AFFECTED,
    BODY,
    COUNT,
    EXPLAIN,
    FIRST,
    KEYS,
    OBJECT,
    ROWS,
    VALUE,
)
from server.postgres.plan import Payload as Payload
from server.postgres.plan import Plan as Plan
from server.postgres.settings import RestSettings

PATH_SAFE = "-._~!$&'()*+,;=:@"  # what a segment of a path may hold as it is


class Planner:
    """Plans requests against one catalog and one set of settings."""

    def __init__(self, catalog: Catalog, settings: RestSettings) -> None:
        self.catalog = catalog
        self.settings = settings

    def _table(self, schema: str, name: str) -> Table:
        table = self.catalog.table(schema, name)
        if table is None:
            raise hints.no_table(self.catalog, schema, name)
        return table

    def _media(self, accepted: Iterable[MediaType], target: tuple[str, str], tree: Tree) -> Chosen:
        return negotiate.choose(
            accepted,
            self.catalog,
            target,
            whole=tree.root.plain_star(),
            plan_enabled=self.settings.plan_enabled,
        )

    def _rolls_back(self, preferences: Preferences) -> bool:
        if preferences.tx is not None:
            return preferences.tx == "rollback"
        return self.settings.tx_end.startswith("rollback")

    def _counts(self, plan: Plan, tree: Tree, preferences: Preferences, ranged: bool) -> None:
        """Statements for the total of a read, where the rows themselves do not tell it."""
        wanted = preferences.count
        if wanted is None:
            return
        plan.counted = wanted in ("exact", "estimated")
        exact_from_rows = not ranged and not tree.root.grouped() and self.settings.max_rows is None
        if plan.counted and not exact_from_rows:
            cap = None
            if wanted == "estimated" and self.settings.max_rows is not None:
                cap = self.settings.max_rows + 1
            sql, layout = count_sql(tree, cap)
            plan.count = (Statement(sql, result=VALUES), layout)
        if wanted in ("planned", "estimated"):
            sql, layout = estimate_sql(tree)
            plan.estimate = (Statement(sql, result=VALUES), layout)

    def read(
        self,
        schema: str,
        name: str,
        query: Query,
        accepted: Iterable[MediaType],
        preferences: Preferences,
        *,
        head: bool,
        ranged: bool,
    ) -> Plan:
        """GET or HEAD of a table. ranged: the request has a limit, an offset or a Range."""
        table = self._table(schema, name)
        tree = read_tree(
            query,
            self.catalog,
            schema,
            name,
            aggregates=self.settings.aggregates_enabled,
            max_rows=self.settings.max_rows,
            ranged=ranged,
        )
        media = self._media(accepted, (schema, name), tree)
        _check_strict(preferences)
        tree.jsonb = tree.jsonb or media.in_postgres
        sql, layout = read_sql(tree)
        if media.explain is not None:
            body = body_of(media.kind, media.handler, media.single, None, media.strip)
            text = explain(
                *_explainable(None, sql, media), "''" if head else body, media.explain, False
            )
            statement, result = Statement(text, result=VALUES), EXPLAIN
        elif head:
            sql, layout = head_sql(tree)
            statement, result = Statement(sql, result=VALUES), COUNT
        elif media.kind == "json":
            statement = Statement(sql, result=JSON, strip_nulls=media.strip)
            result = OBJECT if media.single else ROWS
        else:
            body = body_of(media.kind, media.handler, False, None, False)
            statement, result = Statement(wrap(None, sql, body, "null", False), result=VALUES), BODY
        plan = Plan("read", schema, name, statement, layout, result, media, preferences)
        plan.read_only = True
        plan.path = "/" + percent_encode(name, safe=PATH_SAFE)
        plan.head = head
        plan.ranged = ranged or self.settings.max_rows is not None
        plan.limit_slot, plan.offset_slot = tree.root.limit_slot, tree.root.offset_slot
        plan.checks = ("singular",) if media.single and media.explain is None else ()
        plan.applied = applied(preferences)
        if media.explain is None:
            self._counts(plan, tree, preferences, ranged)
        plan.needs_gucs = self.settings.pre_request is not None or effects.reading(
            self.catalog, table, tree
        )
        plan.quick = ranged or bool(query.filters)
        return plan

    def mutate(
        self,
        schema: str,
        name: str,
        action: Literal["insert", "update", "put", "delete"],
        query: Query,
        payload: Payload,
        accepted: Iterable[MediaType],
        preferences: Preferences,
    ) -> Plan:
        """POST, PATCH, PUT or DELETE on a table."""
        table = self._table(schema, name)
        tree = read_tree(
            query,
            self.catalog,
            schema,
            name,
            filter_root=False,
            ranges=False,
            aggregates=self.settings.aggregates_enabled,
            source=(CHANGED, name),
        )
        mutation = self._mutation(table, action, query, payload, preferences)
        _check_strict(preferences)
        media = self._media(accepted, (schema, name), tree)
        full = preferences.representation == "representation"
        tree.jsonb = tree.jsonb or media.in_postgres
        prefix: str | None = None
        keys: tuple[str, ...] = ()
        if media.explain is not None:
            if full:
                prefix, sql, layout = mutation.rows(tree)
                body = body_of(media.kind, media.handler, media.single, None, media.strip)
            else:
                sql, layout = mutation.returning_one()
                body = "''"
            text = explain(
                *_explainable(prefix, sql, media, changes=True),
                body,
                media.explain,
                False,
                True,
                mutation.counted,
            )
            statement, result = Statement(text, result=VALUES), EXPLAIN
        elif full and media.kind == "json":
            prefix, sql, layout = mutation.rows(tree)
            text = with_query(prefix, sql)
            statement = Statement(text, result=JSON, strip_nulls=media.strip)
            result = OBJECT if media.single else ROWS
        elif full:
            prefix, sql, layout = mutation.rows(tree)
            body = body_of(media.kind, media.handler, False, None, False)
            statement = Statement(wrap(prefix, sql, body, "null", False), result=VALUES)
            result = BODY
        elif (
            preferences.representation == "headers-only"
            and action == "insert"
            and table.primary_key
        ):
            sql, layout = mutation.keys()
            statement, result, keys = Statement(sql, result=VALUES), KEYS, key_columns(table)
        else:
            sql, layout = mutation.silent()
            statement, result = Statement(sql, result=NONE), AFFECTED
        plan = Plan(action, schema, name, statement, layout, result, media, preferences)
        plan.keys = keys
        plan.path = "/" + percent_encode(name, safe=PATH_SAFE)
        plan.inserted = mutation.counted
        plan.counted = preferences.count in ("exact", "estimated")
        plan.needs_gucs = (
            self.settings.pre_request is not None
            or mutation.counted
            or effects.writing(self.catalog, table, tree, mutation, full=full)
        )
        plan.rollback = self._rolls_back(preferences)
        checks = ["put"] if action == "put" else []
        if media.single and action != "put":
            checks.append("singular")
        if (
            action in ("update", "delete")
            and preferences.handling == "strict"
            and preferences.max_affected is not None
        ):
            checks.append("max-affected")
        plan.checks = tuple(checks) if media.explain is None else ()
        # No trigger and no rule can keep it from being one row.
        plan.settled = (
            action == "insert"
            and payload.is_object
            and preferences.resolution is None
            and table.kind in effects.TABLES
            and not table.has_triggers
        )
        resolution = preferences.resolution if action == "insert" else None
        if not table.primary_key and query.on_conflict is None:
            resolution = None
        plan.applied = applied(
            preferences,
            resolution=resolution,
            representation=preferences.representation,
            missing=preferences.missing if action in ("insert", "update") else None,
            max_affected=preferences.max_affected if action in ("update", "delete") else None,
        )
        plan.quick = action == "insert" or bool(query.filters)
        return plan

    def _mutation(
        self, table: Table, action: str, query: Query, payload: Payload, preferences: Preferences
    ) -> Mutation:
        root: list[Filter | Logic] = [condition for path, condition in query.filters if not path]
        root.extend(condition for path, condition in query.logic if not path)
        if action == "delete":
            return Mutation(self.catalog, table, "delete", conditions=root)
        if action == "put":
            self._check_put(table, query)
        fields = payload_fields(self.catalog, table, payload.names)
        if action == "update":
            return Mutation(
                self.catalog,
                table,
                "update",
                fields=fields,
                conditions=root,
                is_object=payload.is_object,
                defaults=preferences.missing == "default",
            )
        if action == "put":
            return Mutation(
                self.catalog,
                table,
                "insert",
                fields=fields,
                conditions=root,
                is_object=payload.is_object,
                conflict=table.primary_key,
                merge=True,
                counted=True,
            )
        conflict: Iterable[str] | None = None
        merge = preferences.resolution == "merge-duplicates"
        if preferences.resolution is not None:
            conflict = table.primary_key if query.on_conflict is None else query.on_conflict
        return Mutation(
            self.catalog,
            table,
            "insert",
            fields=fields,
            is_object=payload.is_object,
            defaults=preferences.missing == "default",
            conflict=conflict,
            merge=merge,
            counted=merge,
        )

    def _check_put(self, table: Table, query: Query) -> None:
        equalities = all(
            getattr(condition, "op", None) == "eq"
            and not condition.negated
            and condition.quantifier is None
            for path, condition in query.filters
            if not path
        )
        keys = set(table.primary_key)
        if query.logic or not keys or not equalities or set(query.filter_keys) != keys:
            raise ApiError(
                405,
                "PGRST105",
                "Filters must include all and only primary key columns with 'eq' operators",
            )

    def routine(
        self, schema: str, name: str, names: set[str], *, is_post: bool, content_type: str
    ) -> Routine:
        """The function that a request calls. Raises ApiError PGRST202 or PGRST203."""
        return choose(self.catalog, schema, name, names, is_post=is_post, content_type=content_type)

    def call(
        self,
        schema: str,
        name: str,
        routine: Routine,
        query: Query,
        payload: Payload,
        accepted: Iterable[MediaType],
        preferences: Preferences,
        *,
        is_post: bool,
        head: bool,
        ranged: bool,
    ) -> Plan:
        """GET, HEAD or POST of a function."""
        target = routine.return_type[1] if routine.returns_composite else routine.name
        tree = read_tree(
            query,
            self.catalog,
            routine.schema,
            target,
            aggregates=self.settings.aggregates_enabled,
            max_rows=self.settings.max_rows,
            ranged=ranged,
            source=(CALLED, target),
        )
        call = Call(
            self.catalog,
            routine,
            names=set(payload.names),
            arguments=None if payload.arguments is None else list(payload.arguments),
            is_object=payload.is_object,
        )
        media = self._media(accepted, (routine.schema, target), tree)
        _check_strict(preferences)
        tree.jsonb = tree.jsonb or media.in_postgres
        single = not routine.returns_set
        strict_limit = preferences.handling == "strict" and preferences.max_affected is not None
        if strict_limit and single:
            raise ApiError(
                400,
                "PGRST128",
                "Function must return SETOF or TABLE when max-affected preference is used with "
                "handling=strict",
            )
        ranged = ranged or self.settings.max_rows is not None
        counted = preferences.count in ("exact", "estimated")
        total = counted and ranged
        statement, layout, result = self._call_statement(
            call, tree, media, head=head, total=total, ranged=ranged
        )
        plan = Plan("call", schema, name, statement, layout, result, media, preferences)
        plan.void = routine.returns_void
        plan.one_row = single
        plan.head = head
        plan.counted = counted
        plan.ranged = ranged
        plan.limit_slot, plan.offset_slot = tree.root.limit_slot, tree.root.offset_slot
        plan.read_only = not is_post or routine.volatility != "volatile" or not self.settings.writes
        plan.needs_gucs = True
        plan.settings = routine.settings
        plan.isolation = routine.isolation
        plan.rollback = self._rolls_back(preferences) and not plan.read_only
        checks = ["singular"] if media.single else []
        if strict_limit:
            checks.append("max-affected")
        plan.checks = tuple(checks) if media.explain is None else ()
        plan.applied = applied(preferences, max_affected=preferences.max_affected)
        plan.quick = False
        plan.cacheable = not any(p.variadic for p in routine.params) or payload.arguments is None
        return plan

    def _call_statement(
        self, call: Call, tree: Tree, media: Chosen, *, head: bool, total: bool, ranged: bool
    ) -> tuple[Statement, Layout, str]:
        routine = call.routine
        scalar = returns_scalar(routine)
        single = not routine.returns_set
        whole = (
            tree.root.plain_star()
            and not tree.root.filters
            and not tree.root.order_terms
            and not ranged
        )
        if routine.returns_void and media.explain is None:
            sql, layout = call.silent()
            return Statement(sql, result=VALUES), layout, AFFECTED
        if (
            whole
            and scalar
            and single
            and media.kind == "json"
            and not media.strip
            and media.explain is None
            and not head
        ):
            sql, layout = call.value()
            return Statement(sql, result=VALUES), layout, VALUE
        prefix: str | None
        totals = "null"
        if whole and not total:
            prefix, (sql, layout) = None, call.plain()
        else:
            prefix, sql, totals, layout = call.rows(tree, counted=total)
        if media.explain is None and not total:
            if head:
                return Statement(count_rows(prefix, sql), result=VALUES), layout, COUNT
            if media.kind == "json" and not scalar:
                text = with_query(prefix, sql)
                statement = Statement(text, result=JSON, strip_nulls=media.strip)
                if media.single:
                    return statement, layout, OBJECT
                return statement, layout, FIRST if single else ROWS
        one_row = (
            media.kind == "custom"
            and single
            and media.handler is not None
            and media.handler.kind == "function"
        )
        body = (
            "''"
            if head
            else body_of(
                media.kind,
                media.handler,
                media.single or single,
                SCALAR if scalar else None,
                media.strip,
            )
        )
        if media.explain is not None:
            explained = explain(*_explainable(prefix, sql, media), body, media.explain, one_row)
            return Statement(explained, result=VALUES), layout, EXPLAIN
        text = wrap(prefix, sql, body, totals, one_row)
        return Statement(text, result=VALUES), layout, BODY


def _check_strict(preferences: Preferences) -> None:
    if preferences.handling == "strict" and preferences.invalid:
        raise ApiError(
            400,
            "PGRST122",
            "Invalid preferences given with handling=strict",
            details="Invalid preferences: " + ", ".join(preferences.invalid),
        )


def _explainable(
    prefix: str | None, sql: str, media: Chosen, *, changes: bool = False
) -> tuple[str | None, str]:
    """WITH queries and rows of a statement to be explained. CSV reads its rows twice, and what
    changes data must be a WITH query."""
    if media.kind != "csv" and not (changes and prefix is None):
        return prefix, sql
    rows = f"ichi_rows AS ({sql})"
    return (rows if prefix is None else f"{prefix}, {rows}"), "SELECT * FROM ichi_rows"


def applied(
    preferences: Preferences,
    *,
    resolution: str | None = None,
    representation: str | None = None,
    missing: str | None = None,
    max_affected: int | None = None,
) -> str | None:
    """The Preference-Applied text: what was asked for and honoured."""
    parts = []
    if resolution is not None:
        parts.append(f"resolution={resolution}")
    if missing is not None:
        parts.append(f"missing={missing}")
    if representation is not None:
        parts.append(f"return={representation}")
    if preferences.count is not None:
        parts.append(f"count={preferences.count}")
    if preferences.tx is not None:
        parts.append(f"tx={preferences.tx}")
    if preferences.handling is not None:
        parts.append(f"handling={preferences.handling}")
    if preferences.timezone is not None:
        parts.append(f"timezone={preferences.timezone}")
    if preferences.handling == "strict" and max_affected is not None:
        parts.append(f"max-affected={max_affected}")
    return ", ".join(parts) or None


def without_tx(preferences: Preferences) -> Preferences:
    """The same preferences where clients may not choose how the transaction ends."""
    return replace(preferences, tx=None)
