"""What a node tells the artist is in the log as well, so that a bug report carries it."""

import logging
import sys
from types import SimpleNamespace

import pytest

from testbed import pack

UnlearnError = pack.module("unlearn.errors").UnlearnError
memory = pack.module("unlearn.host.memory")
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


def test_a_node_begins_with_a_word_and_ends_with_what_stopped_it(monkeypatch):
    shown = shown_by(monkeypatch)
    for error, said in (
        (UnlearnError("The input 'clip' brings nothing."), "The input 'clip' brings nothing."),
        (KeyError("to_k"), "Stopped by an error (KeyError): 'to_k'"),
        (memory.Cancelled(), "Cancelled. Nothing was changed."),
    ):
        with pytest.raises(type(error)), progress.told("7"):
            raise error
        assert shown == [("Starting ...", "7"), (said, "7")]
        shown.clear()


def test_a_cancelled_node_says_what_it_kept(monkeypatch):
    shown, error = shown_by(monkeypatch), memory.Cancelled()
    progress.cancelled_saying(error, "Cancelled. Run again to go on.")
    with pytest.raises(memory.Cancelled), progress.told("7"):
        raise error
    assert shown[-1] == ("Cancelled. Run again to go on.", "7")


def test_every_node_says_what_stopped_it(monkeypatch):
    shown = shown_by(monkeypatch)
    for node in pack.module("nodes").NODES:
        running = type("Running", (node,), {"hidden": SimpleNamespace(unique_id="7")})
        with pytest.raises(BaseException) as stopped:
            running.execute()
        assert len(shown) == 2 and shown[0][0] == progress.BEGUN, node
        assert str(stopped.value).split("\n")[0] in shown[1][0], node
        shown.clear()


def test_the_text_of_a_node_in_a_subgraph_goes_to_that_node_alone(monkeypatch):
    """The classic renderer would lay a text box over the sockets of the box for each text."""
    shown = shown_by(monkeypatch)
    progress.status("step 1", "12:5:3")
    assert shown == [("step 1", "12:5:3")]


def test_the_hosts_name_of_our_errors_is_short():
    """ComfyUI joins these two, and leaves the module out where it is builtins."""
    for error in (UnlearnError, memory.OutOfMemory):
        assert (error.__module__, error.__qualname__) == ("builtins", "Unlearn")
