from dataclasses import dataclass
@dataclass(frozen=True)
class MediaType:
    text: str
    kind: str = "other"
    strip: bool = False
    inner: object = None
    format: str = "text"
    options: tuple = ()
def media(text):
    main,*ps=[x.strip() for x in text.split(";")]
    m=main.lower(); d={}
    for p in ps:
        k,_,v=p.partition("="); d[k.strip().lower()]=v.strip().strip('"')
    s=d.get("nulls")=="stripped"
    if m in("application/vnd.pgrst.object+json","application/vnd.pgrst.object"): return MediaType("application/vnd.pgrst.object+json"+(";nulls=stripped" if s else ""),"object",s)
    if m in("application/vnd.pgrst.array+json","application/vnd.pgrst.array"):
        return MediaType("application/vnd.pgrst.array+json;nulls=stripped","array",True) if s else MediaType("application/json")
    if m.startswith("application/vnd.pgrst.plan"):
        f="json" if m.endswith("+json") else "text"
        inner=media(d.get("for","application/json"))
        o=tuple(x for x in("analyze","verbose","settings","buffers","wal") if x in d.get("options","").split("|"))
        return MediaType(f'application/vnd.pgrst.plan+{f}; for="{inner.text}"'+("; options="+"|".join(o) if o else ""),"plan",False,inner,f,o)
    if m in("application/json","application/geo+json","text/csv","text/plain","text/xml","application/openapi+json","application/x-www-form-urlencoded","application/octet-stream","*/*"): return MediaType(m)
    return MediaType(text)
def parse(header):
    if not header: return (MediaType("*/*"),)
    import re
    out=[]
    for i,p in enumerate(header.split(",")):
        q=1.0
        m=re.search(r";\s*q=([0-9.]+)",p)
        if m: q=float(m.group(1)); p=p[:m.start()]+p[m.end():]
        out.append((-q,i,media(p.strip())))
    out.sort(key=lambda t:t[:2])
    return tuple(x[2] for x in out)
