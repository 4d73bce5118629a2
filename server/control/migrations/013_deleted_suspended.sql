-- Whether a deleted project was suspended before: it is suspended again once it is brought back. Of
-- those deleted by an older version the audit tells it, with the reason.

alter table projects add column was_suspended boolean not null default false;

update projects p set was_suspended = true, reason = a.detail ->> 'reason'
from (
  select distinct on (project) project, action, detail from audit
  where action in ('project.create', 'project.suspend', 'project.resume', 'project.undelete')
  order by project, id desc
) a
where p.state = 'deleting' and a.project = p.slug and a.action = 'project.suspend';
