"""Recognition of filter operators, shared by the parser and the shape scanner. C level only."""

cdef enum Kind:
    NO_OPERATOR = 0
    SIMPLE = 1          # op.value
    QUANTIFIABLE = 2    # op.value, op(any).value, op(all).value
    PATTERN = 3         # quantifiable, * stands for %
    TEXT_SEARCH = 4     # op.value, op(config).value
    LIST = 5            # in.(...)
    TRUTH = 6           # is.word

cdef enum Operator:
    EQ, NEQ, GT, GTE, LT, LTE, LIKE, ILIKE, MATCH, IMATCH, IN, IS, ISDISTINCT
    FTS, PLFTS, PHFTS, WFTS, CS, CD, OV, SL, SR, NXR, NXL, ADJ
    OPERATORS


cdef inline Operator find_operator(const char* p, Py_ssize_t size) noexcept nogil:
    """The operator that is exactly these bytes; OPERATORS when there is none."""
    cdef char a
    if size < 2:
        return OPERATORS
    a = p[0]
    if size == 2:
        if a == c'e':
            return EQ if p[1] == c'q' else OPERATORS
        if a == c'g':
            return GT if p[1] == c't' else OPERATORS
        if a == c'l':
            return LT if p[1] == c't' else OPERATORS
        if a == c'i':
            if p[1] == c'n':
                return IN
            return IS if p[1] == c's' else OPERATORS
        if a == c'c':
            if p[1] == c's':
                return CS
            return CD if p[1] == c'd' else OPERATORS
        if a == c's':
            if p[1] == c'l':
                return SL
            return SR if p[1] == c'r' else OPERATORS
        if a == c'o':
            return OV if p[1] == c'v' else OPERATORS
        return OPERATORS
    if size == 3:
        if a == c'n':
            if p[1] == c'e' and p[2] == c'q':
                return NEQ
            if p[1] == c'x':
                if p[2] == c'r':
                    return NXR
                return NXL if p[2] == c'l' else OPERATORS
            return OPERATORS
        if p[2] == c'e' and p[1] == c't':
            if a == c'g':
                return GTE
            return LTE if a == c'l' else OPERATORS
        if a == c'f' and p[1] == c't' and p[2] == c's':
            return FTS
        if a == c'a' and p[1] == c'd' and p[2] == c'j':
            return ADJ
        return OPERATORS
    if size == 4:
        if a == c'l' and p[1] == c'i' and p[2] == c'k' and p[3] == c'e':
            return LIKE
        if a == c'w' and p[1] == c'f' and p[2] == c't' and p[3] == c's':
            return WFTS
        return OPERATORS
    if size == 5:
        if a == c'i' and p[1] == c'l' and p[2] == c'i' and p[3] == c'k' and p[4] == c'e':
            return ILIKE
        if a == c'm' and p[1] == c'a' and p[2] == c't' and p[3] == c'c' and p[4] == c'h':
            return MATCH
        if a == c'p' and p[2] == c'f' and p[3] == c't' and p[4] == c's':
            if p[1] == c'l':
                return PLFTS
            return PHFTS if p[1] == c'h' else OPERATORS
        return OPERATORS
    if size == 6:
        if (a == c'i' and p[1] == c'm' and p[2] == c'a' and p[3] == c't' and p[4] == c'c'
                and p[5] == c'h'):
            return IMATCH
        return OPERATORS
    if size == 10 and a == c'i' and p[1] == c's' and p[2] == c'd' and p[3] == c'i' \
            and p[4] == c's' and p[5] == c't' and p[6] == c'i' and p[7] == c'n' \
            and p[8] == c'c' and p[9] == c't':
        return ISDISTINCT
    return OPERATORS


cdef inline Kind kind_of(Operator op) noexcept nogil:
    if op == OPERATORS:
        return NO_OPERATOR
    if op == LIKE or op == ILIKE:
        return PATTERN
    if op == IN:
        return LIST
    if op == IS:
        return TRUTH
    if FTS <= op <= WFTS:
        return TEXT_SEARCH
    if op == NEQ or op == ISDISTINCT or op >= CS:
        return SIMPLE
    return QUANTIFIABLE
