// Runs in every Deno process: first blank, then as one version of one function of one project.
//
// Arguments: socket to serve on, socket of the project's own address, file of the code. Standard
// input brings one message (4 bytes of length, big-endian, then JSON) when the process is
// assigned; standard output takes lines: what begins with \x1e is a JSON message to the manager,
// anything else is text that the function wrote.

const [SERVE, ORIGIN_SOCKET, CODE] = Deno.args;
const { inspectArgs, core } = Deno[Deno.internal];
const nativeServe = Deno.serve;
const nativeFetch = globalThis.fetch;
const nativeExit = Deno.exit;
const { createHttpClient } = Deno;
const NativeURL = URL;
const NativeRequest = Request;
const NativeResponse = Response;
const { stringify, parse } = JSON;
const { defineProperty } = Object;
const encoder = new TextEncoder();
const decoder = new TextDecoder();
const stdout = Deno.stdout;
const writeSync = stdout.writeSync.bind(stdout);
const MAX_TEXT = 16384; // characters of one log line
const FOLDER = "file://" + CODE.slice(0, CODE.lastIndexOf("/") + 1);

// Which invocation code runs for, across what it awaits: Deno's own variable for this, because
// Node's AsyncLocalStorage, which stands on the same, takes a fifth of the time of a start to load.

let enter, current;
if (typeof core?.AsyncVariable === "function" && typeof core.setAsyncContext === "function") {
  const invocation = new core.AsyncVariable();
  const { setAsyncContext } = core;
  current = invocation.get.bind(invocation);
  enter = (value, work, ...args) => {
    const before = invocation.enter(value);
    try {
      return work(...args);
    } finally {
      setAsyncContext(before);
    }
  };
} else {
  const { AsyncLocalStorage } = await import("node:async_hooks");
  const invocation = new AsyncLocalStorage();
  current = invocation.getStore.bind(invocation);
  enter = invocation.run.bind(invocation);
}

// What goes to the manager

function tell(message) {
  const bytes = encoder.encode("\x1e" + stringify(message) + "\n");
  let done = 0;
  while (done < bytes.length) done += writeSync(bytes.subarray(done));
}

const OURS = /\n +at .*(?:boot\.js|ext:[a-z_]+\/).*/g;

function log(level, text) {
  const shown = text.replaceAll(FOLDER, "").replace(OURS, "");
  tell({ t: "log", l: level, id: current()?.id, x: shown.slice(0, MAX_TEXT), c: shown.length > MAX_TEXT });
}

function describe(error) {
  try {
    const text = inspectArgs([error], { colors: false });
    return error instanceof Error ? text : "Uncaught " + text;
  } catch {
    return "an error that cannot be shown";
  }
}

const groups = [];
for (const [method, level] of [["log", "info"], ["info", "info"], ["warn", "warn"], ["error", "error"], ["debug", "debug"], ["dir", "info"], ["table", "info"]]) {
  console[method] = (...args) => {
    let text;
    try {
      text = inspectArgs(args, { colors: false });
    } catch (error) {
      text = "a value that cannot be shown: " + error?.name;
    }
    log(level, groups.join("") + text);
  };
}
console.trace = (...args) => {
  const error = new Error(inspectArgs(args));
  error.name = "Trace";
  log("debug", describe(error));
};
console.assert = (ok, ...args) => ok || log("error", "Assertion failed" + (args.length ? ": " + inspectArgs(args) : ""));
console.group = (...args) => {
  if (args.length) console.log(...args);
  groups.push("  ");
};
console.groupEnd = () => groups.pop();

globalThis.addEventListener("error", (event) => {
  event.preventDefault();
  log("error", describe(event.error ?? event.message));
});
globalThis.addEventListener("unhandledrejection", (event) => {
  event.preventDefault();
  log("error", describe(event.reason));
});

// Parts of Deno that take milliseconds to load are loaded and changed when they are first used:
// the first answer of most functions comes before.
function whenUsed(name, change) {
  const { get, value, enumerable } = Object.getOwnPropertyDescriptor(globalThis, name);
  const set = (given) => defineProperty(globalThis, name, { value: given, enumerable, writable: true, configurable: true });
  const made = () => {
    const found = change(get === undefined ? value : get.call(globalThis));
    set(found);
    return found;
  };
  defineProperty(globalThis, name, { get: made, set, enumerable, configurable: true });
}

// What a timer throws belongs to the invocation that set it, which the event above does not know
for (const name of ["setTimeout", "setInterval"]) {
  whenUsed(name, (native) => new Proxy(native, {
    apply(target, self, [work, ...rest]) {
      const held = typeof work !== "function" ? work : function (...args) {
        try {
          return work.apply(this, args);
        } catch (error) {
          log("error", describe(error));
        }
      };
      return Reflect.apply(target, self, [held, ...rest]);
    },
  }));
}

// The environment: a map of this process, not the system's

