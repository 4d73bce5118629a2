// The calls of Supabase's functions client against a running server, and then those that the
// project's own client makes: any method, a path and a query after the name, the user's token.
// Arguments: base URL of /functions, publishable key, token of a signed-in user.
import assert from "node:assert/strict";
import {
  FunctionRegion, FunctionsClient, FunctionsFetchError, FunctionsHttpError,
} from "@supabase/functions-js";

const [url, key, token] = process.argv.slice(2);
const headers = { apikey: key, Authorization: `Bearer ${key}` };
const functions = new FunctionsClient(url, { headers });
const ok = ({ data, error }) => {
  assert.equal(error, null, String(error));
  return data;
};

// bodies, and what the client makes of answers
let told = ok(await functions.invoke("mirror", { body: { name: "Ann" } }));
assert.deepEqual([told.method, told.type, told.text], ["POST", "application/json", '{"name":"Ann"}']);
assert.deepEqual([told.role, told.user], ["anon", null]);
told = ok(await functions.invoke("mirror", { body: "plain" }));
assert.deepEqual([told.type.split(";")[0], told.text], ["text/plain", "plain"]);
told = ok(await functions.invoke("mirror", { body: new Blob(["bytes"]) }));
assert.deepEqual([told.type, told.text], ["application/octet-stream", "bytes"]);
told = ok(await functions.invoke("mirror", { body: new TextEncoder().encode("raw").buffer }));
assert.equal(told.text, "raw");
const form = new FormData();
form.set("field", "value");
form.set("file", new Blob(["content"]), "a.txt");
told = ok(await functions.invoke("mirror", { body: form }));
assert.deepEqual(told.form, { field: "value", file: "a.txt:content" });
told = ok(await functions.invoke("mirror", { method: "GET", headers: { "x-own": "1" } }));
assert.deepEqual([told.method, told.own, told.text], ["GET", "1", ""]);
for (const method of ["PUT", "PATCH", "DELETE"]) {
  told = ok(await functions.invoke("mirror", { method, body: { a: 1 } }));
  assert.deepEqual([told.method, told.text], [method, '{"a":1}']);
}
told = ok(await functions.invoke("mirror", { body: {}, region: FunctionRegion.UsEast1 }));
assert.equal(told.method, "POST");
assert.equal(ok(await functions.invoke("mirror/text", { body: {} })), "some text");
assert.equal((await ok(await functions.invoke("mirror/bytes", { body: {} })).text()), "abc");
const streamed = ok(await functions.invoke("mirror/events", { body: {} }));
assert.equal(await streamed.text(), "data: 1\n\ndata: 2\n\n");

// a signed-in user
const mine = new FunctionsClient(url, { headers: { apikey: key } });
mine.setAuth(token);
told = ok(await mine.invoke("mirror", { body: {} }));
assert.equal(told.role, "authenticated");
assert.match(told.user, /^[0-9a-f-]{36}$/);

// errors
const failure = async (client, name, options = {}) => {
  const { data, error } = await client.invoke(name, { body: {}, ...options });
  assert.equal(data, null);
  assert.ok(error instanceof FunctionsHttpError, String(error));
  return [error.context.status, (await error.context.json()).code];
};
assert.deepEqual(await failure(functions, "missing"), [404, "function_not_found"]);
assert.deepEqual(await failure(functions, "mirror/throw"), [500, "function_error"]);
assert.deepEqual(await failure(functions, "mirror/teapot"), [418, "own_code"]);
const nobody = new FunctionsClient(url);
assert.deepEqual(await failure(nobody, "mirror"), [401, "missing_api_key"]);
const late = await functions.invoke("mirror/slow", { body: {}, timeout: 300 });
assert.ok(late.error instanceof FunctionsFetchError);

// the project's own client: only `apikey`, the user's token beside it, a path and a query
const call = async (path, { method = "POST", user, body, headers = {} } = {}) => {
  const given = { apikey: key, ...headers };
  if (user) given.Authorization = `Bearer ${user}`;
  const raw = typeof body === "string" || body instanceof Uint8Array;
  if (body !== undefined && !raw && !given["Content-Type"]) given["Content-Type"] = "application/json";
  const sent = body === undefined || raw ? body : JSON.stringify(body);
  const answer = await fetch(`${url}/${path}`, { method, headers: given, body: sent });
  const text = await answer.text();
  let data = text;
  try {
    data = text === "" ? null : JSON.parse(text);
  } catch { /* not JSON: handed through as text */ }
  return { status: answer.status, data };
};
let done = await call("mirror/items/42?full=1&x=a%20b", { body: { a: 1 } });
assert.deepEqual([done.status, done.data.role, done.data.text], [200, "anon", '{"a":1}']);
assert.equal(done.data.url, `${url}/mirror/items/42?full=1&x=a%20b`);
done = await call("mirror", { body: { a: 1 }, user: token });
assert.equal(done.data.role, "authenticated");
done = await call("mirror", { method: "GET" });
assert.deepEqual([done.data.method, done.data.text], ["GET", ""]);
assert.deepEqual((await call("mirror/empty")), { status: 204, data: null });
done = await call("mirror", { body: {}, user: token.slice(0, -3) + "abc" });
assert.deepEqual([done.status, done.data.code], [401, "invalid_token"]);
assert.equal(typeof done.data.detail, "string");
console.log("ok");
