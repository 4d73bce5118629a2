// Calls every method of the published client and says which of them gave something else than the
// client expects. Arguments: the client's src folder, the project's URL, its anon and its service
// key, the admin port's address and token.

const [source, url, anon, service, admin, adminToken] = Deno.args;
const { createClient, MemoryStorage, Auth, Mongo, Postgrest, Functions, RealtimeClient, isTwoFactorChallenge } =
  await import(`${source}/index.ts`);
const { createServerClient, createBrowserClient } = await import(`${source}/ssr.ts`);
const { createPostgrest } = await import(`${source}/postgrest.ts`);
const { createMongo } = await import(`${source}/mongo.ts`);
const { createAuth } = await import(`${source}/auth.ts`);

const failures: string[] = [];
let done = 0;

// deno-lint-ignore no-explicit-any
type Any = any;

function text(value: unknown) {
  return JSON.stringify(value, (_, one) =>
    one !== null && typeof one === 'object' && !Array.isArray(one)
      ? Object.fromEntries(Object.entries(one).sort())
      : one) ?? 'undefined';
}

class Different extends Error {}

function equal(found: unknown, wanted: unknown) {
  if (text(found) !== text(wanted)) throw new Different(`${text(found)} is not ${text(wanted)}`);
}

function holds(ok: unknown, what: unknown) {
  if (!ok) throw new Different(text(what));
}

async function check(name: string, work: () => unknown) {
  done++;
  try {
    await work();
  } catch (error) {
    failures.push(`${name}: ${(error as Error).message}`);
  }
}

async function data(answer: PromiseLike<Any>): Promise<Any> {
  const { data, error } = await answer;
  if (error) throw new Different(text(error));
  return data;
}

async function refused(answer: PromiseLike<Any>, status: number, code: string, detail?: RegExp) {
  const { data, error } = await answer;
  equal(data, null);
  equal([error?.status, error?.code], [status, code]);
  holds(typeof error.detail === 'string' && (!detail || detail.test(error.detail)), error);
}

async function until(ok: () => unknown, what: () => unknown) {
  for (let i = 0; i < 200; i++) {
    if (ok()) return;
    await new Promise((r) => setTimeout(r, 50));
  }
  throw new Different(`timed out: ${text(what())}`);
}

