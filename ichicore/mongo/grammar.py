"""What may be asked of documents: operations, operators, stages and expressions, by name.

Whatever is not listed is refused. None of the listed ones runs code, writes elsewhere or reads
another collection, but for the two stages that only the service role may use.
"""

from __future__ import annotations

import re

READS = ("find", "findOne", "count", "distinct", "aggregate")
INSERTS = ("insertOne", "insertMany")
UPDATES = ("updateOne", "updateMany", "replaceOne", "findOneAndUpdate")
DELETES = ("deleteOne", "deleteMany", "findOneAndDelete")
BULK = "bulkWrite"
OPERATIONS = frozenset((*READS, *INSERTS, *UPDATES, *DELETES, BULK))
BULK_OPERATIONS = frozenset(
    ("insertOne", "updateOne", "updateMany", "replaceOne", "deleteOne", "deleteMany")
)
# Body members of each operation: name, then the names that other clients use for it.
MEMBERS: dict[str, dict[str, str]] = {
    "find": {
        "filter": "filter", "projection": "projection", "sort": "sort", "limit": "limit",
        "skip": "skip",
    },
    "findOne": {
        "filter": "filter", "projection": "projection", "sort": "sort", "skip": "skip",
    },
    "count": {"filter": "filter"},
    "distinct": {"field": "field", "filter": "filter"},
    "aggregate": {"pipeline": "pipeline"},
    "insertOne": {"doc": "doc"},
    "insertMany": {"docs": "docs", "ordered": "ordered"},
    "updateOne": {
        "filter": "filter", "update": "update", "upsert": "upsert",
        "array_filters": "array_filters", "arrayFilters": "array_filters",
    },
    "updateMany": {
        "filter": "filter", "update": "update", "upsert": "upsert",
        "array_filters": "array_filters", "arrayFilters": "array_filters",
    },
    "replaceOne": {"filter": "filter", "replacement": "replacement", "upsert": "upsert"},
    "deleteOne": {"filter": "filter"},
    "deleteMany": {"filter": "filter"},
    "findOneAndUpdate": {
        "filter": "filter", "update": "update", "projection": "projection", "sort": "sort",
        "upsert": "upsert", "return_document": "return_document", "return": "return_document",
        "returnDocument": "return_document", "array_filters": "array_filters",
        "arrayFilters": "array_filters",
    },
    "findOneAndDelete": {"filter": "filter", "projection": "projection", "sort": "sort"},
    "bulkWrite": {"ops": "ops", "operations": "ops", "ordered": "ordered"},
}  # fmt: skip

COLLECTION = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,119}")

MOST_DEPTH = 100  # of JSON; MongoDB refuses documents beyond 180 or so
MOST_STAGES = 100  # of a pipeline, those of its facets included
MOST_LIST = 10_000  # values of $in and the like, clauses of $and
MOST_KEYS = 32  # of a sort
MOST_PATH = 1000  # characters of a path
MOST_RANGE = 10_000  # numbers that $range may make

LOGICAL = frozenset(("$and", "$or", "$nor"))
QUERY = frozenset((
    "$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$not", "$exists", "$type", "$all",
    "$elemMatch", "$size", "$mod", "$regex", "$options",
))  # fmt: skip
TYPES = frozenset((
    "double", "string", "object", "array", "binData", "undefined", "objectId", "bool", "date",
    "null", "regex", "int", "timestamp", "long", "decimal", "minKey", "maxKey", "number",
))  # fmt: skip

UPDATE = frozenset((
    "$set", "$unset", "$inc", "$mul", "$min", "$max", "$rename", "$setOnInsert", "$currentDate",
    "$push", "$addToSet", "$pop", "$pull", "$pullAll", "$bit",
))  # fmt: skip
# Operators whose outcome tells something of the value that was there.
READING_UPDATE = frozenset(
    ("$min", "$max", "$mul", "$rename", "$addToSet", "$pop", "$pull", "$pullAll", "$bit")
)

