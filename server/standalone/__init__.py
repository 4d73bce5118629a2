"""`ichibase rest`: the Postgres REST engine alone, configured as PostgREST is."""
