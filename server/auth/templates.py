"""The messages that users get, and the substitution of values in them.

`{{ name }}` is replaced by the value of that name and nothing else happens: no expressions, no
access to objects. Values are escaped in HTML parts and lose line breaks in subjects; unknown names
become empty.
"""

from __future__ import annotations

import html
import re
from types import MappingProxyType

import msgspec

from server.auth.settings import AuthSettings, Template

PLACE = re.compile(r"\{\{ *([a-z_]{1,32}) *\}\}")
MAX_SUBJECT = 200


class Rendered(msgspec.Struct, frozen=True):
    """One message ready to be sent. html: None for plain text alone."""

    subject: str
    text: str
    html: str | None


def _page(*paragraphs: str) -> str:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return f'<!doctype html><html><body style="font-family:sans-serif">{body}</body></html>'


CODE_LINE = '<strong style="font-size:24px;letter-spacing:4px">{{ code }}</strong>'
IGNORE = "If this was not you, you can ignore this message."

# The parts with {{ code }} and with {{ link }} are left out when there is none: see render().
KINDS: MappingProxyType[str, Template] = MappingProxyType(
    {
        "verify_email": Template(
            subject="Confirm your address for {{ project }}",
            text="Confirm {{ email }} for {{ project }}.\n\nLink: {{ link }}\n\n"
            f"Code: {{{{ code }}}}\n\nIt is good for {{{{ minutes }}}} minutes. {IGNORE}\n",
            html=_page(
                "Confirm {{ email }} for {{ project }}.",
                '<a href="{{ link }}">Confirm the address</a>',
                CODE_LINE,
                f"It is good for {{{{ minutes }}}} minutes. {IGNORE}",
            ),
        ),
        "password_reset": Template(
            subject="Reset your password for {{ project }}",
            text="Somebody asked to reset the password of {{ email }}.\n\nLink: {{ link }}\n\n"
            f"Code: {{{{ code }}}}\n\nIt is good for {{{{ minutes }}}} minutes. {IGNORE}\n",
            html=_page(
                "Somebody asked to reset the password of {{ email }}.",
                '<a href="{{ link }}">Choose a new password</a>',
                CODE_LINE,
                f"It is good for {{{{ minutes }}}} minutes. {IGNORE}",
            ),
        ),
        "passwordless": Template(
            subject="Sign in to {{ project }}",
            text="Sign in to {{ project }}.\n\nLink: {{ link }}\n\nCode: {{ code }}\n\n"
            f"It is good for {{{{ minutes }}}} minutes. {IGNORE}\n",
            html=_page(
                "Sign in to {{ project }}.",
                '<a href="{{ link }}">Sign in</a>',
                CODE_LINE,
                f"It is good for {{{{ minutes }}}} minutes. {IGNORE}",
            ),
        ),
        "twofa": Template(
            subject="Finish your sign-in to {{ project }}",
            text="Your password was entered. Finish the sign-in:\n\nLink: {{ link }}\n\n"
            "Code: {{ code }}\n\nIt is good for {{ minutes }} minutes. If this was not you, "
            "change your password.\n",
            html=_page(
                "Your password was entered. Finish the sign-in:",
                '<a href="{{ link }}">Sign in</a>',
                CODE_LINE,
                "It is good for {{ minutes }} minutes. If this was not you, change your password.",
            ),
        ),
        "invite": Template(
            subject="You are invited to {{ project }}",
            text="You are invited to {{ project }}. Accept and choose a password:\n\n"
            "Link: {{ link }}\n",
            html=_page(
                "You are invited to {{ project }}.",
                '<a href="{{ link }}">Accept and choose a password</a>',
            ),
        ),
        "already_registered": Template(
            subject="You have an account at {{ project }}",
            text="Somebody tried to sign up at {{ project }} with {{ email }}, which has an "
            f"account already. Sign in, or reset your password. {IGNORE}\n",
        ),
        "password_changed": Template(
            subject="Your password for {{ project }} was changed",
            text="The password of {{ email }} was changed. If this was not you, reset it now.\n",
        ),
    }
)


def render(kind: str, settings: AuthSettings, values: dict[str, str]) -> Rendered:
    """The project's own parts of a message, or the built-in ones, with values in place.

    values: email, project, minutes, and code or link or both. Built-in lines that need a missing
    value are dropped.
    """
    own, built_in = settings.templates.get(kind), KINDS[kind]
    subject = own.subject if own and own.subject is not None else built_in.subject
    if own and own.text is not None:
        text, page = own.text, own.html
    else:
        text = _without(built_in.text or "", values, "\n\n")
        page = own.html if own else None
        if page is None and built_in.html is not None:
            page = _without(built_in.html, values, "</p>")
    return Rendered(
        subject=_one_line(fill(subject or "", values)),
        text=fill(text, values),
        html=None if page is None else fill(page, {k: html.escape(v) for k, v in values.items()}),
    )


def fill(template: str, values: dict[str, str]) -> str:
    """Each {{ name }} replaced once; what a value contains is not looked at again."""
    return PLACE.sub(lambda match: values.get(match[1], ""), template)


def _without(template: str, values: dict[str, str], separator: str) -> str:
    parts = template.split(separator)
    missing = [name for name in ("link", "code") if name not in values]
    kept = (part for part in parts if not any(f"{{{{ {name} }}}}" in part for name in missing))
    return separator.join(kept)


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_SUBJECT]
