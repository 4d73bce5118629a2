"""Which equalities with a variable hold wherever an expression holds: what an index can go by."""

from ichicore.rules.nodes cimport All, Equal, Field, ROOT_DOCUMENT, Some
from ichicore.rules.operands cimport Slot, Variable


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


cdef list equalities(object node, list slots):
    if type(node) is All:
        return [p for member in (<All> node).nodes for p in equalities(member, slots)]
    found = _pair(node, slots)
    return [] if found is None else [found]


cdef object cover(object node, list slots):
    """Equalities of which one must hold, or None."""
    if type(node) is All:
        best = None
        for member in (<All> node).nodes:
            found = cover(member, slots)
            if found is not None and (best is None or len(found) < len(best)):
                best = found
        return best
    if type(node) is Some:
        every = []
        for member in (<Some> node).nodes:
            found = cover(member, slots)
            if found is None:
                return None
            every += [pair for pair in found if pair not in every]
        return every
    found = _pair(node, slots)
    return None if found is None else [found]
