-- Messages between nodes that are too long for a notice: see server/base/exchange.py. They are read
-- within moments and need not outlast a crash.

create unlogged table exchange (
  id bigint generated always as identity primary key,
  body text not null,
  at timestamptz not null default now()
);
