-- What went wrong, as programs read it; `error` is for people.

alter table jobs add column code text;
alter table backups add column code text;
