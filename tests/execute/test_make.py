"""What is said of machines that are slower than they could be."""

import contextlib
import logging

import pytest

from popgraft.execute import make
from popgraft.native import native


def said(config, initial, found, monkeypatch, caplog):
    monkeypatch.setattr(make, "native", lambda: found)
    with caplog.at_level(logging.WARNING), contextlib.closing(make.make_executor(config, initial(config))):
        return [record.getMessage() for record in caplog.records]


def test_nothing_is_said_where_nothing_is_missing(configured, initial, monkeypatch, caplog):
    config = configured("CartPole", "model.network.precision=bfloat16", "execute.shards=1", pop=2)
    able = native()._replace(library=object(), rounds=True)
    assert not said(config, initial, able, monkeypatch, caplog)


def test_a_processor_that_does_not_multiply_bfloat16(configured, initial, monkeypatch, caplog):
    found = native()._replace(library=object(), rounds=False)
    config = configured("CartPole", "model.network.precision=bfloat16", "execute.shards=1", pop=2)
    (text,) = said(config, initial, found, monkeypatch, caplog)
    assert "set model.network.precision: float32" in text
    caplog.clear()
    assert not said(configured("CartPole", "execute.shards=1", pop=2), initial, found, monkeypatch, caplog)


@pytest.mark.parametrize(("recurrent", "warnings"), [("lstm", 1), ("gru", 1), ("none", 0)])
def test_a_machine_without_a_compiler(recurrent, warnings, configured, initial, monkeypatch, caplog):
    found = native()._replace(library=None, reason="there is no C compiler")
    config = configured("CartPole", f"model.network.recurrent={recurrent}", "execute.shards=1", pop=2)
    texts = said(config, initial, found, monkeypatch, caplog)
    assert [text for text in texts if "there is no C compiler" in text] == texts
    assert len(texts) == warnings
