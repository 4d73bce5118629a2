cpdef str quote(str name)
cpdef str qualify(str schema, str name)
cpdef str literal(str text)
cpdef str type_name(str text)
