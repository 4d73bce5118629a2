"""Quoting of SQL names: nothing else in the program turns a name into SQL text.

A name ends at its first NUL, which Postgres cannot store. Everything between the quotes is taken
literally by Postgres, so a quoted name can never end a token early.
"""
from ichicore.errors import ApiError


cpdef str quote(str name):
    """A double-quoted identifier."""
    cdef Py_ssize_t end
    if "\0" in name:
        end = name.index("\0")
        name = name[:end]
    if '"' in name:
        name = name.replace('"', '""')
    return '"' + name + '"'


cpdef str qualify(str schema, str name):
    """A schema-qualified identifier; an empty or missing schema leaves the name to search_path."""
    if not schema:
        return quote(name)
    return quote(schema) + "." + quote(name)


cpdef str literal(str text):
    """A string constant, for names that come from the catalog (keys of jsonb_build_object)."""
    cdef str body = text.split("\0", 1)[0].replace("'", "''")
    if "\\" in body:
        return " E'" + body.replace("\\", "\\\\") + "'"
    return "'" + body + "'"


cpdef str type_name(str text):
    """A type's name as written in a cast, unquoted so that spellings like `int` or `text[]` work.

    Raises ApiError 400 PGRST100 for a character that no type's name has.
    """
    cdef Py_UCS4 c
    for c in text:
        if not (c.isalnum() or c in "_ .[]$"):
            raise ApiError(400, "PGRST100", f"Bad type name in a cast: {text}")
    return text
