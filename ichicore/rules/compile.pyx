"""Match expressions from JSON, with the path of every mistake."""

cimport cython

from ichicore.rules.match cimport Match
from ichicore.rules.nodes cimport (
    All, AllOf, Constant, Element, Equal, Exists, Field, In, Node, Not, Ordered, Path, Regular,
    ROOT_AUTH, ROOT_DOCUMENT, ROOT_OLD, ROOT_REQUEST, ROOT_SELF, Size, Some, Test,
)
from ichicore.rules.operands cimport (
    Either, EitherOfAll, Slot, Text, Variable, either, either_of_all, is_text,
)
from ichicore.rules.values cimport MISSING

from ichicore.rules import names
from ichicore.rules.errors import RuleError
from ichicore.rules.extended import READERS
from ichicore.rules.patterns import PatternError, compile_pattern

cdef long long INT64_MAX = 0x7FFFFFFFFFFFFFFF
cdef int MOST_DEPTH = 32
cdef int MOST_LIST = 1000
cdef int MOST_PATH = 512


cdef class _Compiler:
    """Compiles one expression; mistakes are collected in `errors`."""

    cdef list errors
    cdef list slots
    cdef set variables
    cdef set paths
    cdef tuple roots
    cdef object default
    cdef bint interpolate
    cdef bint loose
    cdef bint uses_old
    cdef bint needs_identity

    def __init__(self, errors, roots, default, interpolate, loose):
        self.errors = errors
        self.slots = []
        self.variables = set()
        self.paths = set()
        self.roots = roots
        self.default = default
        self.interpolate = interpolate
        self.loose = loose

    cdef object wrong(self, str where, str message):
        self.errors.append((where, message))
        return None

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

    cdef Path path(self, str text, str where):
        cdef tuple parts = tuple(text.split("."))
        cdef int root = ROOT_DOCUMENT
        head = parts[0]
        if len(text) > MOST_PATH:
            return self.wrong(where, f"a path longer than {MOST_PATH}")
        if "" in parts:
            return self.wrong(where, "a path with an empty name")
        if "\0" in text or not is_text(text):
            return self.wrong(where, "a path with a NUL or half of a character")
        if "__proto__" in parts:
            return self.wrong(where, "'__proto__' is not a name")
        for part in parts:
            if part[0] == "$":
                return self.wrong(where, "a name in a path cannot begin with '$'")
        if head in self.roots:
            if len(parts) == 1:
                return self.wrong(where, f"a path below '{head}' is expected")
            parts = parts[1:]
            text = text[len(head) + 1:]
            if head == "auth":
                self.needs_identity = True
                root = ROOT_AUTH
                if parts[0] not in ("uid", "role", "email", "claims"):
                    return self.wrong(where, "unknown name; known are auth.uid, auth.role, "
                                             "auth.email and auth.claims.<path>")
                if (parts[0] == "claims") == (len(parts) == 1):
                    return self.wrong(where, "auth.claims needs a name after it, the others none")
            elif head == "request":
                root = ROOT_REQUEST
                if text not in ("operation", "collection"):
                    return self.wrong(
                        where, "unknown name; known are request.operation and request.collection")
            elif head == "old":
                root = ROOT_OLD
                self.uses_old = True
        elif self.default is None:
            return self.wrong(where, f"a path begins with one of {', '.join(self.roots)}")
        elif head in ("auth", "request"):
            return self.wrong(where, f"paths here are of the document; '{head}.*' is tested in "
                                     "'when' and inserted as '${auth.…}'")
        if root == ROOT_DOCUMENT:
            self.paths.add(text)
        elif root == ROOT_OLD:
            self.paths.add("old." + text)
        return Path(text, parts, root)

    cdef tuple field(self, str key, object value, str where, int depth):
        cdef Path path = self.path(key, where)
        if path is None:
            return None, None
        if (type(value) is dict and value and self.is_operators(<dict> value)
                and _extended(value) is None):
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

    cdef object new_slot(self, object spec):
        cdef Slot slot = Slot()
        slot.spec = spec
        slot.index = len(self.slots)
        slot.loose = self.loose
        self.slots.append(slot)
        return slot

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

    cdef tuple value(self, object source, str where, int depth):
        """(spec, varies) of a literal; spec is MISSING when it is wrong."""
        cdef bint varies = False
        if type(source) is str:
            if not is_text(source):
                self.wrong(where, "not a text: half of a character")
                return MISSING, False
            if not self.interpolate or "$" not in source:
                return source, False
            try:
                parts = names.parse(source)
            except ValueError as error:
                self.wrong(where, str(error))
                return MISSING, False
            if type(parts) is str:
                return parts, False
            found = []
            for part in parts:
                if type(part) is tuple:
                    self.variables.add(part[0])
                    part = Variable(part[0])
                found.append(part)
            if len(found) == 1:
                return found[0], True
            return Text(tuple(found)), True
        if depth > MOST_DEPTH:
            self.wrong(where, f"nested deeper than {MOST_DEPTH}")
            return MISSING, False
        if type(source) is list:
            items = []
            for number, item in enumerate(source):
                spec, one = self.value(item, f"{where}[{number}]", depth + 1)
                if spec is MISSING:
                    return MISSING, False
                varies = varies or one
                items.append(spec)
            return items, varies
        if type(source) is dict:
            found = _extended(source)
            if found is not None:
                if found is MISSING:
                    self.wrong(where, "not a value of extended JSON")
                return found, False
            members = {}
            for key, item in (<dict> source).items():
                inner = f"{where}.{key}"
                if not key or key[0] == "$":
                    self.wrong(inner, "unknown operator")
                    return MISSING, False
                if "." in key or "\0" in key or key == "__proto__" or not is_text(key):
                    self.wrong(inner, "not a name of a field")
                    return MISSING, False
                spec, one = self.value(item, inner, depth + 1)
                if spec is MISSING:
                    return MISSING, False
                varies = varies or one
                members[key] = spec
            return members, varies
        if type(source) is int and not -INT64_MAX - 1 <= source <= INT64_MAX:
            self.wrong(where, "a number beyond 64 bits")
            return MISSING, False
        if source is None or isinstance(source, (bool, int, float)):
            return source, False
        return source, False


