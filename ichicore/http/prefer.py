from dataclasses import dataclass, field
@dataclass
class Preferences:
    resolution: str|None=None
    representation: str|None=None
    count: str|None=None
    tx: str|None=None
    missing: str|None=None
    handling: str|None=None
    timezone: str|None=None
    max_affected: int|None=None
    invalid: tuple=()
V={"resolution":("merge-duplicates","ignore-duplicates"),"return":("representation","minimal","headers-only"),"count":("exact","planned","estimated"),"tx":("commit","rollback"),"missing":("default","null"),"handling":("strict","lenient")}
def parse(header, timezones):
    p=Preferences(); inv=[]
    if not header: return p
    for x in header.split(","):
        x=x.strip(); k,_,v=x.partition("=")
        if k in V and v in V[k]:
            n="representation" if k=="return" else k
            if getattr(p,n) is None: setattr(p,n,v)
        elif k=="timezone":
            if v.lower() in timezones or v in timezones: p.timezone=p.timezone or v
            else: inv.append(x)
        elif k=="max-affected":
            if v.isdigit(): p.max_affected=int(v)
        else: inv.append(x)
    p.invalid=tuple(inv)
    return p
