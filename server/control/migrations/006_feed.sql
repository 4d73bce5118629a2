-- Each project has a login that reads its change stream. `provisioned` says up to which version of
-- the program the project's part of its cluster was made: an older one is made anew at start.

alter table projects
  add column feed_password text not null default '',
  add column provisioned int not null default 0;
