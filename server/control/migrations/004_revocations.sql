-- Access tokens that are refused before they expire: those of one session, or of one user that were
-- issued before a time. Every row is told to all workers; one that starts reads them.

create table revoked_tokens (
  project_id text not null references projects on delete cascade,
  kind text not null check (kind in ('session', 'user')),
  subject text not null,
  before double precision,
  ends_at timestamptz not null,
  primary key (project_id, kind, subject)
);
create index revoked_tokens_ends_at on revoked_tokens (ends_at);

create function announce_revocation() returns trigger language plpgsql as $$
begin
  perform pg_notify('ichibase_bus', json_build_object('topic', 'token.revoked', 'payload',
    json_strip_nulls(json_build_object('project', new.project_id,
      case new.kind when 'session' then 'session_id' else 'user_id' end, new.subject,
      'before', new.before, 'exp', extract(epoch from new.ends_at)::float8)))::text);
  return null;
end $$;

create trigger announce_revocation after insert or update on revoked_tokens
  for each row execute function announce_revocation();