EXTENDED = frozenset((
    "$oid", "$date", "$numberLong", "$numberInt", "$numberDouble", "$numberDecimal", "$binary",
))  # fmt: skip

STAGES = frozenset((
    "$match", "$project", "$addFields", "$set", "$unset", "$group", "$sort", "$limit", "$skip",
    "$unwind", "$count", "$sortByCount", "$bucket", "$bucketAuto", "$facet", "$replaceRoot",
    "$replaceWith", "$sample", "$redact",
))  # fmt: skip
SERVICE_STAGES = frozenset(("$lookup", "$unionWith"))

VARIABLES = frozenset(("ROOT", "CURRENT", "REMOVE", "NOW", "DESCEND", "PRUNE", "KEEP"))
PATTERNS = frozenset(("$regexMatch", "$regexFind", "$regexFindAll"))
EXPRESSIONS = frozenset((
    # arithmetic
    "$abs", "$add", "$ceil", "$divide", "$exp", "$floor", "$ln", "$log", "$log10", "$mod",
    "$multiply", "$pow", "$round", "$sqrt", "$subtract", "$trunc", "$bitAnd", "$bitOr", "$bitXor",
    "$bitNot", "$sin", "$cos", "$tan", "$asin", "$acos", "$atan", "$atan2", "$sinh", "$cosh",
    "$tanh", "$asinh", "$acosh", "$atanh", "$degreesToRadians", "$radiansToDegrees",
    # arrays
    "$arrayElemAt", "$arrayToObject", "$concatArrays", "$filter", "$first", "$firstN", "$in",
    "$indexOfArray", "$isArray", "$last", "$lastN", "$map", "$maxN", "$minN", "$objectToArray",
    "$range", "$reduce", "$reverseArray", "$size", "$slice", "$sortArray", "$zip",
    # logic and comparison
    "$and", "$or", "$not", "$cmp", "$eq", "$gt", "$gte", "$lt", "$lte", "$ne", "$cond", "$ifNull",
    "$switch", "$let", "$literal",
    # dates
    "$dateAdd", "$dateDiff", "$dateFromParts", "$dateFromString", "$dateSubtract", "$dateToParts",
    "$dateToString", "$dateTrunc", "$dayOfMonth", "$dayOfWeek", "$dayOfYear", "$hour",
    "$isoDayOfWeek", "$isoWeek", "$isoWeekYear", "$millisecond", "$minute", "$month", "$second",
    "$week", "$year", "$toDate",
    # objects, sets, types
    "$mergeObjects", "$getField", "$setField", "$unsetField", "$allElementsTrue",
    "$anyElementTrue", "$setDifference", "$setEquals", "$setIntersection", "$setIsSubset",
    "$setUnion", "$convert", "$isNumber", "$toBool", "$toDecimal", "$toDouble", "$toInt",
    "$toLong", "$toObjectId", "$toString", "$type",
    # texts
    "$concat", "$indexOfBytes", "$indexOfCP", "$ltrim", "$regexFind", "$regexFindAll",
    "$regexMatch", "$replaceOne", "$replaceAll", "$rtrim", "$split", "$strLenBytes", "$strLenCP",
    "$strcasecmp", "$substr", "$substrBytes", "$substrCP", "$toLower", "$toUpper", "$trim",
    # accumulators that are expressions too
    "$avg", "$max", "$min", "$stdDevPop", "$stdDevSamp", "$sum",
))  # fmt: skip
ACCUMULATORS = frozenset((
    "$addToSet", "$avg", "$bottom", "$bottomN", "$count", "$first", "$firstN", "$last", "$lastN",
    "$max", "$maxN", "$mergeObjects", "$min", "$minN", "$push", "$stdDevPop", "$stdDevSamp",
    "$sum", "$top", "$topN",
))  # fmt: skip
