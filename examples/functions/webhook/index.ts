// A webhook receiver: checks the sender's signature, keeps each event once, answers at once and
// does the work afterwards. Needs the secret WEBHOOK_SECRET and the table
//
//   create table events (id text primary key, type text not null, body jsonb not null,
//     handled_at timestamptz);
//   alter table events enable row level security;

import { verify } from "./signature.ts";

interface Event {
  id: string;
  type: string;
}

const base = Deno.env.get("ICHIBASE_PROJECT_URL")!;
const secret = Deno.env.get("WEBHOOK_SECRET");
const headers = {
  authorization: `Bearer ${Deno.env.get("ICHIBASE_SERVICE_KEY")}`,
  "content-type": "application/json",
};

async function handle(event: Event) {
  console.log("handling", event.type, event.id);
  const answer = await fetch(`${base}/postgres/events?id=eq.${encodeURIComponent(event.id)}`, {
    method: "PATCH",
    headers: { ...headers, prefer: "return=minimal" },
    body: JSON.stringify({ handled_at: new Date().toISOString() }),
  });
  if (!answer.ok) throw new Error(`the event could not be marked: ${await answer.text()}`);
}

Deno.serve(async (req) => {
  if (req.method !== "POST") return new Response(null, { status: 405, headers: { allow: "POST" } });
  if (!secret) throw new Error("set the secret WEBHOOK_SECRET");
  const text = await req.text();
  if (!await verify(secret, req.headers.get("x-signature") ?? "", text)) {
    return Response.json({ code: "invalid_signature" }, { status: 400 });
  }
  const event: Event = JSON.parse(text);
  const kept = await fetch(`${base}/postgres/events?on_conflict=id`, {
    method: "POST",
    headers: { ...headers, prefer: "return=representation,resolution=ignore-duplicates" },
    body: JSON.stringify([{ id: event.id, type: event.type, body: event }]),
  });
  // The sender tries again later when the event could not be kept.
  if (!kept.ok) throw new Error(`the event could not be kept: ${await kept.text()}`);
  const fresh = (await kept.json()).length === 1;
  if (fresh) EdgeRuntime.waitUntil(handle(event));
  return Response.json({ received: true, fresh });
});
