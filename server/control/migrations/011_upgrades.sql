-- What stood in the way the last time that a project's part of its cluster was to be brought up to
-- date; null where nothing did.

alter table projects add column upgrade_fault text;
