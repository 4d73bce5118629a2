"""The page behind a link in a message when the project has set no landing page of its own.

A link must do nothing when it is only opened: mail scanners open links. The page has a button that
posts the token. It holds no script of others and no value from the request: its script reads the
address bar.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape

from server.auth.answers import page
from server.auth.room import Call
from server.base.http import Response

SCRIPT = """
const asked = new URLSearchParams(location.search);
const purpose = asked.get("for"), token = asked.get("token");
const places = {
  verify_email: "verify-email", password_reset: "password-reset/confirm",
  invite: "password-reset/confirm", passwordless: "login/magic", twofa: "login/2fa/magic",
};
const form = document.querySelector("form"), field = form.querySelector("label");
const said = document.querySelector("output"), place = places[purpose];
if (!token || !place) { form.hidden = true; said.value = "This link is incomplete."; }
const chooses = purpose === "password_reset" || purpose === "invite";
field.hidden = !chooses;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { token };
  if (chooses) body.new_password = form.elements.password.value;
  const answer = await fetch("/auth/" + place, {
    method: "POST",
    headers: { "content-type": "application/json", apikey: form.dataset.key },
    body: JSON.stringify(body),
  });
  const found = await answer.json();
  if (!answer.ok) { said.value = found.detail; return; }
  form.hidden = true;
  said.value = found.access_token
    ? "Signed in. Set the project's landing page to take the session over."
    : "Done. You can go back to the app.";
});
"""
DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; connect-src 'self'; script-src 'sha256-{DIGEST}'"


async def show(call: Call) -> Response:
    name = escape(call.app_name)
    html = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="robots" content="noindex"><title>{name}</title></head>
<body><h1>{name}</h1>
<form data-key="{escape(call.project.anon_key)}">
<label hidden>New password
<input name="password" type="password" autocomplete="new-password"></label>
<button>Continue</button></form><output></output><script>{SCRIPT}</script></body></html>"""
    return page(200, html, POLICY)
