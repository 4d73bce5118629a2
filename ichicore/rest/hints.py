from ichicore.errors import ApiError
def no_table(c,s,n): return ApiError(404,"PGRST205",f"Could not find the table '{s}.{n}' in the schema cache")
def no_relationship(cat,schema,o,t,h,found):
    if found: return ApiError(300,"PGRST201",f"Could not embed because more than one relationship was found for '{o}' and '{t}'")
    return ApiError(400,"PGRST200",f"Could not find a relationship between '{o}' and '{t}' in the schema cache")
def no_function(c,s,n,names,*,content_type,is_post): return ApiError(404,"PGRST202",f"Could not find the function {s}.{n}")
def ambiguous_function(f): return ApiError(300,"PGRST203","Could not choose the best candidate function")
