"""Text from outside as it may be shown: a terminal obeys control characters, wherever they come from."""

LONGEST = 500  # characters of a text that is shown


def printable(text: str, longest: int = LONGEST) -> str:
    """The text without what a terminal would obey: control characters, line ends, and marks that turn its direction."""
    return "".join(c if c.isprintable() else "?" for c in text[:longest])


def printable_lines(text: str, most: int) -> str:
    """The last lines of a longer text, each without what a terminal would obey."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in text.rstrip("\n").split("\n")[-most:])
