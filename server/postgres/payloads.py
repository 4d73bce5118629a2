import csv, io, orjson
from dataclasses import dataclass
from urllib.parse import parse_qsl
from ichicore.errors import ApiError
@dataclass(frozen=True)
class Given:
    names: tuple=()
    is_object: bool=True
    body: bytes|None=None
    arguments: tuple|None=None
    media: str="application/json"
NOTHING=Given()
def bad(m): return ApiError(400,"PGRST102",m)
def read(body, content_type, columns, *, rpc):
    ct=(content_type or "application/json").split(";")[0].strip().lower()
    if ct=="application/json":
        isobj=body.lstrip()[:1]==b"{"
        if columns is not None: return Given(tuple(columns),isobj,body)
        if not body and rpc: return Given((),True,b"{}")
        try: v=orjson.loads(body)
        except Exception: raise bad("Empty or invalid json")
        if isinstance(v,dict): return Given(tuple(sorted(v)),True,body)
        if isinstance(v,list) and v:
            if not isinstance(v[0],dict) or any(not isinstance(x,dict) or set(x)!=set(v[0]) for x in v): raise bad("All object keys must match")
            return Given(tuple(sorted(v[0])),False,body)
        return Given((),False,b"[]")
    if ct=="text/csv":
        rows=list(csv.reader(io.StringIO(body.decode())))
        if not rows: raise bad("parse error (not enough input)")
        out=[]
        for r in rows[1:]:
            if len(r)!=len(rows[0]): raise bad("All lines must have same number of fields")
            out.append({k:(None if x=="NULL" else x) for k,x in zip(rows[0],r)})
        return Given(tuple(sorted(rows[0])) if out else (),False,orjson.dumps(out))
    if ct=="application/x-www-form-urlencoded":
        p=parse_qsl(body.decode(),keep_blank_values=True)
        if rpc: return Given(tuple(sorted({k for k,_ in p})),True,orjson.dumps(dict(p)),tuple((k,v,-1) for k,v in p),ct)
        return Given(tuple(sorted(dict(p))),True,orjson.dumps(dict(p)))
    if rpc and ct in("text/plain","text/xml","application/octet-stream"): return Given((),True,body,None,ct)
    raise bad("Content-Type not acceptable: "+(content_type or ""))