async function asAdmin(method: string, path: string, body?: unknown) {
  const answer = await fetch(`${admin}/admin/v1/projects/default/${path}`, {
    method, headers: { authorization: `Bearer ${adminToken}` }, body: body && JSON.stringify(body),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(text(told));
  return told;
}

const mails = async (to: string) => (await asAdmin('GET', `outbox?to=${encodeURIComponent(to)}`)).messages;
const sql = (statements: string) => asAdmin('POST', 'sql', { sql: statements });
const many = { count: 1000, seconds: 60 }; // all of this comes from one address
const rate_limits = {
  signup_per_ip: many, message_per_ip: many, message_per_address: many, login_per_ip_and_email: many,
};

async function settings(section: string, value: object) {
  await asAdmin('PUT', `settings/${section}`, section === 'auth' ? { ...value, rate_limits } : value);
  await new Promise((r) => setTimeout(r, 500)); // every worker hears of it within a second
}

async function mail(to: string, kind: string) {
  for (let i = 0; i < 100; i++) {
    const found = (await mails(to)).find((one: Any) => one.kind === kind);
    if (found) return found;
    await new Promise((r) => setTimeout(r, 50));
  }
  throw new Different(`no ${kind} for ${to}`);
}

const code = (one: Any) => one.text.match(/\b(\d{6})\b/)[1];
const token = (one: Any) => one.text.match(/[?&]token=([\w.~-]+)/)[1];

// What the calls need

await sql(`
  create table authors (id int primary key, name text not null, email text unique);
  create table posts (id int generated always as identity primary key, author int references authors,
    title text not null, body text, tags text[] default '{}', meta jsonb default '{}', price numeric,
    during int4range, done boolean default false, doc tsvector generated always as
    (to_tsvector('english', title)) stored);
  alter table posts replica identity full;
  create table mine (id int primary key, owner uuid not null default auth.uid(), note text);
  alter table mine enable row level security;
  create policy own_writes on mine for insert with check (owner = auth.uid());
  create table own (id int primary key, owner uuid not null default auth.uid(), note text);
  alter table own enable row level security;
  create policy own on own using (owner = auth.uid()) with check (owner = auth.uid());
  create schema extra;
  grant usage on schema extra to anon, authenticated, service_role;
  create table extra.things (id int primary key, name text);
  grant all on extra.things to anon, authenticated, service_role;
  create function extra.twice(n int) returns int language sql immutable as 'select n * 2';
  create function add(a int, b int) returns int language sql immutable as 'select a + b';
  create function everything() returns setof authors language sql stable as 'select * from authors order by id';
  create function nothing() returns void language sql as 'select 1';
  create function me() returns uuid language sql stable as 'select auth.uid()';
  create function fails() returns int language plpgsql as $$ begin raise exception 'no luck'; end $$;
  insert into authors values (1, 'Ann', 'ann@example.com'), (2, 'Bob', null);
`);
await settings('postgres', { schemas: ['public', 'extra'] });
await settings('realtime', {
  tables: { posts: { rule: true } }, collections: { orders: { rule: true } },
  channels: { 'room:*': { subscribe: true, send: true, presence: true } },
});
await settings('auth', {});
await settings('mongo', {
  rules: {
    version: 1,
    collections: {
      orders: { read: true, write: true, bulkWrite: true },
      notes: {
        read: { filter: { user_id: '${auth.uid}' } }, insert: { set: { user_id: '${auth.uid}' } },
        update: { filter: { user_id: '${auth.uid}' } }, delete: { filter: { user_id: '${auth.uid}' } },
      },
    },
  },
});
await asAdmin('PUT', 'functions/echo', {
  files: {
    'index.ts': `Deno.serve(async (req: Request) => Response.json({ method: req.method,
      path: new URL(req.url).pathname + new URL(req.url).search, type: req.headers.get("content-type"),
      body: await req.text(), user: req.headers.get("x-ichibase-user-id"), own: req.headers.get("x-own") }))`,
  },
});

const ichi = createClient(url + '/', anon);
const q = (table: string) => ichi.from(table) as Any;

// Construction

await check('createClient refuses a secret key', () => {
  try {
    createClient(url, service);
  } catch (error) {
    return holds(/anon-key only/.test((error as Error).message), String(error));
  }
  throw new Different('it took it');
});

// Tables: writes

await check('insert, minimal', async () => equal(await data(q('posts').insert({ title: 'one', author: 1 })), null));
await check('insert, several, returned by select', async () =>
  equal(
    await data(q('posts').insert([{ title: 'two', author: 2, tags: ['x', 'y'] }, { title: 'three', author: 1, tags: ['y'] }])
      .select('id,title')),
    [{ id: 2, title: 'two' }, { id: 3, title: 'three' }],
  ));
await check('insert, single', async () =>
  equal((await data(q('posts').insert({ title: 'four', price: 1.5, during: '[1,5)', meta: { k: 'v', n: { a: 1 } } }).select().single())).price, 1.5));
await check('insert, returning', async () =>
  equal((await data(q('posts').insert({ title: 'five', body: 'a,b' }).returning()))[0].title, 'five'));
await check('insert, count', async () =>
  equal(await data(q('posts').insert({ title: 'six' }).count()), { rows: null, count: 1 }));
await check('insert, rows with other keys', () =>
  refused(q('posts').insert([{ title: 'a' }, { title: 'b', body: 'c' }]), 400, 'PGRST102'));
await check('upsert', async () => {
  equal(await data(q('authors').upsert({ id: 1, name: 'Anna', email: 'ann@example.com' }).select('name')), [{ name: 'Anna' }]);
  equal(await data(q('authors').upsert([{ id: 7, name: 'Cy', email: 'ann@example.com' }], { onConflict: 'email', ignoreDuplicates: true }).select()), []);
  equal(await data(q('authors').upsert({ id: 3, name: 'Cy', email: 'c' }, { onConflict: 'email' })), null);
});
await check('update', async () => {
  equal(await data(q('posts').update({ done: true }).eq('title', 'six')), null);
  equal(await data(q('posts').update({ body: 'b' }).eq('title', 'six').select('body')), [{ body: 'b' }]);
  equal(await data(q('posts').update({ body: 'b' }).eq('title', 'six').count()), { rows: null, count: 1 });
  equal(await data(q('posts').update({ body: 'b' }).eq('title', 'nobody').select()), []);
});
await check('delete', async () => {
  equal(await data(q('posts').delete().eq('title', 'six').select('title')), [{ title: 'six' }]);
  equal(await data(q('posts').delete().eq('title', 'six')), null);
  equal(await data(q('posts').delete().eq('title', 'six').count()), { rows: null, count: 0 });
});
await check('setHeader overrides Prefer', async () =>
  equal(await data(q('authors').insert({ id: 9, name: 'Zed' }).setHeader('Prefer', 'missing=default')), null));
await check('unique violation', () => refused(q('authors').insert({ id: 1, name: 'x' }), 409, '23505', /duplicate key/));
await check('foreign key violation', () => refused(q('posts').insert({ title: 'x', author: 99 }), 409, '23503'));
await check('not null violation', () => refused(q('posts').insert({ title: null }), 400, '23502'));
await check('bad body', () => refused(q('authors').insert({ id: 'x', name: 'x' }), 400, '22P02'));
await check('unknown column', () => refused(q('authors').insert({ nope: 1 }), 400, 'PGRST204'));

// Tables: reads

const titles = async (query: Any) => (await data(query.order('id'))).map((row: Any) => row.title);
const posts = () => q('posts').select('id,title');
for (
  const [name, query, wanted] of [
    ['eq', posts().eq('title', 'one'), ['one']],
    ['neq', posts().neq('title', 'one').lte('id', 3), ['two', 'three']],
    ['gt', posts().gt('id', 4), ['five']],
    ['gte, lt', posts().gte('id', 2).lt('id', 4), ['two', 'three']],
    ['lte', posts().lte('id', 1), ['one']],
    ['like', posts().like('title', 't%'), ['two', 'three']],
    ['ilike', posts().ilike('title', 'T*'), ['two', 'three']],
    ['fts', posts().fts('doc', 'two'), ['two']],
    ['fts, phrase', posts().fts('doc', 'two', { type: 'phrase' }), ['two']],
    ['fts, websearch, config', posts().fts('doc', 'two or one', { type: 'websearch', config: 'english' }), ['one', 'two']],
    ['in', posts().in('title', ['one', 'two', 'x y']), ['one', 'two']],
    ['in, quoted', posts().in('body', ['"a,b"', 'c']), ['five']],
    ['is', posts().is('done', false).is('body', null).eq('id', 1), ['one']],
    ['contains, array', posts().contains('tags', ['x']), ['two']],
    ['contains, object', posts().contains('meta', { k: 'v' }), ['four']],
    ['containedBy', posts().containedBy('tags', ['y']).in('id', [2, 3]), ['three']],
    ['overlaps', posts().overlaps('tags', ['y', 'z']), ['two', 'three']],
    ['rangeLt', posts().rangeLt('during', '[10,20)'), ['four']],
    ['rangeGt', posts().rangeGt('during', '[-5,0)'), ['four']],
    ['rangeLte', posts().rangeLte('during', '[1,9)'), ['four']],
    ['rangeGte', posts().rangeGte('during', '[0,9)'), ['four']],
    ['rangeAdjacent', posts().rangeAdjacent('during', '[5,9)'), ['four']],
    ['not', posts().not('title', 'like', 't%').not('id', 'gt', 4), ['one', 'four']],
    ['or', posts().or('title.eq.one,and(id.gt.2,id.lt.4)'), ['one', 'three']],
    ['and', posts().and('id.gt.2,id.lt.4'), ['three']],
    ['match', posts().match({ title: 'one', done: false }), ['one']],
    ['filter, match', posts().filter('title', 'match', '^o'), ['one']],
    ['filter, imatch', posts().filter('title', 'imatch', '^O'), ['one']],
    ['filter, isdistinct', posts().filter('body', 'isdistinct', 'a,b').lt('id', 3), ['one', 'two']],
    ['filter, adj', posts().filter('during', 'adj', '[5,9)'), ['four']],
    ['a column of JSON', posts().eq('meta->>k', 'v'), ['four']],
    ['a column of JSON, deeper', posts().eq('meta->n->>a', '1'), ['four']],
    ['eq, null is a text', posts().eq('title', null), []],
    ['a literal plus and blank', posts().eq('title', 'a +b'), []],
  ] as [string, Any, string[]][]
) await check(name, async () => equal(await titles(query), wanted));

await check('order', async () => {
  const order = async (query: Any) => (await data(query)).map((row: Any) => row.id);
  equal(await order(posts().order('id', { ascending: false }).limit(2)), [5, 4]);
  equal(await order(posts().order('price', { ascending: false, nullsFirst: false }).order('id')), [4, 1, 2, 3, 5]);
  equal((await order(posts().order('price', { nullsFirst: true }).order('id')))[0], 1);
  equal(await order(posts().order('id').limit(2).offset(1)), [2, 3]);
});
await check('select with blanks, alias, cast, JSON and embedding', async () =>
  equal(await data(q('posts').select('id, name:title, price::text, meta->n, writer:authors(name, email)').eq('id', 1)), [
    { id: 1, name: 'one', price: null, n: null, writer: { name: 'Anna', email: 'ann@example.com' } },
  ]));
await check('embedding, inner and to many', async () => {
  equal((await data(q('posts').select('id,authors!inner(name)').eq('authors.name', 'Bob'))), [{ id: 2, authors: { name: 'Bob' } }]);
  equal(await data(q('authors').select('name,posts(title)').eq('id', 1).order('id')), [{ name: 'Anna', posts: [{ title: 'one' }, { title: 'three' }] }]);
});
await check('a read without select', async () => equal((await data(q('authors').eq('id', 2))), [{ id: 2, name: 'Bob', email: null }]));
await check('range and count', async () => {
  await sql('analyze posts');
  equal(await data(posts().order('id').range(0, 1).count()), { rows: [{ id: 1, title: 'one' }, { id: 2, title: 'two' }], count: 5 });
  equal(await data(posts().eq('id', 0).count()), { rows: [], count: 0 });
  equal((await data(posts().count('planned'))).rows.length, 5);
  equal((await data(posts().count('estimated'))).count, 5);
  await refused(posts().range(100, 101).count(), 416, 'PGRST103');
  equal(await data(posts().range(100, 101)), []);
});
await check('head', async () => {
  equal(await data(q('posts').select().head().count()), { rows: [], count: 5 });
  equal(await data(q('posts').select().head()), null);
  await refused(q('nowhere').select().head(), 404, 'http_404');
});
await check('single', async () => {
  equal((await data(posts().eq('id', 1).single())).title, 'one');
  await refused(posts().single(), 406, 'PGRST116');
  await refused(posts().eq('id', 0).single(), 406, 'PGRST116');
  await refused(q('authors').update({ name: 'same' }).in('id', [1, 2]).select().single(), 406, 'PGRST116');
  equal((await data(q('authors').eq('id', 2)))[0].name, 'Bob');
});
await check('maybeSingle', async () => {
  equal((await data(posts().eq('id', 1).maybeSingle())).title, 'one');
  equal(await data(posts().eq('id', 0).maybeSingle()), null);
  equal((await data(posts().order('id').limit(4).maybeSingle())).title, 'one');
});
await check('csv', async () => equal(await data(q('authors').select('id,name').lte('id', 2).order('id').csv()), 'id,name\n1,Anna\n2,Bob'));
await check('schema', async () => {
  equal(await data(q('things').schema('extra').insert({ id: 1, name: 'a' }).select()), [{ id: 1, name: 'a' }]);
  equal(await data(q('things').schema('extra').select('name')), [{ name: 'a' }]);
  equal(await data(q('things').schema('extra').update({ name: 'b' }).eq('id', 1)), null);
  equal(await data(q('things').schema('extra').delete().eq('id', 1).count()), { rows: null, count: 1 });
  await refused(q('users').schema('auth').select(), 406, 'PGRST106');
  await refused(q('things').select(), 404, 'PGRST205');
});
await check('bad query', async () => {
  await refused(posts().or('nonsense'), 400, 'PGRST100');
  await refused(posts().eq('nope', 1), 400, '42703');
  await refused(q('posts').select('id,nobody(name)'), 400, 'PGRST200');
});
await check('row security', async () => {
  await refused(q('mine').insert({ id: 1 }), 401, '42501');
  equal(await data(q('mine').select()), []);
});
await check('a spoiled key', async () => {
  const { error } = await createClient(url, anon + 'x').from('posts').select();
  holds(error.status === 401 && typeof error.code === 'string', error);
});

// Functions of the database

await check('rpc', async () => {
  equal(await data(ichi.rpc('add', { a: 1, b: 2 })), 3);
  equal((await data(ichi.rpc('everything')))[0].name, 'Anna');
  equal(await data(ichi.rpc('nothing')), null);
  equal(await data(ichi.rpc('me')), null);
  equal(await data(ichi.rpc('twice', { n: 4 }, { schema: 'extra' })), 8);
  equal((await data(ichi.rpc('everything', {}, { count: 'exact' }))).length, 4);
  equal(await data(ichi.rpc('everything', {}, { head: true })), null);
  equal(await data(ichi.rpc('twice', { n: 1 }, { head: true, schema: 'extra' })).catch(() => 'refused'), 'refused');
  await refused(ichi.rpc('add', { a: 1 }), 404, 'PGRST202');
  await refused(ichi.rpc('nowhere'), 404, 'PGRST202');
  await refused(ichi.rpc('fails'), 400, 'P0001', /^no luck$/);
});

// Users

const person = { email: `ann.${Date.now()}@example.com`, password: 'tangerine lamp 41' };
const events: string[] = [];
const off = ichi.onAuthStateChange((event: string) => events.push(event));
await check('signup', async () => {
  const told = await data(ichi.auth.signup(person));
  equal([Object.keys(told).sort(), told.email, told.needs_verification], [['email', 'needs_verification', 'user_id'], person.email, false]);
  equal(ichi.getSession(), null);
  await refused(ichi.auth.signup(person), 409, 'email_taken');
  await refused(ichi.auth.signup({ email: 'nonsense', password: person.password }), 400, 'invalid_email');
  await refused(ichi.auth.signup({ email: 'x@example.com', password: 'short' }), 400, 'weak_password');
});
await check('login', async () => {
  await refused(ichi.auth.login({ ...person, password: 'wrong wrong wrong' }), 401, 'invalid_credentials');
  const told = await data(ichi.auth.login(person));
  equal(isTwoFactorChallenge(told), false);
  holds(Number.isInteger(told.expires_in) && told.user.id && told.user.email === person.email, told);
  holds(Math.abs(ichi.getSession().expires_at - Date.now() / 1000 - told.expires_in) < 5, ichi.getSession());
});
await check('getUser', async () => {
  const user = await ichi.auth.getUser();
  equal([user.id, user.email, user.verified_at], [ichi.getSession().user.id, person.email, null]);
});
await check('signed in: tables, functions, documents', async () => {
  const uid = ichi.getSession().user.id;
  equal(await data(ichi.rpc('me')), uid);
  equal(await data(q('mine').insert({ id: 1 })), null); // needs no right to read
  equal((await data(q('own').insert({ id: 1 }).select()))[0].owner, uid);
  await refused(q('own').insert({ id: 2, owner: '11111111-1111-4111-8111-111111111111' }), 403, '42501');
  equal((await data(ichi.functions.invoke('echo'))).user, uid);
  const notes = ichi.mongo.collection('notes');
  await data(notes.insertOne({ text: 'mine' }));
  const found = (await data(notes.find())).docs;
  equal([found.length, found[0].user_id], [1, uid]);
});
await check('refresh', async () => {
  const before = ichi.getSession();
  const told = await data(ichi.auth.refresh());
  holds(told.refresh_token !== before.refresh_token && Number.isInteger(told.expires_in), told);
  equal(ichi.getSession().access_token, told.access_token);
  equal(ichi.getSession().user, before.user);
});
await check('an expired token is refreshed once, for many calls at once', async () => {
  const session = ichi.getSession();
  const [head, , signature] = session.access_token.split('.');
  await ichi.auth.setSession({ ...session, access_token: `${head}.eyJzdWIiOiJ4IiwiZXhwIjoxfQ.${signature}` });
  const seen = events.filter((one) => one === 'TOKEN_REFRESHED').length;
  const answers = await Promise.all([
    ichi.rpc('me'), q('own').select(), ichi.functions.invoke('echo'), ichi.mongo.collection('notes').find(),
  ]);
  equal(answers.map((one: Any) => one.error), [null, null, null, null]);
  equal(events.filter((one) => one === 'TOKEN_REFRESHED').length, seen + 1);
});
await check('the stateless Auth', async () => {
  const auth = new Auth(url, anon, fetch);
  const other = await data(auth.login(person));
  equal((await data(auth.getUser(other.access_token))).email, person.email);
  const updated = await data(auth.updateUser(other.access_token, { metadata: { theme: 'dark' } }));
  equal([updated.metadata, updated.email_verified, typeof updated.created_at], [{ theme: 'dark' }, false, 'string']);
  equal((await data(auth.updateUser(other.access_token, { metadata: { tz: 'UTC' } }))).metadata, { tz: 'UTC' });
  await refused(auth.updateUser(other.access_token, { metadata: { much: 'x'.repeat(9000) } }), 400, 'metadata_too_large');
  const { sessions } = await data(auth.listSessions(other.access_token));
  equal(sessions.length, 2);
  equal(Object.keys(sessions[0]).filter((k) => ['id', 'user_agent', 'ip', 'issued_at', 'last_used_at', 'expires_at'].includes(k)).length, 6);
  holds(sessions[0].last_used_at >= sessions[1].last_used_at && sessions[0].user_agent.includes('Deno'), sessions);
  await refused(auth.changePassword(other.access_token, 'wrong wrong', 'another lamp 42'), 401, 'invalid_credentials');
  const changed = await data(auth.changePassword(other.access_token, person.password, 'another lamp 42'));
  equal([changed.changed, typeof changed.hint], [true, 'string']);
  person.password = 'another lamp 42';
  equal((await data(auth.getUser(other.access_token))).email, person.email); // goes on working
  let third = await data(auth.login(person));
  const [newest] = (await data(auth.listSessions(other.access_token))).sessions;
  equal(await data(auth.revokeSession(other.access_token, newest.id)), { revoked: true });
  equal(await data(auth.revokeSession(other.access_token, newest.id)), { revoked: true });
  await refused(auth.revokeSession(other.access_token, '11111111-1111-4111-8111-111111111111'), 404, 'session_not_found');
  third = await data(auth.login(person));
  holds((await auth.logout(third.refresh_token, third.access_token)).error === null, 'logout');
  holds((await auth.logoutAll((await data(auth.login(person))).access_token)).error === null, 'logoutAll');
  await refused(auth.refresh(other.refresh_token), 401, 'invalid_refresh_token');
  await refused(new Auth(url, '', fetch).login(person), 401, 'missing_api_key');
});
await check('logout', async () => {
  await data(ichi.auth.login(person));
  await ichi.auth.logout();
  equal([ichi.getSession(), await ichi.auth.getUser(), events.at(-1)], [null, null, 'SIGNED_OUT']);
  await refused(ichi.auth.refresh(), 401, 'no_session');
  equal(await data(ichi.rpc('me')), null);
});
await check('password reset', async () => {
  await settings('auth', { password_reset: 'both', verification: 'both', passwordless: 'both', twofa: 'off' });
  equal(await data(ichi.auth.requestPasswordReset(person.email)), { sent: true });
  const reset = await mail(person.email, 'password_reset');
  await refused(ichi.auth.confirmPasswordResetOtp(person.email, '000000', 'third lamp 43'), 400, 'invalid_code');
  equal(await data(ichi.auth.confirmPasswordResetOtp(person.email, code(reset), 'third lamp 43')), { reset: true });
  await refused(ichi.auth.confirmPasswordReset('nonsense', 'third lamp 43'), 400, 'expired_token');
  person.password = 'third lamp 43';
  equal(await data(ichi.auth.requestPasswordReset('nobody@example.com')), { sent: true });
  await data(ichi.auth.login(person));
  await ichi.auth.logout();
});
await check('password reset by a link', async () => {
  const other = { email: `bob.${Date.now()}@example.com`, password: 'tangerine lamp 41' };
  await data(ichi.auth.signup(other));
  await data(ichi.auth.requestPasswordReset(other.email));
  const link = token(await mail(other.email, 'password_reset'));
  equal(await data(ichi.auth.confirmPasswordReset(link, 'third lamp 43')), { reset: true });
  await refused(ichi.auth.confirmPasswordReset(link, 'third lamp 44'), 400, 'expired_token');
});
await check('verification of an address', async () => {
  const [a, b] = ['c', 'd'].map((name) => ({ email: `${name}.${Date.now()}@example.com`, password: 'tangerine lamp 41' }));
  await settings('auth', { require_verified_email: true, verification: 'both', passwordless: 'both' });
  equal((await data(ichi.auth.signup(a))).needs_verification, true);
  await refused(ichi.auth.login(a), 403, 'email_not_verified');
  equal(await data(ichi.auth.verifyEmail(token(await mail(a.email, 'verify_email')))), { verified: true });
  await data(ichi.auth.login(a));
  holds(typeof (await ichi.auth.getUser()).verified_at === 'string', 'verified_at');
  await ichi.auth.logout();
  await data(ichi.auth.signup(b));
  await refused(ichi.auth.verifyEmailOtp(b.email, '000000'), 400, 'invalid_code');
  equal(await data(ichi.auth.verifyEmailOtp(b.email, code(await mail(b.email, 'verify_email')))), { verified: true });
  equal(await data(ichi.auth.resendVerification('nobody@example.com')), { sent: true });
});
await check('sign-in without a password', async () => {
  const email = `new.${Date.now()}@example.com`;
  equal(await data(ichi.auth.signInWithOtp({ email })), { sent: true });
  await refused(ichi.auth.verifyOtp({ email, code: '000000' }), 400, 'invalid_code');
  const told = await data(ichi.auth.verifyOtp({ email, code: code(await mail(email, 'passwordless')) }));
  equal([told.user.email, ichi.getSession().user.email], [email, email]);
  const link = `link.${Date.now()}@example.com`;
  await data(ichi.auth.signInWithOtp({ email: link }));
  const sent = token(await mail(link, 'passwordless'));
  equal((await data(ichi.auth.verifyMagicLink(sent))).user.email, link);
  await refused(ichi.auth.verifyMagicLink(sent), 400, 'expired_token');
});
await check('two steps', async () => {
  await settings('auth', { twofa: 'both', passwordless: 'both' });
  await ichi.auth.logout();
  const told = await data(ichi.auth.login(person));
  equal([isTwoFactorChallenge(told), told.methods, ichi.getSession()], [true, ['otp', 'magic'], null]);
  await refused(ichi.auth.verifyTwoFactor({ email: person.email, code: '000000' }), 400, 'invalid_code');
  const sent = await mail(person.email, 'twofa');
  equal((await data(ichi.auth.verifyTwoFactor({ email: person.email, code: code(sent) }))).user.email, person.email);
  await refused(ichi.auth.verifyTwoFactorMagic('nonsense'), 400, 'expired_token');
  await settings('auth', {});
});
await check('sign-in by phone', async () => {
  const auth = new Auth(url, anon, fetch);
  await refused(auth.signInWithPhone({ phone: '+14155551234' }), 403, 'phone_disabled');
  await settings('auth', { phone: { enabled: true } });
  await refused(auth.signInWithPhone({ phone: '0155' }), 400, 'invalid_phone');
  equal(await data(auth.signInWithPhone({ phone: '+14155551234' })), { sent: true });
  const sent = (await asAdmin('GET', 'outbox')).messages.find((one: Any) => one.channel === 'sms');
  const told = await data(auth.verifyPhoneOtp({ phone: '+14155551234', code: code(sent) }));
  equal([told.user.email, told.user.phone], [null, '+14155551234']);
});
off();

// Documents

await check('documents', async () => {
  await ichi.auth.logout();
  const orders = ichi.mongo.collection('orders');
  const { insertedId } = await data(orders.insertOne({ total: 5, tags: ['a'] }));
  holds(/^[0-9a-f]{24}$/.test(insertedId), insertedId);
  const { insertedIds } = await data(orders.insertMany([{ _id: 1, total: 6 }, { _id: 'text', total: 7 }]));
  equal(insertedIds, ['1', 'text']);
  equal(await data(orders.find({ total: { $gte: 6 } }, { sort: { total: -1 }, limit: 1, projection: { total: 1 } })), {
    docs: [{ _id: 'text', total: 7 }], count: 1, truncated: false,
  });
  equal((await data(orders.find({}, { skip: 1, sort: { total: 1 } }))).docs.map((one: Any) => one.total), [6, 7]);
  equal((await data(orders.findOne({ _id: insertedId }))).doc.total, 5);
  equal(await data(orders.findOne({ _id: 'none' })), { doc: null });
  equal(await data(orders.count({ total: { $gt: 5 } })), { count: 2 });
  equal((await data(orders.distinct('total', { total: { $lt: 7 } }))).values.sort(), [5, 6]);
  const summed = await data(orders.aggregate([{ $group: { _id: null, sum: { $sum: '$total' } } }]));
  equal([summed.docs, summed.count, summed.truncated], [[{ _id: null, sum: 18 }], 1, false]);
  const one = await data(orders.updateOne({ _id: 1 }, { $set: { total: 8 }, $inc: { n: 1 } }));
  equal([one.matched, one.modified, one.upsertedId], [1, 1, undefined]);
  holds((await data(orders.updateOne({ _id: 'up' }, { $set: { total: 1 } }, { upsert: true }))).upsertedId === 'up', 'upsertedId');
  equal((await data(orders.updateMany({ total: { $gt: 0 } }, { $set: { seen: true } }))).modified, 4);
  const replaced = await data(orders.replaceOne({ _id: 'up' }, { total: 2 }));
  equal([replaced.matched, replaced.modified, replaced.upserted], [1, 1, 0]);
  equal((await data(orders.replaceOne({ _id: 'up2' }, { total: 3 }, { upsert: true }))).upserted_id, 'up2');
  await refused(orders.replaceOne({ _id: 1 }, { $set: { a: 1 } }), 400, 'operator_not_allowed');
  equal((await data(orders.findOneAndUpdate({ _id: 1 }, { $inc: { n: 1 } }))).doc.n, 2);
  equal((await data(orders.findOneAndUpdate({ _id: 1 }, { $inc: { n: 1 } }, { returnDocument: 'before', projection: { n: 1 } }))).doc, { _id: 1, n: 2 });
  equal(await data(orders.findOneAndUpdate({ _id: 'up3' }, { $set: { n: 1 } }, { upsert: true })), { doc: null });
  equal((await data(orders.findOneAndUpdate({ total: { $gt: 0 } }, { $set: { top: 1 } }, { sort: { total: -1 } }))).doc._id, 1);
  equal((await data(orders.findOneAndDelete({ _id: 'up3' }))).doc.n, 1);
  equal(await data(orders.findOneAndDelete({ _id: 'up3' })), { doc: null });
  const many = await data(orders.bulkWrite([
    { op: 'insertOne', doc: { _id: 'b1' } }, { op: 'updateOne', filter: { _id: 'b1' }, update: { $set: { x: 1 } } },
    { op: 'updateMany', filter: { _id: 'b1' }, update: { $set: { y: 1 } } },
    { op: 'replaceOne', filter: { _id: 'b2' }, replacement: { z: 1 }, upsert: true },
    { op: 'deleteOne', filter: { _id: 'b1' } }, { op: 'deleteMany', filter: { _id: 'b2' } },
  ], { ordered: true }));
  equal(many, { inserted: 1, matched: 2, modified: 2, deleted: 2, upserted: 1, upserted_ids: { 3: 'b2' } });
  equal(await data(orders.deleteOne({ _id: 'up2' })), { deleted: 1 });
  equal((await data(orders.deleteMany({ _id: { $in: ['up', 'text'] } }))).deleted, 2);
  await refused(orders.insertOne({ _id: 1 }), 409, 'duplicate_key');
  await refused(orders.find({ $where: '1' }), 400, 'operator_not_allowed');
  await refused(orders.aggregate([{ $out: 'x' }]), 400, 'stage_not_allowed');
  await refused(ichi.mongo.collection('secret').find(), 403, 'policy_denied');
  await refused(ichi.mongo.collection('notes').insertOne({}), 403, 'policy_denied');
  await refused(ichi.mongo.collection('_mongo').find(), 400, 'invalid_collection');
  await refused(new Mongo(url, '', fetch).collection('orders').find(), 401, 'missing_api_key');
  const secret = new Mongo(url, service, fetch).collection('secret');
  await data(secret.insertOne({ a: 1 }, { realtime: false }));
  equal((await data(secret.find())).count, 1);
});

// Edge functions

await check('functions.invoke', async () => {
  const told = await data(ichi.functions.invoke('echo', { body: { a: 1 }, path: '/x/y?z=1', headers: { 'X-Own': '1' } }));
  equal([told.method, told.path, told.type, told.body, told.own], ['POST', '/functions/echo/x/y?z=1', 'application/json', '{"a":1}', '1']);
  equal((await data(ichi.functions.invoke('echo', { method: 'GET' }))).method, 'GET');
  for (const method of ['PUT', 'PATCH', 'DELETE']) equal((await data(ichi.functions.invoke('echo', { method, body: 'b' }))).body, 'b');
  equal((await data(ichi.functions.invoke('echo', { body: 'text' }))).type, 'text/plain;charset=UTF-8');
  equal((await data(ichi.functions.invoke('echo', { body: new TextEncoder().encode('abc') }))).body, 'abc');
  equal((await data(ichi.functions.invoke('echo', { body: new TextEncoder().encode('abc').buffer }))).body, 'abc');
  equal((await data(ichi.functions.invoke('echo', { body: new Blob(['abc'], { type: 'a/b' }) }))).type, 'a/b');
  await refused(ichi.functions.invoke('nobody'), 404, 'function_not_found');
  await refused(new Functions(url, 'ich_pub_x', fetch).invoke('echo'), 401, 'invalid_api_key');
});

// Realtime

await check('realtime', async () => {
  const [one, two] = [createClient(url, anon), createClient(url, anon)];
  const got: Record<string, Any[]> = { rows: [], inserts: [], docs: [], room: [], other: [] };
  const keep = (name: string) => (message: Any) => got[name].push(message);
  const rows = one.realtime.subscribe({ kind: 'postgres', table: 'posts' }, keep('rows'));
  two.realtime.subscribe({ kind: 'postgres', table: 'public.posts', events: ['INSERT'], filter: { title: 'wanted' } }, keep('inserts'));
  one.realtime.subscribe({ kind: 'mongo', collection: 'orders' }, keep('docs'));
  const room = one.realtime.subscribe({ kind: 'broadcast', channel: 'room:1', presence: true, state: { name: 'one' } }, keep('room'));
  await until(() => got.room.length, () => got);
  equal([got.room[0].type, Object.values(got.room[0].presences)], ['presence_state', [{ uid: '', state: { name: 'one' } }]]);
  const other = two.realtime.subscribe({ kind: 'broadcast', channel: 'room:1', presence: true, state: { name: 'two' } }, keep('other'));
  await until(() => got.room.length > 1 && got.other.length, () => got);
  equal(Object.values(got.room[1].joins as Any)[0], { uid: '', state: { name: 'two' } });
  equal(Object.keys(got.other[0].presences).length, 2);
  room.send('chat', { t: 1 });
  await until(() => got.other.length > 1, () => got);
  equal([got.other[1].type, got.other[1].event, got.other[1].payload, got.other[1].from], ['broadcast', 'chat', { t: 1 }, '']);
  other.track({ name: 'changed' });
  await until(() => got.room.length > 2, () => got);
  equal(Object.values(got.room[2].joins as Any)[0], { uid: '', state: { name: 'changed' } });
  await data(q('posts').insert([{ title: 'wanted' }, { title: 'other' }]));
  await data(q('posts').update({ body: 'new' }).eq('title', 'wanted'));
  await data(q('posts').delete().eq('title', 'wanted'));
  await until(() => got.rows.length >= 4, () => got);
  equal(got.rows.map((m) => [m.type, m.event, m.table]), ['INSERT', 'INSERT', 'UPDATE', 'DELETE'].map((e) => ['change', e, 'public.posts']));
  equal([got.rows[2].record.body, got.rows[2].old.body, got.rows[3].old.title], ['new', null, 'wanted']);
  await until(() => got.inserts.length, () => got);
  const { insertedId } = await data(ichi.mongo.collection('orders').insertOne({ rt: 1 }));
  await data(ichi.mongo.collection('orders').updateOne({ _id: insertedId }, { $set: { rt: 2 } }));
  await data(ichi.mongo.collection('orders').deleteOne({ _id: insertedId }));
  await until(() => got.docs.length >= 3, () => got);
  equal(got.docs.map((m) => [m.event, m.collection, m.record?._id ?? m.old._id]), ['insert', 'update', 'delete'].map((e) => [e, 'orders', insertedId]));
  await data(new Mongo(url, service, fetch).collection('orders').insertOne({ _id: 'quiet' }, { realtime: false }));
  await data(ichi.mongo.collection('orders').insertOne({ _id: 'loud' }));
  await until(() => got.docs.length >= 4, () => got);
  equal(got.docs[3].record._id, 'loud');
  equal(got.inserts.map((m) => [m.event, m.record.title]), [['INSERT', 'wanted']]);
  rows.unsubscribe();
  other.unsubscribe();
  await until(() => Object.keys(got.room.at(-1).leaves ?? {}).length, () => got.room);
  one.realtime.disconnect();
  two.realtime.disconnect();
});

// Sessions that are kept, and servers

await check('a session is kept', async () => {
  const storage = new MemoryStorage();
  const first = createClient(url, anon, { storage, storageKey: 'k' });
  await data(first.auth.login(person));
  const second = createClient(url, anon, { storage, storageKey: 'k' });
  equal((await second.auth.getUser()).email, person.email);
  await second.auth.loadSession();
  await second.auth.logout();
  equal(storage.getItem('k'), null);
});
await check('createServerClient and createBrowserClient', async () => {
  const jar = new Map<string, string>();
  const cookies = {
    getAll: () => [...jar].map(([name, value]) => ({ name, value })),
    setAll: (all: Any[]) => all.forEach(({ name, value }) => jar.set(name, value)),
  };
  await data(createServerClient(url, anon, { cookies }).auth.login(person));
  equal((await createServerClient(url, anon, { cookies }).auth.getUser()).email, person.email);
  holds(createBrowserClient(url, anon) === createBrowserClient(url, anon), 'not one');
});
await check('the packages for servers', async () => {
  equal((await data(createPostgrest({ url, key: service }).from('own').select())).length, 1);
  equal(await data(new Postgrest(url, anon, fetch).asUser(service).rpc('add', { a: 1, b: 1 })), 2);
  equal((await data(createMongo({ url, key: service }).collection('secret').count())).count, 1);
  holds((await createAuth({ url, key: anon }).getUser()).error.status === 401, 'getUser');
  holds(RealtimeClient, 'RealtimeClient');
});

console.log(JSON.stringify({ done, failures }));
Deno.exit(0);
