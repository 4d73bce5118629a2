// Signatures of the form "t=<epoch seconds>,v1=<HMAC-SHA256 of "<t>.<body>" in hexadecimal>".

const encoder = new TextEncoder();
const TOLERANCE = 300; // seconds between the sender's clock and ours

export async function sign(secret: string, time: number, body: string): Promise<string> {
  const key = await crypto.subtle.importKey(
    "raw",
    encoder.encode(secret),
    { name: "HMAC", hash: "SHA-256" },
    false,
    ["sign"],
  );
  const raw = await crypto.subtle.sign("HMAC", key, encoder.encode(`${time}.${body}`));
  return Array.from(new Uint8Array(raw), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export async function verify(secret: string, header: string, body: string): Promise<boolean> {
  const parts = new Map(header.split(",").map((part) => part.trim().split("=", 2) as [string, string]));
  const time = Number(parts.get("t"));
  if (!Number.isInteger(time) || Math.abs(Date.now() / 1000 - time) > TOLERANCE) return false;
  const wanted = await sign(secret, time, body);
  const given = parts.get("v1") ?? "";
  let difference = wanted.length ^ given.length;
  for (let i = 0; i < wanted.length; i++) {
    difference |= wanted.charCodeAt(i) ^ (given.charCodeAt(i) || 0);
  }
  return difference === 0;
}
