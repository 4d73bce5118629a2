// What a function may try at the edges of HTTP, of its own project's address and of the runtime.

const told = async (work: () => unknown) => {
  try {
    return "OK " + String(await work()).slice(0, 300);
  } catch (e) {
    return `${(e as Error)?.name}: ${(e as Error)?.message}`;
  }
};
const soon = <T>(work: Promise<T>, ms = 1500) =>
  Promise.race([work, new Promise<T>((_, no) => setTimeout(() => no(new Error("late")), ms))]);
// deno-lint-ignore no-explicit-any
const any = (value: unknown) => value as any;
const base = Deno.env.get("ICHIBASE_PROJECT_URL")!;
const key = Deno.env.get("ICHIBASE_SERVICE_KEY")!;

async function raw(text: string) {
  const path = Deno.args[1];
  const c = await any(Deno).connect({ transport: "unix", path });
  try {
    await c.write(new TextEncoder().encode(text));
    let found = "";
    const buffer = new Uint8Array(4096);
    for (;;) {
      const size = await soon<number | null>(c.read(buffer), 700).catch(() => null);
      if (size === null) return found;
      found += new TextDecoder().decode(buffer.subarray(0, size));
    }
  } finally {
    c.close();
  }
}

function answer(name: string, url: URL): Response | null {
  const text = (headers: Record<string, string>, status = 200, body = "body") =>
    new Response(status === 204 ? null : body, { status, headers });
  switch (name) {
    case "longer": return text({ "content-length": "1000" });
    case "shorter": return text({ "content-length": "2" });
    case "lengths": {
      const headers = new Headers({ "content-length": "5" });
      headers.append("content-length", "6");
      return new Response("body", { headers });
    }
    case "chunked":
      return text({ "transfer-encoding": "chunked" }, 200, "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nevil");
    case "hop":
      return text({
        connection: "x-a, close", "keep-alive": "1", upgrade: "h2c", trailer: "x-t",
        "x-request-id": "forged", "x-ichibase-role": "service_role", server: "other",
        "access-control-allow-origin": "*", "x-a": "kept",
      });
    case "many": {
      const headers = new Headers();
      for (let i = 0; i < 2000; i++) headers.set(`x-${i}`, "v");
      return new Response("body", { headers });
    }
    case "cookies": {
      const headers = new Headers();
      for (let i = 0; i < 50; i++) headers.append("set-cookie", `a${i}=b`);
      return new Response("body", { headers });
    }
    case "utf8": return text({ "x-a": String.fromCharCode(...new TextEncoder().encode("ä €")) });
    case "switching": return new Response(null, { status: 101 });
    case "faked": {
      const made = new Response("body");
      Object.defineProperty(made, "status", { value: Number(url.searchParams.get("status")) });
      return made;
    }
    case "error": return Response.error();
    case "none": return text({ "content-length": "7" }, 204);
    case "old": return new Response(null, { status: 304, headers: { "content-length": "7" } });
    case "upgrade": return text({ upgrade: "h2c", connection: "upgrade" }, 426);
    case "turn": return new Response(null, { status: 302, headers: { location: "turn" } });
    case "away": {
      const location = "http://169.254.169.254/latest/meta-data";
      return new Response(null, { status: 302, headers: { location } });
    }
    default: return null;
  }
}

