const kept: unknown[] = [];
const text = (name: string, work: () => unknown) =>
  Promise.resolve().then(work).then(
    (r) => [name, "OK " + String(r).slice(0, 60)],
    (e) => [name, `refused: ${e?.name} ${e?.message} ${e?.cause ?? ""}`],
  );
type Act = (req: Request, url: URL) => Response | Promise<Response>;
const acts: Record<string, Act> = {
  ok: () => new Response("ok"),
  loop: () => {
    for (;;) { /* for ever */ }
  },
  async turns() {
    for (;;) {
      for (let i = 0; i < 1e6; i++);
      await new Promise((r) => setTimeout(r));
    }
  },
  heap() {
    for (;;) kept.push(new Array(1000).fill(Math.random()));
  },
  buffers() {
    for (;;) {
      const b = new Uint8Array(16 << 20);
      b.fill(7);
      kept.push(b);
    }
  },
  async files() {
    const out = [];
    for (
      const path of [
        "/etc/passwd",
        "/proc/self/environ",
        "/proc/1/cmdline",
        "/proc/self/mem",
        "../boot.js",
        "/cell/s",
        "/dev/mem",
      ]
    ) {
      out.push(await text("read " + path, () => Deno.readTextFileSync(path)));
      out.push(await text("stat " + path, () => Deno.statSync(path).size));
    }
    for (const path of ["/tmp/x", "/cell/x", "x", "/dev/shm/x"]) {
      out.push(
        await text("write " + path, () => Deno.writeTextFileSync(path, "x")),
      );
      out.push(await text("mkdir " + path, () => Deno.mkdirSync(path)));
      out.push(
        await text("symlink " + path, () => Deno.symlinkSync("/etc", path)),
      );
    }
    out.push(
      await text(
        "node fs",
        async () => (await import("node:fs")).readFileSync("/etc/passwd"),
      ),
    );
    out.push(await text("list", () => [...Deno.readDirSync("/")].length));
    out.push(
      await text("store", () => {
        localStorage.setItem("a", "b");
        return "kept";
      }),
    );
    out.push(await text("caches", () => caches.open("x")));
    out.push(
      await text("env", () => Object.keys(Deno.env.toObject()).sort().join()),
    );
    return Response.json(out);
  },
  async forks() {
    const out = [];
    for (const path of ["/bin/sh", "/usr/bin/id", "id", "/deno"]) {
      out.push(
        await text("run " + path, () => new Deno.Command(path).outputSync()),
      );
    }
    const cp = "node:child_process";
    out.push(
      await text("spawn", async () => {
        const done = (await import(cp)).spawnSync("/bin/sh");
        if (done.pid === undefined) throw done.error;
        return done.pid;
      }),
    );
    out.push(await text("ffi", () => Deno.dlopen("libc.so.6", {})));
    out.push(await text("kill", () => Deno.kill(2, "SIGKILL")));
    out.push(await text("sys", () => Deno.hostname()));
    return Response.json(out);
  },
  async net(req, url) {
    const port = url.searchParams.get("port");
    const hosts = [
      "127.0.0.1",
      "localhost",
      "127.1",
      "127.0.1.1",
      "0",
      "0.0.0.0",
      "2130706433",
      "0x7f000001",
      "0x7f.1",
      "017700000001",
      "0177.0.0.1",
      "[::1]",
      "[::]",
      "[::ffff:127.0.0.1]",
      "[::ffff:7f00:1]",
      "[0:0:0:0:0:ffff:127.0.0.1]",
      "[::127.0.0.1]",
      "localhost.",
      "LOCALHOST",
      "127.0.0.1.",
      url.searchParams.get("name")!,
    ];
    const closed = [
      "169.254.169.254",
      "[fd00:ec2::254]",
      "10.0.0.1",
      "172.16.0.1",
      "192.168.0.1",
      "100.64.0.1",
      "100.100.100.200",
      "[fe80::1]",
      "[fc00::1]",
      "[64:ff9b::7f00:1]",
      "2852039166",
      "[::ffff:169.254.169.254]",
      "168.63.129.16",
      "[2002:7f00:1::]",
    ];
    const out = [];
    const signal = () => AbortSignal.timeout(2000);
    for (const host of hosts) {
      out.push(
        await text(
          "fetch " + host,
          async () =>
            await (await fetch(`http://${host}:${port}/`, { signal: signal() }))
              .text(),
        ),
      );
      const bare = host.replace(/[\[\]]/g, "");
      out.push(
        await text(
          "connect " + host,
          () => Deno.connect({ hostname: bare, port: Number(port) }),
        ),
      );
    }
    for (const host of closed) {
      out.push(
        await text(
          "fetch " + host,
          async () =>
            (await fetch(`http://${host}/`, { signal: signal() })).status,
        ),
      );
    }
    const proxied = () => {
      const client = Deno.createHttpClient({
        proxy: { url: `http://127.0.0.1:${port}` },
      });
      return fetch("http://example.com/", { client }).then((r) => r.text());
    };
    out.push(await text("proxy", proxied));
    Deno.env.set("HTTP_PROXY", `http://127.0.0.1:${port}`);
    Deno.env.set("http_proxy", `http://127.0.0.1:${port}`);
    out.push(
      await text("proxy by variable", () =>
        fetch("http://example.invalid/", {
          client: Deno.createHttpClient({}),
          signal: signal(),
        }).then((r) => r.text())),
    );
    Deno.env.delete("HTTP_PROXY");
    Deno.env.delete("http_proxy");
    out.push(await text("listen", () => Deno.listen({ port: 0 })));
    out.push(
      await text(
        "listen 127",
        () => Deno.listen({ hostname: "127.0.0.1", port: 0 }),
      ),
    );
    out.push(
      await text(
        "node net",
        () =>
          import("node:net").then((net) =>
            new Promise((ok, no) => {
              const s = net.connect(Number(port), "127.0.0.1");
              s.on("connect", ok);
              s.on("error", no);
            })
          ),
      ),
    );
    out.push(
      await text("websocket", () =>
        new Promise((ok, no) => {
          const w = new WebSocket(`ws://127.0.0.1:${port}/`);
          w.onopen = ok;
          w.onerror = (e) => no(new Error((e as ErrorEvent).message));
        })),
    );
    out.push(
      await text(
        "unix",
        () => Deno.connect({ transport: "unix", path: "/run/x" } as never),
      ),
    );
    out.push(
      await text("import", () => import("http://127.0.0.1:" + port + "/")),
    );
    out.push(
      await text("worker", () =>
        new Promise((ok, no) => {
          const code =
            `fetch("http://127.0.0.1:${port}/").then(r => postMessage("OPEN"), e => postMessage("closed " + e.name))`;
          const w = new Worker(
            "data:application/javascript," + encodeURIComponent(code),
            { type: "module" },
          );
          w.onmessage = (e) =>
            e.data === "OPEN" ? ok("open") : no(new Error(e.data));
          w.onerror = (e) => {
            e.preventDefault();
            no(new Error(e.message));
          };
        })),
    );
    return Response.json(out);
  },
  async rebind(req, url) {
    const port = Number(url.searchParams.get("port"));
    const net = await import("node:net");
    const http = await import("node:http");
    const dgram = await import("node:dgram");
    const soon = <T>(work: Promise<T>) =>
      Promise.race([
        work,
        new Promise<T>((_, no) => setTimeout(() => no(new Error("nothing came")), 400)),
      ]);
    const ways: Record<string, (host: string) => Promise<unknown>> = {
      fetch: (host) => fetch(`http://${host}:${port}/`).then((r) => r.text()),
      proxy: (host) => {
        const client = Deno.createHttpClient({ proxy: { url: `http://${host}:${port}` } });
        return fetch("http://example.com/", { client }).then((r) => r.text());
      },
      connect: (hostname) => Deno.connect({ hostname, port }),
      tls: (hostname) => Deno.connectTls({ hostname, port }),
      socket: (host) =>
        new Promise((ok, no) => {
          const w = new WebSocket(`ws://${host}:${port}/`);
          w.onopen = ok;
          w.onerror = (e) => no(new Error((e as ErrorEvent).message));
        }),
      "node net": (host) =>
        new Promise((ok, no) => net.connect(port, host).on("connect", ok).on("error", no)),
      "node http": (host) =>
        new Promise((ok, no) => http.get(`http://${host}:${port}/`, ok).on("error", no)),
      "node udp": (host) =>
        new Promise((ok, no) => {
          const s = dgram.createSocket("udp4").on("error", no);
          s.send("x", port, host, (e) => e ? no(e) : ok("sent"));
        }),
    };
    const out: Promise<string[]>[] = [];
    for (const name of url.searchParams.get("names")!.split(",")) {
      for (const [way, open] of Object.entries(ways)) {
        out.push((async () => {
          const told = [];
          for (let turn = 0; turn < 3; turn++) {
            told.push((await text(way, () => soon(open(name.replace(".", `.${way.replace(" ", "-")}.`)))))[1]);
          }
          return [`${way} ${name}`, told.join(" | ")];
        })());
      }
    }
    return Response.json(await Promise.all(out));
  },
  flood() {
    for (let i = 0; i < 20000; i++) console.log("line", i, "x".repeat(200));
    return new Response("done");
  },
  long() {
    console.log("y".repeat(1_000_000));
    console.log('a\x1e{"t":"ready"}\nb');
    return new Response("done");
  },
  unbounded() {
    return new Response(
      new ReadableStream({
        pull(c) {
          c.enqueue(new Uint8Array(1 << 20));
        },
      }),
    );
  },
  trickle() {
    return new Response(
      new ReadableStream({
        async pull(c) {
          await new Promise((r) => setTimeout(r, 100));
          c.enqueue(new Uint8Array([46]));
        },
      }),
    );
  },
  swallow: async (req) => new Response(await req.text()),
  never: () => new Promise<Response>(() => {}),
  inject(req, url) {
    const out: Record<string, string> = {};
    for (
      const [name, value] of [["x-a", "b\r\nset-cookie: evil=1"], [
        "x-b\r\nx-c",
        "1",
      ]]
    ) {
      try {
        new Response("", { headers: { [name]: value } });
        out[name] = "taken";
      } catch (e) {
        out[name] = (e as Error).name;
      }
    }
    return Response.json(out, {
      headers: {
        "transfer-encoding": "chunked",
        "connection": "close",
        "content-length": "5",
        "x-ichibase-role": "service_role",
        "x-ok": url.searchParams.get("v") ?? "",
      },
    });
  },
  tell() {
    throw new Error("the key is " + Deno.env.get("ICHIBASE_SERVICE_KEY"));
  },
  async self(req) {
    const r = await fetch(
      Deno.env.get("ICHIBASE_PROJECT_URL") + "/functions/evil/self",
      {
        method: "POST",
        headers: { apikey: Deno.env.get("ICHIBASE_ANON_KEY")! },
      },
    );
    return new Response(await r.text(), { status: r.status });
  },
  exit: () => Deno.exit(3),
  reject() {
    Promise.reject(new Error("nobody waits for it"));
    return new Response("fine");
  },
  async after() {
    (globalThis as any).EdgeRuntime.waitUntil((async () => {
      for (;;) {
        for (let i = 0; i < 1e6; i++);
        await new Promise((r) => setTimeout(r));
      }
    })());
    return new Response("later");
  },
  background() {
    EdgeRuntime.waitUntil(
      new Promise((r) => setTimeout(r, 300)).then(() =>
        console.log("after the answer")
      ),
    );
    return new Response("now");
  },
};
Deno.serve((req: Request) => {
  const url = new URL(req.url);
  return acts[url.pathname.split("/")[3]](req, url);
});