const environment = new Map();
const named = (name) => {
  if (typeof name !== "string") throw new TypeError("The name of a variable is a string");
  return name;
};
const env = {
  get: (name) => environment.get(named(name)),
  set: (name, value) => void environment.set(named(name), String(value)),
  has: (name) => environment.has(named(name)),
  delete: (name) => void environment.delete(named(name)),
  toObject: () => Object.fromEntries(environment),
};
defineProperty(Deno, "env", { value: env, configurable: true });
// For code that names `process`; Node's own costs 3 MB.
async function giveProcess() {
  const { default: process } = await import("node:process");
  defineProperty(process, "env", {
    value: new Proxy({}, {
      get: (_, name) => typeof name === "string" ? environment.get(name) : undefined,
      set: (_, name, value) => (environment.set(String(name), String(value)), true),
      has: (_, name) => environment.has(name),
      deleteProperty: (_, name) => (environment.delete(name), true),
      ownKeys: () => [...environment.keys()],
      getOwnPropertyDescriptor: (_, name) =>
        environment.has(name)
          ? { value: environment.get(name), enumerable: true, configurable: true, writable: true }
          : undefined,
    }),
    configurable: true,
  });
}

Deno.exit = (code = 0) => {
  log("error", `the function ended its process with Deno.exit(${Number(code) || 0})`);
  nativeExit(code);
};

// Work after the answer

let background = 0;

function settled() {
  if (--background === 0) tell({ t: "background", n: 0 });
}

globalThis.EdgeRuntime = Object.freeze({
  waitUntil(promise) {
    if (++background === 1) tell({ t: "background", n: 1 });
    const work = Promise.resolve(promise);
    work.then(settled, (error) => {
      log("error", describe(error));
      settled();
    });
    return work;
  },
});

// The project's own address is reached through a socket of the node, wherever its name points

let client = null;
const ownClient = () => client ??= createHttpClient({ proxy: { transport: "unix", path: ORIGIN_SOCKET } });
let origin = null;
const PLAIN_ORIGIN = "http://project.invalid"; // what the socket takes in its place

function ownAddress(input) {
  if (origin === null) return null;
  const text = typeof input === "string" ? input : input instanceof NativeURL ? input.href : null;
  if (text === null || !/^(?:https?|wss?):/i.test(text)) return null;
  try {
    const url = new NativeURL(text);
    const scheme = url.protocol.replace("ws", "http");
    return `${scheme}//${url.host}` === origin ? url : null;
  } catch {
    return null;
  }
}

const REDIRECTS = new Set([301, 302, 303, 307, 308]);

async function ownFetch(request, depth) {
  const here = new NativeURL(request.url);
  const target = PLAIN_ORIGIN + here.pathname + here.search;
  const mode = request.redirect;
  const answer = await nativeFetch(new NativeRequest(target, request), { client: ownClient(), redirect: "manual" });
  const location = answer.headers.get("location");
  defineProperty(answer, "url", { value: request.url });
  if (depth > 0) defineProperty(answer, "redirected", { value: true });
  if (mode === "manual" || location === null || !REDIRECTS.has(answer.status)) return answer;
  if (mode === "error") throw new TypeError("The answer is a redirect");
  if (depth >= 20) throw new TypeError("There are too many redirects");
  await answer.body?.cancel();
  const next = new NativeURL(location, request.url);
  const turned = answer.status === 303 || (answer.status < 303 && request.method === "POST");
  if (request.body !== null && !turned) throw new TypeError("The body cannot be sent again");
  const headers = new Headers(request.headers);
  const init = { method: turned ? "GET" : request.method, headers, signal: request.signal };
  if (ownAddress(next) !== null) return ownFetch(new NativeRequest(next, init), depth + 1);
  for (const name of ["authorization", "apikey", "cookie"]) headers.delete(name); // the project's own
  return nativeFetch(next, init);
}

globalThis.fetch = function fetch(input, init) {
  const url = input instanceof NativeRequest ? input.url : input;
  if (init?.client !== undefined || ownAddress(url) === null) return nativeFetch(input, init);
  try {
    return ownFetch(new NativeRequest(input, init), 0);
  } catch (error) {
    return Promise.reject(error);
  }
};

whenUsed("WebSocket", (native) => new Proxy(native, {
  construct(target, [address, options], created) {
    const url = ownAddress(address);
    if (url === null) return Reflect.construct(target, [address, options], created);
    const given = typeof options === "string" || Array.isArray(options)
      ? { protocols: options }
      : { ...options };
    const plain = PLAIN_ORIGIN.replace("http", "ws") + url.pathname + url.search;
    return Reflect.construct(target, [plain, { ...given, client: ownClient() }], created);
  },
}));

// A request comes with the address its client used

const RAW = "http+unix:";
globalThis.Request = new Proxy(NativeRequest, {
  construct(target, [input, init], created) {
    if (input instanceof NativeRequest && Object.hasOwn(input, "url")) {
      const copy = new NativeRequest(input.url, input);
      return Reflect.construct(target, init === undefined ? [copy] : [copy, init], created);
    }
    return Reflect.construct(target, [input, init], created);
  },
});
const nativeClone = NativeRequest.prototype.clone;
NativeRequest.prototype.clone = function clone() {
  const copy = nativeClone.call(this);
  if (Object.hasOwn(this, "url")) defineProperty(copy, "url", { value: this.url });
  return copy;
};

