cpdef bytes doc_reply(bytes reply, object read=*)
cpdef bint succeeded(bytes reply) except -1
