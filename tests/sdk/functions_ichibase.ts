// Calls functions by the published client, beside `mirror` the gateway to storage that the client's
// own examples hold. Arguments: the client's src folder, the project's URL, the publishable key.

const [source, url, key] = Deno.args;
const { createClient } = await import(`${source}/client.ts`);
const ichi = createClient(url, key);

function equal(found: unknown, wanted: unknown) {
  const [a, b] = [JSON.stringify(found), JSON.stringify(wanted)];
  if (a !== b) throw new Error(`${a} is not ${b}`);
}

// deno-lint-ignore no-explicit-any
async function call(name: string, options: any = {}) {
  const { data, error } = await ichi.functions.invoke(name, options);
  if (error) throw new Error(JSON.stringify(error));
  return data;
}

let told = await call("mirror", { body: { name: "Ann" } });
equal([told.method, told.type, told.text], ["POST", "application/json", '{"name":"Ann"}']);
equal([told.role, told.user], ["anon", null]);
told = await call("mirror", { body: "plain", path: "/items/42?full=1" });
equal([told.type.split(";")[0], told.text], ["text/plain", "plain"]);
equal(told.url, `${url}/functions/mirror/items/42?full=1`);
equal((await call("mirror", { method: "GET", headers: { "x-own": "1" } })).own, "1");
const form = new FormData();
form.set("file", new Blob(["content"]), "a.txt");
equal((await call("mirror", { body: form })).form, { file: "a.txt:content" });
equal((await call("mirror", { body: new Uint8Array([97, 98]) })).text, "ab");
equal(await call("mirror/text"), "some text");
equal(await call("mirror/empty"), null);

for (
  const [name, code, status] of [
    ["missing", "function_not_found", 404], ["mirror/throw", "function_error", 500],
    ["mirror/teapot", "own_code", 418],
  ]
) {
  const { data, error } = await ichi.functions.invoke(name);
  equal([data, error.code, error.status, typeof error.detail], [null, code, status, "string"]);
}

const person = { email: "sdk.functions@example.com", password: "tangerine lamp 41" };
await ichi.auth.signup(person);
const { error } = await ichi.auth.login(person);
if (error) throw new Error(JSON.stringify(error));
told = await call("mirror", { body: {} });
equal([told.role, typeof told.user], ["authenticated", "string"]);

const file = { bucket: "private", path: "notes/a.txt" };
const size = { content_type: "text/plain", content_length: 5 };
const put = await call("files", { body: { op: "put", ...file, ...size } });
const sent = await fetch(put.url, {
  method: "PUT", body: "hello", headers: { "content-type": "text/plain" },
});
equal(sent.ok, true);
await sent.body?.cancel();
const read = await call("files", { body: { op: "get", ...file } });
equal(await (await fetch(read.url)).text(), "hello");
await call("files", { body: { op: "delete", ...file } });
const gone = await ichi.functions.invoke("files", { body: { op: "nonsense", ...file } });
equal([gone.error.code, gone.error.status], ["bad_request", 400]);
console.log("ok");
Deno.exit(0);
