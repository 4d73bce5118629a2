"""Requests of the document API to BSON, and BSON to answers. Knows no sockets and no database."""

from ichicore.mongo.command import parse
from ichicore.mongo.parts import EMPTY, Caps, Command, Part
from ichicore.mongo.plan import Plan, apply
from ichicore.mongo.stages import check_collection

__all__ = ["EMPTY", "Caps", "Command", "Part", "Plan", "apply", "check_collection", "parse"]
