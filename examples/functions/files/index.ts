// A storage gateway: signed-in users keep files of their own in the bucket "private".
//
//   POST /functions/files/upload  {"name", "type", "size"}  -> {url}   then PUT the bytes there
//   POST /functions/files/read    {"name"}                  -> {url}   then GET it
//   GET  /functions/files                                   -> [{name, size}]
//   DELETE /functions/files/<name>

const base = Deno.env.get("ICHIBASE_PROJECT_URL")!;
const key = Deno.env.get("ICHIBASE_SERVICE_KEY")!;
const BUCKET = "private";
const LARGEST = 10_000_000; // bytes
const TYPES = /^(image\/(png|jpeg|webp)|application\/pdf|text\/plain)$/;

class Refused extends Error {
  constructor(readonly status: number, readonly code: string, message: string) {
    super(message);
  }
}

async function storage(call: string, body: Record<string, unknown>) {
  const answer = await fetch(`${base}/storage/${call}`, {
    method: "POST",
    headers: { authorization: `Bearer ${key}`, "content-type": "application/json" },
    body: JSON.stringify({ bucket: BUCKET, ...body }),
  });
  if (!answer.ok) {
    console.error(`storage/${call} answered ${answer.status}`, await answer.text());
    throw new Refused(502, "storage_failed", "The file store refused.");
  }
  return await answer.json();
}

function named(name: unknown): string {
  if (typeof name !== "string" || !/^[\w][\w. -]{0,99}$/.test(name)) {
    throw new Refused(400, "invalid_name", "A name has letters, digits, spaces and . _ -");
  }
  return name;
}

async function answer(req: Request): Promise<unknown> {
  // The server has verified the token; it strips this header from outside.
  const user = req.headers.get("x-ichibase-user-id")!;
  const folder = `users/${user}`;
  const action = new URL(req.url).pathname.split("/").slice(3).join("/");
  if (req.method === "GET" && action === "") {
    const found = await storage("list", { prefix: `${folder}/` });
    return found.objects.map((object: { path: string; size: number }) => ({
      name: object.path.slice(folder.length + 1),
      size: object.size,
    }));
  }
  if (req.method === "DELETE") {
    return await storage("delete", { path: `${folder}/${named(decodeURIComponent(action))}` });
  }
  const body = await req.json().catch(() => ({}));
  const path = `${folder}/${named(body.name)}`;
  if (req.method === "POST" && action === "upload") {
    if (typeof body.type !== "string" || !TYPES.test(body.type)) {
      throw new Refused(415, "invalid_type", "Files are images, PDF or plain text.");
    }
    if (!Number.isInteger(body.size) || body.size < 0 || body.size > LARGEST) {
      throw new Refused(413, "too_large", `A file has at most ${LARGEST} bytes.`);
    }
    const found = await storage("get-put-url", {
      path,
      content_type: body.type,
      content_length: body.size,
      user_id: user,
    });
    return { url: found.url };
  }
  if (req.method === "POST" && action === "read") {
    return { url: (await storage("get-url", { path, user_id: user, ttl_seconds: 60 })).url };
  }
  throw new Refused(404, "not_found", "There is nothing at this path.");
}

Deno.serve(async (req) => {
  try {
    return Response.json(await answer(req));
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    return Response.json({ code: error.code, detail: error.message }, { status: error.status });
  }
});
