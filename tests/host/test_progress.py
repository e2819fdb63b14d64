"""What a node tells the artist is in the log as well, so that a bug report carries it."""

import logging
import sys
from types import SimpleNamespace

from testbed import pack

progress = pack.module("unlearn.host.progress")


def shown_by(monkeypatch):
    """A server's page, as the list of what it shows."""
    shown = []
    server = SimpleNamespace(send_progress_text=lambda *args: shown.append(args))
    module = SimpleNamespace(PromptServer=SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "server", module)
    return shown


def test_a_report_is_shown_and_logged_and_its_warnings_are_warnings(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    shown = shown_by(monkeypatch)
    progress.say("Applied.\nWARNING: another base model\n\nDetails:\n2 edits", "7")
    assert shown == [("Applied.\nWARNING: another base model", "7")]
    assert caplog.record_tuples == [
        ("unlearn", logging.INFO, "node 7: Applied."),
        ("unlearn", logging.WARNING, "node 7: WARNING: another base model"),
        ("unlearn", logging.INFO, "node 7: Details:"),
        ("unlearn", logging.INFO, "node 7: 2 edits"),
    ]


def test_a_node_shows_four_lines_the_verdict_and_warnings_among_them(monkeypatch):
    shown = shown_by(monkeypatch)
    progress.say("verdict\na\nb\nc\nd\nWARNING: e", "7")
    assert shown == [("verdict\nWARNING: e\na\nb", "7")]


def test_without_a_page_the_log_is_all_there_is(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delitem(sys.modules, "server", raising=False)
    progress.say("done", "7")
    assert [record.message for record in caplog.records] == ["node 7: done"]


def test_how_far_a_node_is_does_not_fill_the_log(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    shown = shown_by(monkeypatch)
    progress.status("step 1 of 10", "7")
    assert shown == [("step 1 of 10", "7")] and not caplog.records
