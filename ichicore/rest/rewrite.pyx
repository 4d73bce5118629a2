"""Reads a view's parse tree for the origin of its columns.

Postgres keeps a view as the text of a pg_node_tree: nodes in braces, lists in parentheses, fields
as ":name value", special characters of names escaped by a backslash. Of all that only the target
list of the outermost query matters here: which column of which relation each output column is.
The text can be large (a megabyte for a generated view) and is walked once, without copying it.
"""

from libc.string cimport memcmp

cdef enum:
    QUERY_DEPTH = 2     # "({QUERY": one list, one node
    LIST_DEPTH = 3      # its ":targetList ("
    ENTRY_DEPTH = 4     # each "{TARGETENTRY" of it

cdef long long LARGEST = 1 << 40  # beyond any oid


cdef struct Walk:
    const char* at
    const char* end
    int depth
    bint in_targets
    long long resno     # of the entry that was last walked over, like the two below
    long long table
    long long column


cdef inline bint _starts(
    const char* at, const char* end, const char* word, Py_ssize_t size
) noexcept nogil:
    return end - at >= size and memcmp(at, word, size) == 0


cdef inline const char* _past_token(const char* at, const char* end) noexcept nogil:
    """The first unescaped space, parenthesis or brace from here on."""
    while at < end:
        if at[0] == c'\\':
            at += 1
        elif at[0] == c' ' or at[0] == c'\n' or at[0] == c')' or at[0] == c'}':
            return at
        at += 1
    return end


cdef inline long long _number(const char* at, const char* end) noexcept nogil:
    """The decimal number here; 0 when there is none, as for a NULL or a negative one."""
    cdef long long value = 0
    while at < end and c'0' <= at[0] and at[0] <= c'9' and value < LARGEST:
        value = value * 10 + (at[0] - c'0')
        at += 1
    return value


cdef bint _next_entry(Walk* walk) noexcept nogil:
    """Walk to the end of the next target entry; false when the target list is over."""
    cdef const char* at = walk.at
    cdef const char* end = walk.end
    cdef char c
    while at < end:
        c = at[0]
        at += 1
        if c == c'\\':
            at += 1
        elif c == c'(' or c == c'{':
            walk.depth += 1
            if walk.depth == ENTRY_DEPTH:
                walk.resno = walk.table = walk.column = 0
        elif c == c')' or c == c'}':
            walk.depth -= 1
            if walk.in_targets:
                if walk.depth == LIST_DEPTH:
                    walk.at = at
                    return True
                if walk.depth < LIST_DEPTH:
                    return False
        elif c == c':':
            if walk.in_targets:
                if walk.depth == ENTRY_DEPTH:
                    if _starts(at, end, b"resno ", 6):
                        walk.resno = _number(at + 6, end)
                    elif _starts(at, end, b"resname ", 8):
                        # a name may look like a field
                        at = _past_token(at + 8, end)
                    elif _starts(at, end, b"resorigtbl ", 11):
                        walk.table = _number(at + 11, end)
                    elif _starts(at, end, b"resorigcol ", 11):
                        walk.column = _number(at + 11, end)
            elif walk.depth == QUERY_DEPTH and _starts(at, end, b"targetList ", 11):
                at += 11
                if at >= end or at[0] != c'(':
                    return False
                walk.in_targets = True
    return False


def origins(bytes tree not None):
    """List of (output column number, relation oid, column number) of a view's plain columns.

    Columns that are not simply a column of one relation are left out. `tree` is
    pg_rewrite.ev_action as text, in any server version's notation since 13.
    """
    cdef Walk walk
    cdef list found = []
    walk.at = tree
    walk.end = walk.at + len(tree)
    walk.depth = 0
    walk.in_targets = False
    walk.resno = walk.table = walk.column = 0
    while _next_entry(&walk):
        if walk.table and walk.column and walk.resno:
            found.append((walk.resno, walk.table, walk.column))
    return found
