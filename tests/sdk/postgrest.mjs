// The calls of PostgREST's own JavaScript client against a running server.
// Arguments: base URL of /postgres, publishable key, token of a signed-in user.
import assert from "node:assert/strict";
import { PostgrestClient } from "@supabase/postgrest-js";

const [url, key, token] = process.argv.slice(2);
const as = (bearer) =>
  new PostgrestClient(url, { headers: { apikey: key, authorization: `Bearer ${bearer}` } });
const db = as(token);

const ok = ({ data, error, status, count }) => {
  assert.equal(error, null, JSON.stringify(error));
  return { data, status, count };
};

// writes
let done = ok(await db.from("notes").insert([{ id: 1, body: "one", tags: ["a", "b"] }]));
assert.deepEqual([done.status, done.data], [201, null]);
done = ok(await db.from("notes").insert([
  { id: 2, body: "two", tags: [] }, { id: 3, body: "three, with a comma", tags: ["b"] },
]).select("id,body"));
assert.deepEqual(done.data.map((row) => row.id), [2, 3]);
done = ok(await db.from("notes").upsert({ id: 3, body: "drei", tags: ["c"] }).select().single());
assert.equal(done.data.body, "drei");
done = ok(await db.from("notes").update({ body: "zwei" }).eq("id", 2).select());
assert.equal(done.data[0].body, "zwei");
ok(await db.from("comments").insert([
  { id: 1, note_id: 1, text: "first" }, { id: 2, note_id: 1, text: "second" },
  { id: 3, note_id: 3, text: "third" },
]));

// reads
done = ok(await db.from("notes").select("*", { count: "exact" }).order("id").range(0, 1));
assert.deepEqual([done.data.length, done.count, done.status], [2, 3, 206]);
done = ok(await db.from("notes").select("id, comments(text)").eq("id", 1).single());
assert.deepEqual(done.data.comments.map((c) => c.text).sort(), ["first", "second"]);
done = ok(await db.from("comments").select("text, note:notes!inner(body)").eq("note.id", 3));
assert.deepEqual(done.data, [{ text: "third", note: { body: "drei" } }]);
done = ok(await db.from("notes").select("id").or("id.eq.1,body.eq.drei").order("id", { ascending: false }));
assert.deepEqual(done.data, [{ id: 3 }, { id: 1 }]);
done = ok(await db.from("notes").select("id").contains("tags", ["a"]));
assert.deepEqual(done.data, [{ id: 1 }]);
done = ok(await db.from("notes").select("id").in("body", ["one", "zwei"]).order("id").limit(1));
assert.deepEqual(done.data, [{ id: 1 }]);
done = ok(await db.from("notes").select("id").not("id", "in", "(1,2)"));
assert.deepEqual(done.data, [{ id: 3 }]);
done = ok(await db.from("notes").select("id").ilike("body", "%WEI%").maybeSingle());
assert.deepEqual(done.data, { id: 2 });
done = ok(await db.from("notes").select("id").eq("id", 99).maybeSingle());
assert.equal(done.data, null);
done = ok(await db.from("notes").select("id,body").order("id").limit(1).csv());
assert.equal(done.data, "id,body\n1,one");
done = ok(await db.from("notes").select("*", { count: "exact", head: true }));
assert.equal(done.count, 3);

// functions
done = ok(await db.rpc("add", { a: 2, b: 3 }));
assert.equal(done.data, 5);
done = ok(await db.rpc("add", { a: 2, b: 3 }, { get: true }));
assert.equal(done.data, 5);
done = ok(await db.rpc("mine").select("id").order("id").limit(2));
assert.deepEqual(done.data, [{ id: 1 }, { id: 2 }]);

// errors
let failed = await db.from("notes").select("id").single();
assert.deepEqual([failed.status, failed.error.code], [406, "PGRST116"]);
failed = await db.from("notes").insert({ id: 1, body: "again" });
assert.deepEqual([failed.status, failed.error.code], [409, "23505"]);
failed = await db.from("missing").select();
assert.deepEqual([failed.status, failed.error.code], [404, "PGRST205"]);
failed = await db.from("notes").select("nothing");
assert.deepEqual([failed.status, failed.error.code], [400, "42703"]);

// row security
done = ok(await as(key).from("notes").select());
assert.deepEqual(done.data, []);
failed = await as(key).from("notes").insert({ id: 9, body: "not mine" });
assert.deepEqual([failed.status, failed.error.code], [401, "42501"]);

// deletes
done = ok(await db.from("comments").delete().eq("note_id", 1).select("id"));
assert.equal(done.data.length, 2);
done = ok(await db.from("notes").delete().gt("id", 1));
assert.equal(done.status, 204);
console.log("ok");
