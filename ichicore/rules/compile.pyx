"""Match expressions from JSON, with the path of every mistake."""

cimport cython

from ichicore.rules.equalities cimport cover, equalities
from ichicore.rules.literals cimport MOST_DEPTH, MOST_LIST, Literals, extended
from ichicore.rules.match cimport Match
from ichicore.rules.nodes cimport (
    All, AllOf, Constant, Element, Equal, Exists, Field, In, Node, Not, Ordered, Path, Regular,
    ROOT_SELF, Size, Some, Test,
)
from ichicore.rules.operands cimport (
    Either, EitherOfAll, Slot, Variable, either, either_of_all,
)
from ichicore.rules.values cimport MISSING

from ichicore.rules.errors import RuleError
from ichicore.rules.patterns import PatternError, compile_pattern


@cython.final
cdef class _Compiler(Literals):
    """Compiles one expression."""

    # Each of these gives (node, template).

    cdef tuple expression(self, object source, str where, int depth):
        cdef Constant constant
        cdef list nodes
        if source is True or source is False:
            constant = Constant()
            constant.value = source
            return constant, {} if source else {"$nor": [{}]}
        if type(source) is not dict:
            self.wrong(where, "an object, true or false is expected")
            return None, None
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return None, None
        nodes = []
        template = {}
        for key, value in (<dict> source).items():
            inner = f"{where}.{key}"
            if key[:1] == "$":
                node, part = self.logical(key, value, inner, depth)
            else:
                node, part = self.field(key, value, inner, depth)
            if node is None:
                continue
            nodes.append(node)
            if key == "$not":  # MongoDB knows it only below a field
                template["$nor"] = [*template.get("$nor", ()), part]
            elif key == "$nor":
                template["$nor"] = [*template.get("$nor", ()), *part]
            else:
                template[key] = part
        return _all(nodes), template

    cdef tuple logical(self, str key, object value, str where, int depth):
        cdef Some some
        cdef Not negation
        if key not in ("$and", "$or", "$nor", "$not"):
            self.wrong(where, "unknown operator")
            return None, None
        if key == "$not":
            node, part = self.expression(value, where, depth + 1)
            if node is None:
                return None, None
            negation = Not()
            negation.node = node
            return negation, part
        if type(value) is not list or not value:
            self.wrong(where, "a list of at least one expression is expected")
            return None, None
        if len(value) > MOST_LIST:
            self.wrong(where, f"more than {MOST_LIST} expressions")
            return None, None
        nodes = []
        parts = []
        for number, member in enumerate(value):
            node, part = self.expression(member, f"{where}[{number}]", depth + 1)
            if node is not None:
                nodes.append(node)
                parts.append(part)
        if key == "$and":
            return _all(nodes), parts
        some = Some()
        some.nodes = tuple(nodes)
        if key == "$or":
            return some, parts
        negation = Not()
        negation.node = some
        return negation, parts

    cdef tuple field(self, str key, object value, str where, int depth):
        cdef Path path = self.path(key, where)
        if path is None:
            return None, None
        if (type(value) is dict and value and self.is_operators(<dict> value)
                and extended(value) is None):
            return self.operators(path, <dict> value, where, depth)
        return self.equality(path, value, where, depth)

    cdef bint is_operators(self, dict value) except -1:
        for key in value:
            if key[:1] == "$":
                return True
        return False

    cdef tuple equality(self, Path path, object value, str where, int depth):
        ids = path.is_id and not self.loose
        test, part = self.compared(Equal(), value, where, depth)
        if test is None:
            return None, None
        if ids:
            return self.id_equality(path, <Test> test, part, False)
        if type(part) is Slot or type(part) is dict or (type(part) is str and part[:1] == "$"):
            part = {"$eq": part}
        return _field(path, <Test> test, False), part

    cdef tuple id_equality(self, Path path, Test test, object part, bint negated):
        """A hexadecimal `_id` stands for the identifier and for the text."""
        cdef In any_of
        cdef Slot slot
        if test.slot >= 0:
            slot = self.slots[test.slot]
            slot.spec = Either(slot.spec)
        else:
            found = either(test.constant)
            if len(found) == 1:
                return (_field(path, test, negated),
                        {"$ne": part} if negated else
                        {"$eq": part} if type(part) is dict else part)
            part = found
        any_of = In()
        any_of.slot = test.slot
        any_of.constant = part
        return _field(path, any_of, negated), {"$nin" if negated else "$in": part}

    cdef tuple operators(self, Path path, dict value, str where, int depth):
        cdef list nodes = []
        template = {}
        if "$options" in value and "$regex" not in value:
            self.wrong(f"{where}.$options", "stands beside $regex only")
        for key, operand in value.items():
            if key == "$options":
                template[key] = operand
                continue
            node, part = self.operator(path, key, operand, value, f"{where}.{key}", depth)
            if node is not None:
                nodes.append(node)
                if type(part) is _Renamed:
                    template[(<_Renamed> part).key] = (<_Renamed> part).value
                else:
                    template[key] = part
        return _all(nodes), template

    cdef tuple operator(
        self, Path path, str key, object operand, dict value, str where, int depth
    ):
        cdef Ordered ordered
        cdef Test test
        cdef Not negation
        cdef bint negated
        if key in ("$eq", "$ne"):
            negated = key == "$ne"
            found, part = self.compared(Equal(), operand, where, depth)
            if found is None:
                return None, None
            if path.is_id and not self.loose:
                node, part = self.id_equality(path, <Test> found, part, negated)
                if type(part) is dict:
                    for name in part:
                        return node, _Renamed(name, part[name])
                return node, _Renamed("$ne" if negated else "$eq", part)
            return _field(path, <Test> found, negated), part
        if key in ("$gt", "$gte", "$lt", "$lte"):
            ordered = Ordered()
            ordered.less = key in ("$lt", "$lte")
            ordered.more = key in ("$gt", "$gte")
            ordered.same = key in ("$gte", "$lte")
            found, part = self.compared(ordered, operand, where, depth)
            return (None, None) if found is None else (_field(path, <Test> found, False), part)
        if key in ("$in", "$nin"):
            return self.membership(path, operand, where, depth, key == "$nin")
        if key == "$exists":
            if operand is not True and operand is not False:
                self.wrong(where, "true or false is expected")
                return None, None
            test = Exists()
            test.whole = True
            return _field(path, test, not operand), operand
        if key == "$size":
            if type(operand) is not int or operand < 0 or operand > 0x7FFFFFFF:
                self.wrong(where, "a number of elements is expected")
                return None, None
            test = Size()
            test.whole = True
            test.constant = operand
            return _field(path, test, False), operand
        if key == "$all":
            return self.all_of(path, operand, where, depth)
        if key == "$elemMatch":
            found, part = self.element(operand, where, depth)
            return (None, None) if found is None else (_field(path, <Test> found, False), part)
        if key == "$regex":
            return self.regular(path, operand, value.get("$options", ""), where)
        if key == "$not":
            if type(operand) is not dict or not operand or not self.is_operators(operand):
                self.wrong(where, "an object of operators is expected")
                return None, None
            node, part = self.operators(path, operand, where, depth + 1)
            if node is None:
                return None, None
            negation = Not()
            negation.node = node
            return negation, part
        self.wrong(where, "unknown operator")
        return None, None

    cdef tuple compared(self, Test test, object operand, str where, int depth):
        """A test with its operand: a constant or a slot."""
        spec, varies = self.value(operand, where, depth)
        if spec is MISSING:
            return None, None
        test.loose = self.loose
        if varies:
            slot = self.new_slot(spec)
            test.slot = (<Slot> slot).index
            return test, slot
        test.constant = spec
        return test, spec

    cdef tuple membership(self, Path path, object operand, str where, int depth, bint negated):
        cdef In test = In()
        cdef Slot slot
        test.loose = self.loose
        ids = path.is_id and not self.loose
        spec, varies = self.value(operand, where, depth)
        if spec is MISSING:
            return None, None
        if type(spec) is list:
            if len(spec) > MOST_LIST:
                self.wrong(where, f"more than {MOST_LIST} values")
                return None, None
        elif type(spec) is not Variable:
            self.wrong(where, "a list, or a variable that holds one, is expected")
            return None, None
        if varies:
            slot = self.new_slot(EitherOfAll(spec) if ids else spec)
            slot.wants_list = True
            test.slot = slot.index
            return _field(path, test, negated), slot
        test.constant = either_of_all(spec) if ids else spec
        return _field(path, test, negated), test.constant

    cdef tuple all_of(self, Path path, object operand, str where, int depth):
        cdef AllOf dynamic
        cdef Constant never
        cdef Slot slot
        spec, varies = (MISSING, False)
        if type(operand) is list:
            nodes = []
            parts = []
            for number, item in enumerate(operand):
                inner = f"{where}[{number}]"
                if type(item) is dict and "$elemMatch" in item:
                    if len(item) != 1:
                        self.wrong(inner, "$elemMatch stands alone here")
                        return None, None
                    found, part = self.element(item["$elemMatch"], f"{inner}.$elemMatch", depth)
                    part = {"$elemMatch": part}
                else:
                    found, part = self.compared(Equal(), item, inner, depth)
                if found is None:
                    return None, None
                nodes.append(_field(path, <Test> found, False))
                parts.append(part)
            if not nodes:
                never = Constant()
                never.value = False
                return never, []
            if len(nodes) > MOST_LIST:
                self.wrong(where, f"more than {MOST_LIST} values")
                return None, None
            return _all(nodes), parts
        spec, varies = self.value(operand, where, depth)
        if type(spec) is not Variable:
            if spec is not MISSING:
                self.wrong(where, "a list, or a variable that holds one, is expected")
            return None, None
        slot = self.new_slot(spec)
        slot.wants_list = True
        dynamic = AllOf()
        dynamic.path = path
        dynamic.slot = slot.index
        dynamic.loose = self.loose
        return dynamic, slot

    cdef tuple element(self, object operand, str where, int depth):
        cdef Element test = Element()
        cdef _Compiler inner
        test.whole = True
        if type(operand) is not dict or not operand:
            self.wrong(where, "an object is expected")
            return None, None
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return None, None
        logical = ("$and", "$or", "$nor")
        if self.is_operators(operand) and not any(key in logical for key in operand):
            # of plain values: each test is one of the element itself
            node, part = self.operators(_SELF, operand, where, depth + 1)
            if node is None:
                return None, None
            test.node = node
            test.plain = True
            return test, part
        roots, default = self.roots, self.default
        paths, self.paths = self.paths, set()
        self.roots, self.default = (), "record"
        node, part = self.expression(operand, where, depth + 1)
        self.roots, self.default = roots, default
        self.paths = paths
        if node is None:
            return None, None
        test.node = node
        return test, part

    cdef tuple regular(self, Path path, object operand, object options, str where):
        cdef Regular test = Regular()
        cdef Slot slot
        if type(operand) is not str or type(options) is not str:
            self.wrong(where, "a pattern is expected")
            return None, None
        try:
            compiled = compile_pattern("", options)
        except PatternError as error:
            self.wrong(where, str(error))
            return None, None
        # in a pattern '$' is an anchor: only '${…}' names a variable
        spec, varies = (operand, False)
        if self.interpolate and "${" in operand:
            spec, varies = self.value(operand, where, 0)
            if spec is MISSING:
                return None, None
        if varies:
            slot = self.new_slot([spec, options])
            slot.pattern = True
            test.slot = slot.index
            return _field(path, test, False), slot
        try:
            test.search = compile_pattern(spec, options)
        except PatternError as error:
            self.wrong(where, str(error))
            return None, None
        return _field(path, test, False), spec