// The function's handler

let handler = null;
let onError = null;
let scheme = "http";

function register(...args) {
  let options = {};
  let found = null;
  for (const given of args) {
    if (typeof given === "function") found ??= given;
    else if (given !== null && typeof given === "object") options = given;
  }
  if (found === null) {
    if (typeof options.handler === "function") found = options.handler;
    else if (typeof options.fetch === "function") found = options.fetch.bind(options);
  }
  if (found === null) throw new TypeError("Deno.serve needs a handler");
  if (handler === null) {
    handler = found;
    onError = typeof options.onError === "function" ? options.onError : null;
    const addr = { transport: "tcp", hostname: "0.0.0.0", port: 8000 };
    if (typeof options.onListen === "function") queueMicrotask(() => options.onListen(addr));
  }
  return {
    addr: { transport: "tcp", hostname: "0.0.0.0", port: 8000 },
    finished: new Promise(() => {}),
    shutdown: async () => {},
    ref() {},
    unref() {},
    async [Symbol.asyncDispose]() {},
  };
}
Deno.serve = register;

class Info {
  #request;
  #info;
  constructor(request, info) {
    this.#request = request;
    this.#info = info;
  }
  get remoteAddr() {
    return { transport: "tcp", hostname: this.#request.headers.get("x-forwarded-for") ?? "", port: 0 };
  }
  get completed() {
    return this.#info.completed;
  }
}

const FAILED = stringify({ code: "function_error", detail: "The function failed; its log says why." });

function failure() {
  return new NativeResponse(FAILED, {
    status: 500,
    headers: { "content-type": "application/json", "x-ichibase-error": "function_error" },
  });
}

async function failed(error) {
  if (onError !== null) {
    try {
      const answer = await onError(error);
      if (answer instanceof NativeResponse) return answer;
    } catch (again) {
      error = again;
    }
  }
  log("error", describe(error));
  return failure();
}

// A body that the function leaves unread is taken in: the connection would break otherwise, and
// the answer with it.
function takeIn(request) {
  const length = request.headers.get("content-length");
  if (length !== null && Number(length) <= 65536) return;
  setTimeout(() => { // by then an answer that echoes the body has taken it
    if (request.bodyUsed || request.body === null || request.body.locked) return;
    request.body.pipeTo(new WritableStream()).catch(() => {});
  }, 0);
}

async function invoke(request, info) {
  try {
    const answer = await handler(request, new Info(request, info));
    if (answer instanceof NativeResponse) {
      if (answer.bodyUsed) throw new TypeError("The body of the response has been used already");
      if (request.method !== "GET" && request.method !== "HEAD") takeIn(request);
      return answer;
    }
    throw new TypeError("The handler gave no Response");
  } catch (error) {
    return await failed(error);
  }
}

nativeServe({
  path: SERVE,
  onListen() {},
  onError: (error) => failed(error),
}, (request, info) => {
  if (handler === null) return failure();
  const url = request.url;
  if (url.startsWith(RAW)) defineProperty(request, "url", { value: scheme + url.slice(9) });
  return enter({ id: request.headers.get("x-request-id") }, invoke, request, info);
});

// From blank to assigned

async function readExactly(count) {
  const bytes = new Uint8Array(count);
  let done = 0;
  while (done < count) {
    const found = await Deno.stdin.read(bytes.subarray(done));
    if (found === null) nativeExit(0); // the manager has ended
    done += found;
  }
  return bytes;
}

for (const name of ["env", "sys", "run", "ffi", "import"]) await Deno.permissions.revoke({ name });
for (const name of ["read", "write"]) await Deno.permissions.revoke({ name, path: SERVE });
tell({ t: "blank" });
const length = new DataView((await readExactly(4)).buffer).getUint32(0);
const assigned = parse(decoder.decode(await readExactly(length)));
for (const [name, value] of Object.entries(assigned.env)) environment.set(name, value);
if (assigned.origin) {
  const url = new NativeURL(assigned.origin);
  origin = url.origin;
  scheme = url.protocol.slice(0, -1);
}
try {
  if (assigned.process) await giveProcess();
  const module = await import("file://" + CODE);
  await Deno.permissions.revoke({ name: "read", path: CODE });
  const found = module.default;
  if (handler === null && typeof found === "function") register(found);
  else if (handler === null && found !== null && typeof found === "object") register(found);
  if (handler === null) {
    tell({ t: "failed", x: "The module registers no handler: call Deno.serve(handler), or export one as default." });
  } else {
    tell({ t: "ready" });
  }
} catch (error) {
  tell({ t: "failed", x: describe(error).replaceAll(FOLDER, "").replace(OURS, "").slice(0, MAX_TEXT) });
}