cdef Path _SELF = Path("", ("",), ROOT_SELF)


@cython.final
cdef class _Renamed:
    cdef str key
    cdef object value

    def __init__(self, key, value):
        self.key = key
        self.value = value


cdef object _extended(object source):
    """A value of extended JSON; None when it is none, MISSING when it is a wrong one."""
    if len(source) != 1:
        return None
    for key in source:
        reader = READERS.get(key)
        if reader is None:
            return None
        try:
            return reader(source[key])
        except ValueError:
            return MISSING


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


cdef tuple _pair(object node, list slots):
    """(path, variable) of an equality with a single variable, or None."""
    cdef Field field
    cdef Slot slot
    if type(node) is not Field:
        return None
    field = node
    if field.negated or type(field.check) is not Equal or field.path.root != ROOT_DOCUMENT:
        return None
    if field.check.slot < 0:
        return None
    slot = slots[field.check.slot]
    if type(slot.spec) is not Variable:
        return None
    return (field.path.text, (<Variable> slot.spec).name)


cdef list _pairs(object node, list slots):
    if type(node) is All:
        return [p for member in (<All> node).nodes for p in _pairs(member, slots)]
    found = _pair(node, slots)
    return [] if found is None else [found]


cdef object _cover(object node, list slots):
    """Equalities of which one must hold, or None."""
    if type(node) is All:
        best = None
        for member in (<All> node).nodes:
            found = _cover(member, slots)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best
    if type(node) is Some:
        every = []
        for member in (<Some> node).nodes:
            found = _cover(member, slots)
            if found is None:
                return None
            every += [pair for pair in found if pair not in every]
        return every
    found = _pair(node, slots)
    return None if found is None else [found]


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
    match._equalities = tuple(_pairs(root, compiler.slots))
    covered = _cover(root, compiler.slots)
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
