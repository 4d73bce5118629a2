-- What the three roles may do in a new project's schema public. It is the owner's to change, so it is
-- done once: neither an upgrade nor a restore takes back what the owner has revoked.

revoke all on schema public from public;
grant usage on schema public to anon, authenticated, service_role;

-- New tables, sequences and functions of the owner are open to the three roles: row security and
-- explicit revokes decide what they may do.
alter default privileges for role {owner} in schema public
  grant all on tables to anon, authenticated, service_role;
alter default privileges for role {owner} in schema public
  grant all on sequences to anon, authenticated, service_role;
alter default privileges for role {owner} in schema public
  grant execute on functions to anon, authenticated, service_role;