cdef Path _SELF = Path("", ("",), ROOT_SELF)


@cython.final
cdef class _Renamed:
    cdef str key
    cdef object value

    def __init__(self, key, value):
        self.key = key
        self.value = value


cdef Node _all(list nodes):
    cdef All found
    cdef Constant always
    if len(nodes) == 1:
        return nodes[0]
    if not nodes:
        always = Constant()
        always.value = True
        return always
    found = All()
    found.nodes = tuple(nodes)
    return found


cdef Field _field(Path path, Test test, bint negated):
    cdef Field found = Field()
    found.path = path
    found.check = test
    found.negated = negated
    return found


def compile_match(
    expression, str path="filter", *, tuple roots=(), default="record", bint interpolate=True,
    bint loose=False,
):
    errors = []
    found = compile_into(
        errors, expression, path, roots=roots, default=default, interpolate=interpolate,
        loose=loose,
    )
    if errors:
        raise RuleError.of(errors)
    return found


def compile_into(
    list errors, expression, str path, *, tuple roots=(), default="record",
    bint interpolate=True, bint loose=False, bint lenient=False,
):
    """As compile_match, but adds the mistakes to `errors` and gives None then. lenient: a variable
    that does not resolve equals nothing, instead of refusing all."""
    cdef _Compiler compiler = _Compiler(
        errors, ("record", *roots) if roots and "record" not in roots and default else roots,
        default, interpolate, loose)
    cdef Match match
    before = len(errors)
    root, template = compiler.expression(expression, path, 0)
    if len(errors) > before:
        return None
    match = Match()
    match.source = expression
    match.root = root
    match.template = template
    match.slots = compiler.slots
    match.variables = tuple(sorted(compiler.variables))
    match.paths = tuple(sorted(compiler.paths))
    match.uses_old = compiler.uses_old
    match.needs_identity = compiler.needs_identity
    match.lenient = lenient
    match._equalities = tuple(equalities(root, compiler.slots))
    covered = cover(root, compiler.slots)
    match._index = None if not covered else tuple(covered)
    return match


def compile_values(list errors, source, str path, *, bint interpolate=True):
    """An object of paths and values as a Match whose bound `filter` is that object with the values
    of an identity: what `set` writes."""
    cdef _Compiler compiler = _Compiler(errors, (), "record", interpolate, False)
    cdef Match match
    cdef Constant always = Constant()
    cdef dict template = {}
    before = len(errors)
    for key, value in source.items():
        where = f"{path}.{key}"
        compiler.path(key, where)
        spec, varies = compiler.value(value, where, 0)
        template[key] = compiler.new_slot(spec) if varies else spec
    if len(errors) > before:
        return None
    always.value = True
    match = Match()
    match.source = source
    match.root = always
    match.template = template
    match.slots = compiler.slots
    match.variables = tuple(sorted(compiler.variables))
    match.paths = tuple(sorted(compiler.paths))
    match._equalities = ()
    match._index = None
    return match


ALWAYS = compile_match(True)
NEVER = compile_match(False)
