select lower(name)
from pg_timezone_names
