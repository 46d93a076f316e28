"""The readable text of a raw e-mail: its subject and its body, whatever state they are in."""

import email
import re
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.message import Message
from html import unescape

#: a body is cut here: the model reads 128 tokens, and tags are gone by then
MAX_CHARACTERS = 20_000
_INVISIBLE = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->", re.IGNORECASE | re.DOTALL)
_TAG = re.compile(r"<[^<>]*>")


def extract_text(raw: str) -> str:
    r"""Returns subject and body on one line, white space collapsed; never fails on a malformed mail.

    >>> extract_text("Subject: Hello\nContent-Type: text/html\n\n<p>How are&nbsp;you?</p>")
    'Hello How are you?'
    """
    message = email.message_from_string(raw)
    plain, html = "", ""
    for part in _text_parts(message):
        text = _decode_part(part)[:MAX_CHARACTERS]
        if part.get_content_subtype() == "html":
            html = html or _strip_tags(text)
        else:
            plain = plain or text.strip()
    return " ".join(f"{_decode_subject(message)} {plain or html}".split())


def _text_parts(message: Message) -> Iterator[Message]:
    return (part for part in message.walk() if part.get_content_maintype() == "text" and not part.is_multipart())


def _decode_part(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    try:
        return payload.decode(part.get_content_charset() or "latin-1", errors="replace")
    except (LookupError, ValueError):  # mails name charsets that do not exist
        return payload.decode("latin-1")


def _decode_subject(message: Message) -> str:
    raw = str(message.get("Subject", ""))
    try:
        return str(make_header(decode_header(raw)))
    except (HeaderParseError, LookupError, ValueError):
        return raw


def _strip_tags(html: str) -> str:
    return unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", html))).strip()
