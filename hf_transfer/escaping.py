"""What others wrote (rows, labels, names of files, messages of libraries), made fit for a terminal, an error, a page or a card."""

import re

WORD_JOINER = "\u2060"
"""No width, and no link or mention: `@name` would call somebody, `https://` and `www.` would lead somewhere."""

# C0 and C1 controls, which move a terminal's cursor or rewrite its lines; line and paragraph separators; what reorders the letters around
# it (Boucher & Anderson 2021, Trojan Source, https://arxiv.org/abs/2111.00169). Marks that Persian, Arabic and emoji need stay; so do tabs
# and newlines, which a caller joins or keeps.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
SPECIAL = re.compile(r"([\\`*_\[\]<>|~$#&])")
LINKS = re.compile(r"(@|://|\bwww\.)", re.IGNORECASE)
# One slash where a URL was taken for a path. What stands before the @ of the libraries' hf://datasets/owner/name@revision is no
# user, unless it has a password.
SCHEME = re.compile(r"(?!\bhf:[^:]*$)\w\w:/{1,2}")
# A user without a password may be a token; the placeholder of our own sentences is none.
USER = re.compile(rf"({SCHEME.pattern})(?!/?USER:PASSWORD(?:@|$))([^:@/]*:)?.*")


def visible(text: str) -> str:
    r"""Give a text with its control characters written out: ESC becomes `\x1b`, a right-to-left override `\u202e`."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def visible_line(text: str) -> str:
    r"""Give a text as one line, its control characters, tabs and newlines written out."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def without_secrets(text: str) -> str:
    """Give a text whose URLs have lost what may be a secret: the password (or a user that may be a token) and the query."""
    # Word by word, in one pass: a row of the data that is quoted may be long, and begin a URL at every fourth letter.
    return re.sub(r"[^\s'\"]+", _without_query, re.sub(r"\S+", _without_user, text))


def _without_user(word: re.Match[str]) -> str:
    head, at, tail = word[0].rpartition("@")
    return USER.sub(r"\1\2***", head) + at + tail


def _without_query(word: re.Match[str]) -> str:
    scheme = SCHEME.search(word[0])
    end = word[0].find("?", scheme.end()) + 1 if scheme else 0
    return word[0][:end] + "***" if 0 < end < len(word[0]) else word[0]


def markdown_text(text: str) -> str:
    """Give markdown that shows a text as it is, on one line, and neither formats, links nor calls anybody."""
    return LINKS.sub(_broken, SPECIAL.sub(r"\\\1", " ".join(visible(text).split())))


def markdown_code(text: str) -> str:
    """Give markdown that shows a text as a code span, which may stand in a table, too; an empty one stays empty."""
    line = " ".join(visible(text).split())
    if "\\|" in line:
        # Escaped once more it would end the cell of a table.
        return markdown_text(text)
    line = line.replace("|", "\\|")
    if not line:
        return ""
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    pad = " " if line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _broken(found: re.Match[str]) -> str:
    return found[0][0] + WORD_JOINER + found[0][1:] if found[0] == "://" else found[0] + WORD_JOINER
