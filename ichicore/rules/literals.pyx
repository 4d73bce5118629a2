"""Paths, literals and variables of an expression that is being compiled, with the path of every
mistake."""

from ichicore.rules.nodes cimport Path, ROOT_AUTH, ROOT_DOCUMENT, ROOT_OLD, ROOT_REQUEST
from ichicore.rules.operands cimport Slot, Text, Variable, is_text
from ichicore.rules.values cimport MISSING

from ichicore.rules import names
from ichicore.rules.extended import READERS

cdef long long INT64_MAX = 0x7FFFFFFFFFFFFFFF
cdef int MOST_PATH = 512


cdef class Literals:
    """What is found on the way: mistakes in `errors`, slots of what varies with the identity, names
    of variables, paths of the document."""

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

    cdef object new_slot(self, object spec):
        cdef Slot slot = Slot()
        slot.spec = spec
        slot.index = len(self.slots)
        slot.loose = self.loose
        self.slots.append(slot)
        return slot

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
            found = extended(source)
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


cdef object extended(object source):
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
