-- One-time codes and links, sign-ins under way at a provider, counters, and captured messages.

-- The primary key makes asking again end the earlier code. code_hash is keyed with a secret that
-- is not in this database and covers purpose and address. user_id is null when nobody has the
-- address: such rows make guessing look the same for registered and unregistered addresses.
create table auth.codes (
  purpose text not null,
  address text not null,
  user_id uuid references auth.users on delete cascade,
  code_hash bytea,
  token_hash bytea unique,
  tries integer not null default 0,
  payload jsonb not null default '{}',
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  primary key (purpose, address)
);

create index codes_expires_at on auth.codes (expires_at);
create index codes_user on auth.codes (user_id);

create table auth.oauth_flows (
  state_hash bytea primary key,
  provider text not null,
  browser_hash bytea not null,
  nonce text not null,
  verifier text not null,
  callback text not null,
  redirect text not null,
  challenge text,
  expires_at timestamptz not null
);

create index oauth_flows_expires_at on auth.oauth_flows (expires_at);

-- Counters are worth no write-ahead log: a crash of the database empties them.
-- due_at: when a key that is hit evenly would have used up what it was hit for until now.
create unlogged table auth.rate_limits (
  key bytea primary key,
  due_at timestamptz not null,
  step interval not null,
  span interval not null
);

create index rate_limits_due_at on auth.rate_limits (due_at);

create unlogged table auth.guesses (
  key bytea primary key,
  failures integer not null,
  last_at timestamptz not null,
  locked_until timestamptz
);

create index guesses_last_at on auth.guesses (last_at);

create table auth.outbox (
  id bigint generated always as identity primary key,
  at timestamptz not null default now(),
  channel text not null,
  kind text not null,
  recipient text not null,
  subject text,
  body_text text not null,
  body_html text
);
