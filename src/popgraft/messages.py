"""What is said to people and quotes others: names of files, ids and errors of environments may hold anything."""

import logging


def one_line(text: str) -> str:
    """The text without line breaks and control characters, which move cursors and colour terminals."""
    return "".join(character if character.isprintable() else " " for character in text)


def told(error: BaseException) -> str:
    """What went wrong in code or data of others, to be quoted in a sentence."""
    return one_line(f"{type(error).__name__}: {error}")


def logger_of(name: str) -> logging.Logger:
    """The logger of a module, each of whose records is one line that can be printed, whatever it quotes."""
    logger = logging.getLogger(name)
    logger.addFilter(_make_printable)
    return logger


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = one_line(record.getMessage()), None
    return True
