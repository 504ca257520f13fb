import io
import logging

from popgraft.messages import logger_of, one_line, told

HOSTILE = "a\x1b[2J\r\nb\x07\u202ec\x9b31m\x00\u2028"


def test_what_moves_a_cursor_or_colours_a_terminal_is_a_space() -> None:
    assert one_line(HOSTILE) == "a [2J  b  c 31m  "
    assert one_line("folder ± é 日本 §") == "folder ± é 日本 §"
    assert told(ValueError("the floor\nis \x1b[31mwet")) == "ValueError: the floor is  [31mwet"


def test_every_record_of_a_logger_is_one_line_whatever_it_quotes() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    for _ in range(2):  # a module may be loaded again
        logger = logger_of("popgraft.test_messages")
    logger.addHandler(handler)
    logger.warning("%s has set %d %%", HOSTILE, 3)
    logger.warning("100 % sure")
    assert stream.getvalue() == f"{one_line(HOSTILE)} has set 3 %\n100 % sure\n"
    assert len(logger.filters) == 1
