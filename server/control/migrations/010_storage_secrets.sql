-- Secrets that storage tokens may be signed with besides projects.storage_secret: those before the
-- last rotation, and the next one while it is told to the workers. [{"secret", "until"}], until in
-- epoch seconds.

alter table projects add column storage_accepted jsonb not null default '[]';