async function own() {
  const at = (path: string, init: RequestInit = {}) => async () => {
    const got = await soon(fetch(path, { headers: { apikey: key }, ...init }));
    return `${got.status} ${await got.text()}`;
  };
  const url = new URL(base);
  const behind = "GET /healthz HTTP/1.1\r\nhost: other.localhost\r\nx-forwarded-for: 6.6.6.6\r\n\r\n";
  const first = "GET /healthz HTTP/1.1\r\nhost: project.invalid\r\n";
  const proxy = (value: unknown) => () =>
    fetch("http://other.localhost/healthz", { client: Deno.createHttpClient(any({ proxy: value })) })
      .then(async (r) => `${r.status} ${await r.text()}`);
  const tries: Record<string, () => unknown> = {
    plain: at(`${base}/healthz`), upper: at(base.toUpperCase() + "/healthz"),
    credentials: at(base.replace("//", "//a:b@") + "/healthz"),
    turning: at(`${base}/functions/hostile/turn`), leaving: at(`${base}/functions/hostile/away`),
    "other project": at(`http://other.localhost:${url.port}/healthz`),
    "other host header": at(`${base}/functions/hostile/headers`, {
      headers: {
        apikey: key, host: "other.localhost", "x-forwarded-for": "6.6.6.6", "x-real-ip": "6.6.6.6",
        "x-ichibase-schedule": "x", "x-ichibase-internal": "x", "x-ichibase-user-id": "x",
      },
    }),
    "admin port": at(`http://127.0.0.1:${url.searchParams.get("admin") ?? Number(url.port) + 1}/`),
    "admin path": at(`${base}/admin/v1/projects`), metrics: at(`${base}/metrics`),
    "own client": proxy({ transport: "unix", path: Deno.args[1] }),
    "tcp proxy": proxy({ transport: "tcp", hostname: "127.0.0.1", port: Number(url.port) }),
    "raw host": () => raw(behind), "raw connect": () => raw("CONNECT 127.0.0.1:22 HTTP/1.1\r\n" +
      "host: project.invalid\r\n\r\n"),
    "raw pipeline": () => raw(first + "\r\n" + behind),
    "raw lengths": () => raw("POST" + first.slice(3) + "content-length: 0\r\n" +
      "transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + behind),
    "raw upgrade": () => raw(first + "connection: upgrade\r\nupgrade: h2c\r\n\r\n" + behind),
    "raw websocket": () => raw(first.replace("/healthz", "/functions/hostile/none") +
      `apikey: ${key}\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n` +
      "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + behind),
  };
  const out: Record<string, string> = {};
  for (const [name, work] of Object.entries(tries)) out[name] = await told(work);
  return out;
}

async function imports() {
  const out: Record<string, string> = {};
  const names = [
    "https://esm.sh/lodash", "http://127.0.0.1/x.js", "npm:lodash", "jsr:@std/path",
    "file:///etc/passwd", "/etc/hostname", "file:///proc/self/environ", "ext:core/ops",
    "node:sqlite?x", "../../../etc/passwd",
  ];
  for (const name of names) out[name] = await told(() => soon(import(name)));
  out.data = await told(async () => (await import("data:text/javascript,export default 7")).default);
  const inner = "data:text/javascript," + encodeURIComponent("import 'https://esm.sh/lodash'");
  out["data that imports"] = await told(() => import(inner));
  const code = "export default await import('file:///etc/passwd')";
  const blob = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  out["blob that reads"] = await told(() => import(blob));
  return out;
}

async function refused() {
  const node = async (name: string) => any((await import(name)).default ?? await import(name));
  const database = async () => new (await node("node:sqlite")).DatabaseSync(":memory:");
  const tries: Record<string, () => unknown> = {
    run: () => new Deno.Command("id").spawn(), dlopen: () => any(Deno).dlopen("libc.so.6", {}),
    "kill its parent": () => Deno.kill(Deno.ppid || 2, "SIGTERM"),
    hostname: () => Deno.hostname(), memory: () => Deno.systemMemoryInfo(), uid: () => Deno.uid(),
    interfaces: () => Deno.networkInterfaces(), load: () => Deno.loadavg(),
    listen: () => Deno.listen({ port: 0 }), chdir: () => Deno.chdir("/"),
    "listen unix": () => any(Deno).listen({ transport: "unix", path: Deno.args[1] + "x" }),
    "open its own": () => Deno.openSync(Deno.args[0]), temporary: () => Deno.makeTempFileSync(),
    "remove its own": () => Deno.removeSync(Deno.args[0]),
    "code again": () => Deno.readTextFileSync(Deno.args[2]),
    "asking for read": async () => {
      const { state } = await Deno.permissions.request({ name: "read" });
      if (state !== "granted") throw new Error(state);
    },
    "asking for run": async () => {
      const { state } = await Deno.permissions.request({ name: "run" });
      if (state !== "granted") throw new Error(state);
    },
    inspector: async () => (await node("node:inspector")).open(0),
    "node os": async () => (await node("node:os")).hostname(),
    "node kill": async () => (await node("node:process")).kill(2),
    "node dlopen": async () => (await node("node:process")).dlopen({}, "/lib/x.so"),
    "node worker that reads": async () => {
      const { Worker } = await node("node:worker_threads");
      const made = new Worker("require('fs').readFileSync('/etc/passwd')", { eval: true });
      return soon(new Promise((ok, no) => made.on("error", no).on("exit", ok)));
    },
    sqlite: async () => new (await node("node:sqlite")).DatabaseSync("/tmp/x.db"),
    "sqlite attached": async () => (await database()).exec("attach '/etc/passwd' as x"),
  };
  const out: Record<string, string> = {};
  for (const [name, work] of Object.entries(tries)) out[name] = await told(work);
  return out;
}

function worker() {
  const code = `
    const found = [];
    const tried = async (name, work) => {
      try { await work(); found.push(name); } catch { /* as it should be */ }
    };
    await tried("passwd", () => Deno.readTextFileSync("/etc/passwd"));
    await tried("environ", () => Deno.readTextFileSync("/proc/self/environ"));
    await tried("loopback", () => fetch("http://127.0.0.1:${new URL(base).port}/healthz"));
    await tried("run", () => new Deno.Command("id").outputSync());
    await tried("environment", () => { if (!Deno.env.get("PATH")) throw 1; });
    postMessage(found.join() || "nothing");`;
  return soon(
    new Promise<string>((ok, no) => {
      const made = new Worker("data:text/javascript," + encodeURIComponent(code), { type: "module" });
      made.onmessage = (e) => (made.terminate(), ok(e.data));
      made.onerror = (e) => (e.preventDefault(), no(new Error(e.message)));
    }),
    5000,
  );
}

const kept: unknown[] = [];
Deno.serve(async (req) => {
  const url = new URL(req.url);
  const name = url.pathname.split("/")[3];
  const found = answer(name, url);
  if (found !== null) return found;
  switch (name) {
    case "own": return Response.json(await own());
    case "imports": return Response.json(await imports());
    case "refused": return Response.json(await refused());
    case "worker": return new Response(await told(worker));
    case "headers": return Response.json([[...req.headers], await req.text()]);
    case "method": return new Response(req.method, { headers: { "x-method": req.method } });
    case "wasm":
      for (;;) {
        const memory = new WebAssembly.Memory({ initial: 256, maximum: 65536 });
        kept.push(memory);
        while (memory.buffer.byteLength < 1 << 30) {
          const from = memory.grow(256) * 65536;
          new Uint8Array(memory.buffer).fill(1, from);
        }
      }
    case "shared":
      for (;;) {
        const made = new SharedArrayBuffer(16 << 20);
        new Uint8Array(made).fill(1);
        kept.push(made);
      }
    case "workers":
      for (let i = 0; i < 200; i++) new Worker("data:text/javascript,for(;;);", { type: "module" });
      await new Promise((r) => setTimeout(r, 20_000));
      break;
    case "asleep":
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
      break;
    case "vsock":
      await any(Deno).connect({ transport: "vsock", cid: 2, port: 1 });
      break;
    case "more": {
      const options = any({ type: "module", deno: { permissions: { read: true, env: true } } });
      new Worker("data:text/javascript,1", options);
      break;
    }
  }
  return new Response("ok");
});
